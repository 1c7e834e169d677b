"""Seq2Seq: its parts, forms of a batch, tied tables, state, gradients, training, steps with a cache."""

import copy
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from compare import assert_same_bits, normals
from layers import randomize

import headwise as hw

D, SOURCE, TARGET = 8, 11, 9
TIED = [False, True, "all"]
TABLES = ("source_embedding.weight", "target_embedding.weight", "output_projection.weight")


def model(tied=True, layers=2, **options):
    """Return a small model; gelu has no kink that differences would meet."""
    source = TARGET if tied == "all" else SOURCE
    options = {"activation": "gelu", "rng": 1} | options
    return hw.Seq2Seq(source, TARGET, D, 2, layers, layers, 12, tied=tied, **options)


def ragged(rng, lengths, size):
    """Return a list of ids."""
    return [rng.integers(0, size, n) for n in lengths]


def pad(batch, fill, left=False):
    """Return ids (B, L) of a list, with `fill` in padding, and the boolean (B, L) of tokens."""
    longest = max(map(len, batch))
    real = np.arange(longest) < np.array([[len(ids)] for ids in batch])
    real = real[:, ::-1] if left else real
    wide = np.full(real.shape, fill)
    wide[real] = np.concatenate(batch)
    return wide, real


# --- forward ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", TIED)
def test_it_is_made_of_its_parts(rng, tied):
    whole = randomize(model(tied), rng)
    state = whole.state_dict()
    tables = [state.get(name, state[TABLES[0] if tied == "all" else TABLES[1]]) for name in TABLES]
    source, target = rng.integers(0, TARGET, (3, 6)), rng.integers(0, TARGET, (3, 5))
    x, y = tables[0][source] * np.float32(D**0.5), tables[1][target] * np.float32(D**0.5)
    out = whole.transformer(x, y, source_lengths=[6, 2, 4])
    want = hw.linear(out, tables[2], state["output_projection.bias"])
    assert_same_bits(whole(source, target, source_lengths=[6, 2, 4]), want)


@pytest.mark.parametrize("positions", [None, "sinusoidal", "rotary", "alibi"])
def test_every_form_of_a_batch_has_the_same_bits(rng, positions):
    whole = randomize(model(positions=positions), rng)
    sources, targets = ragged(rng, (7, 1, 66), SOURCE), ragged(rng, (3, 65, 2), TARGET)
    d_logits = [normals(rng, len(ids), TARGET) for ids in targets]
    logits, pullback = whole.vjp(sources, targets)
    d_ids, grads = pullback(d_logits)
    assert d_ids == (None, None)
    for got, again in zip(whole(sources, targets), logits, strict=True):
        assert_same_bits(got, again)
    for source, target, want in zip(sources, targets, logits, strict=True):
        assert_same_bits(whole(source, target), want)
        assert_same_bits(whole(source.tolist(), target.tolist()), want)
    for left in (False, True):
        # What stands in padding is not looked at: ids that are out of range, gradients that are NaN.
        (source, of_source), (target, of_target) = pad(sources, -1, left), pad(targets, 99, left)
        padded, back = whole.vjp(source, target, source_key_mask=of_source, target_key_mask=of_target)
        assert_same_bits(padded[of_target], np.concatenate(logits))
        assert not padded[~of_target].any()
        d_padded = np.full(padded.shape, np.nan, dtype=np.float32)
        d_padded[of_target] = np.concatenate(d_logits)
        _, of_padded = back(d_padded)
        assert list(of_padded) == list(grads)
        for name, grad in grads.items():
            assert_same_bits(of_padded[name], grad)
        if not left:
            lengths = {"source_lengths": of_source.sum(1), "target_lengths": of_target.sum(1)}
            assert_same_bits(whole(source, target, **lengths), padded)
            ones = {"source_key_mask": of_source.astype(int), "target_lengths": of_target.sum(1)}
            assert_same_bits(whole(source, target, **ones), padded)


def test_neighbours_and_threads_change_nothing(rng, threads):
    whole = randomize(model(), rng)
    sources, targets = ragged(rng, (5, 9, 33, 2), SOURCE), ragged(rng, (4, 17, 1, 8), TARGET)
    want = whole(sources, targets)
    for count in (1, 2, 3):
        threads(count)
        got = whole(sources[::-1], targets[::-1])[::-1]
        for one, other in zip(got, want, strict=True):
            assert_same_bits(one, other)


def test_empty_batches():
    whole = model()
    assert whole([], []) == []
    assert whole(np.zeros((0, 6), int), np.zeros((0, 5), int)).shape == (0, 5, TARGET)
    assert whole(np.zeros((2, 6), int), np.zeros((2, 0), int)).shape == (2, 0, TARGET)
    logits, pullback = whole.vjp([], [])
    assert logits == []
    _, grads = pullback([])
    assert list(grads) == list(whole.state_dict())
    assert not any(grad.any() for grad in grads.values())
    # A source without a token: nothing is attended to.
    out = whole([np.zeros(0, int), np.array([1])], [np.array([1, 2]), np.array([1, 2])])
    assert np.isfinite(out[0]).all()
    assert not np.array_equal(out[0], out[1])


def test_ids_of_any_kind(rng):
    whole = randomize(model(), rng)
    ids = rng.integers(0, TARGET, (3, 6))
    want = whole(ids, ids)
    for dtype in ("uint8", "int16", "uint64", ">i4"):
        assert_same_bits(whole(ids.astype(dtype), np.asfortranarray(ids)), want)
    assert_same_bits(whole(ids.tolist(), ids[:, ::-1].copy()[:, ::-1]), want)

    class Exchanged:
        """What has DLPack alone."""

        def __init__(self, array):
            self.__dlpack__, self.__dlpack_device__ = array.__dlpack__, array.__dlpack_device__

    assert_same_bits(whole(Exchanged(ids), Exchanged(ids)), want)


@pytest.mark.parametrize("source", [[], np.zeros((0, 4), int), np.zeros((2, 0), int), [np.zeros(0, int)]])
def test_generation_from_nothing(source):
    whole = model()
    state = whole.begin(source)
    logits, weights = whole.next(np.zeros(len(state), int), state, need_weights=True)
    assert logits.shape == (len(source), TARGET)
    assert weights.shape[:3] == (len(source), 2, 2)
    assert len(whole.generate(source, start=0, end=1, max_length=3).tokens) == len(source)


# --- errors -------------------------------------------------------------------------------------------------

OK = np.ones((2, 3), dtype=int)
WRONG = [
    (([[0, 1], [2, 11]], OK), ValueError, r"source_ids\[1, 1\]: expected an id from 0 to 10, got 11"),
    ((OK, -OK), ValueError, r"target_ids\[0, 0\]: expected an id from 0 to 8, got -1"),
    ((OK[0], -OK[0]), ValueError, r"target_ids\[0\]: expected an id"),
    (([OK[0]], [np.array([1, 2, 50])]), ValueError, r"target_ids\[0\]\[2\]: expected an id"),
    ((OK, OK * 0.5), TypeError, "target_ids: expected integers, got dtype float64"),
    ((OK > 0, OK), TypeError, "source_ids: expected integers, got dtype bool"),
    ((OK[None], OK), ValueError, r"source_ids: expected \(B, L\), \(L,\) or a list"),
    ((OK, OK[:1]), ValueError, "target_ids: expected B = 2 sequences, as source_ids has"),
    ((OK, OK[0]), ValueError, "target_ids: expected B = 2 sequences"),
    ((OK[0], OK), ValueError, r"target_ids: expected \(L,\)"),
    ((OK, list(OK)), TypeError, "target_ids: a list of arrays goes only with a list"),
    ((list(OK), OK), TypeError, "target_ids: a list of arrays goes only with a list"),
    (([[1, 2], [3]], OK), ValueError, "source_ids: expected an array"),
]  # fmt: skip


@pytest.mark.parametrize(("ids", "error", "text"), WRONG)
def test_ids_that_do_not_fit_are_named(ids, error, text):
    whole = model()
    with pytest.raises(error, match=text):
        whole(*ids)
    with pytest.raises(error, match=text):
        whole.vjp(*ids)


@pytest.mark.parametrize(
    ("masks", "error", "text"),
    [
        ({"source_key_mask": np.ones((2, 4), bool)}, ValueError, r"source_key_mask: expected .*\(2, 3\)"),
        ({"target_key_mask": np.ones((2, 3))}, TypeError, "target_key_mask: expected booleans or 0 and 1"),
        ({"target_key_mask": OK + 1}, TypeError, "target_key_mask: expected booleans or 0 and 1"),
        ({"source_lengths": [3, 4]}, ValueError, "source_lengths: expected numbers from 0 to 3, got 4"),
        ({"target_lengths": [3.0, 1.0]}, TypeError, "target_lengths: expected integers"),
        ({"target_lengths": [3, 1, 2]}, ValueError, "target_lengths: expected a shape"),
    ],
)
def test_masks_that_do_not_fit_are_named(masks, error, text):
    whole = model()
    with pytest.raises(error, match=text):
        whole(OK, OK, **masks)
    with pytest.raises(ValueError, match="no padding to mask"):
        whole(list(OK), list(OK), **masks)


def test_unknown_keywords_are_refused():
    whole = model()
    with pytest.raises(TypeError, match="source_key_mask=~src_key_padding_mask"):
        whole(OK, OK, src_key_padding_mask=OK > 0)
    with pytest.raises(TypeError, match=r"Seq2Seq\(\) got an unexpected keyword argument 'key_mask'"):
        whole.vjp(OK, OK, key_mask=OK > 0)
    with pytest.raises(TypeError, match=r"begin\(\) got an unexpected keyword argument 'target_lengths'"):
        whole.begin(OK, target_lengths=[3, 3])


def test_gradients_that_do_not_fit_are_named():
    whole = model()
    logits, pullback = whole.vjp(OK, OK)
    assert repr(pullback) == "<pullback of Seq2Seq>"
    with pytest.raises(ValueError, match=r"d_logits: expected shape \(2, 3, 9\)"):
        pullback(logits[0])
    with pytest.raises(TypeError, match="d_logits: expected an array"):
        pullback(list(logits))
    _, pullback = whole.vjp(list(OK), list(OK))
    with pytest.raises(TypeError, match="d_logits: expected a list"):
        pullback(logits)
    with pytest.raises(ValueError, match="d_logits: expected shapes"):
        pullback(list(logits[:, :2]))


def test_arguments_that_do_not_fit_are_named():
    for wrong in ("both", None, 2):
        with pytest.raises(ValueError, match="tied: expected"):
            model(wrong)
    with pytest.raises(ValueError, match='tied: "all" needs one vocabulary, got 11 ids'):
        hw.Seq2Seq(SOURCE, TARGET, D, 2, tied="all")
    with pytest.raises(TypeError, match="what"):
        model(what=3)
    with pytest.raises(ValueError, match="num_embeddings"):
        hw.Seq2Seq(0, TARGET, D, 2)


# --- tables and state ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", TIED)
def test_names(tied):
    whole = model(tied)
    state = whole.state_dict()
    saved = {False: TABLES, True: TABLES[:2], "all": TABLES[:1]}[tied]
    rest = {f"transformer.{name}" for name in whole.transformer.state_dict()} | {"output_projection.bias"}
    assert set(state) == {*saved, *rest}
    assert whole.num_parameters == sum(array.size for array in state.values())
    assert (whole.num_target_tokens, whole.tied, whole.dtype) == (TARGET, tied, "float32")
    assert whole.num_source_tokens == (TARGET if tied == "all" else SOURCE)
    assert "output_projection.bias" not in model(tied, output_bias=False).state_dict()


def test_first_tables_have_rows_of_length_one():
    whole = hw.Seq2Seq(1000, 900, 64, 4, 1, 1, 8, tied=False, rng=0)
    state = whole.state_dict()
    for name in TABLES[:2]:
        assert abs(state[name].std() * 8 - 1) < 0.02
    assert not np.array_equal(state[TABLES[0]][:900], state[TABLES[1]])
    again = hw.Seq2Seq(1000, 900, 64, 4, 1, 1, 8, tied=False, rng=0)
    for name, array in again.state_dict().items():
        assert_same_bits(array, state[name])


@pytest.mark.parametrize("tied", [True, "all"])
def test_a_shared_table_loads_under_each_of_its_names(rng, tied):
    whole = randomize(model(tied), rng)
    names = TABLES[0 if tied == "all" else 1 :]
    state = whole.state_dict()
    table = state.pop(names[0])
    want = whole(OK, OK)
    for some in (names[:1], names[1:2], names[-1:], names):
        other = model(tied, rng=9)
        other.load_state_dict(state | {f"module.{name}": table.copy() for name in some})
        assert_same_bits(other(OK, OK), want)
        assert set(other.state_dict()) == {*state, names[0]}
    before = whole.state_dict()
    with pytest.raises(ValueError, match="are tied, one parameter, but differ"):
        whole.load_state_dict(state | {names[0]: table, names[-1]: table + 1})
    with pytest.raises(ValueError, match="missing"):
        whole.load_state_dict(state)
    for name, array in whole.state_dict().items():
        assert_same_bits(array, before[name])
    whole.load_state_dict({names[-1]: table * 2}, strict=False)
    assert_same_bits(whole.state_dict()[names[0]], table * 2)


def test_a_tied_model_is_an_untied_one_with_equal_tables(rng):
    apart, tied = randomize(model(False), rng), model(True)
    state = apart.state_dict()
    state[TABLES[2]] = state[TABLES[1]]
    apart.load_state_dict(state)
    tied.load_state_dict(state)
    (logits, pullback), (again, back) = (each.vjp(OK, OK) for each in (apart, tied))
    assert_same_bits(logits, again)
    d_logits = normals(rng, *logits.shape)
    (_, grads), (_, of_tied) = pullback(d_logits), back(d_logits)
    assert_same_bits(of_tied[TABLES[1]], grads[TABLES[1]] + grads[TABLES[2]])
    assert_same_bits(of_tied[TABLES[0]], grads[TABLES[0]])


def test_a_state_that_does_not_fit_changes_nothing(rng):
    whole = randomize(model(), rng)
    state, other = whole.state_dict(), {k: np.ones_like(v) for k, v in whole.state_dict().items()}
    last = list(state)[-1]
    for wrong, text in (
        ({k: v for k, v in other.items() if k != last}, "layer 'output_projection': state: missing"),
        (other | {last: np.ones((3, 3, 3))}, "layer 'output_projection': state: .*expected shape"),
        (other | {"what.is": np.ones(1)}, r"unexpected what\.is"),
    ):
        with pytest.raises(ValueError, match=text):
            whole.load_state_dict(wrong)
        for k, array in whole.state_dict().items():
            assert_same_bits(array, state[k])


@pytest.mark.parametrize("tied", TIED)
def test_copies_dtypes_and_texts(rng, tied):
    whole = randomize(model(tied), rng)
    out = whole(OK, OK)
    for other in (copy.deepcopy(whole), pickle.loads(pickle.dumps(whole))):
        assert_same_bits(other(OK, OK), out)
        assert repr(other) == repr(whole)
        other.load_state_dict({k: np.zeros_like(v) for k, v in other.state_dict().items()})
        assert_same_bits(whole(OK, OK), out)
    wide = whole.to("float64")
    assert (wide.dtype, wide.tied) == ("float64", tied)
    assert wide(OK, OK).dtype == np.float64
    assert_same_bits(wide.to("float32")(OK, OK), out)
    assert "\n  (transformer): Transformer(\n    (encoder): Encoder(2, 8" in repr(whole)


def test_training_checkpoints_hold_it(rng, tmp_path):
    whole, other = randomize(model("all"), rng), model("all", rng=9)
    path = tmp_path / "model.safetensors"
    hw.save_checkpoint(path, model=whole, optimizer=hw.optim.AdamW(whole))
    hw.load_checkpoint(path, model=other, optimizer=hw.optim.AdamW(other))
    assert_same_bits(other(OK, OK), whole(OK, OK))


# --- gradients ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", TIED)
@pytest.mark.parametrize("norm_first", [False, True])
def test_gradients_by_differences(rng, tied, norm_first):
    whole = randomize(model(tied, layers=1, norm_first=norm_first, dtype="float64"), rng)
    source, target = rng.integers(0, TARGET, (3, 6)), rng.integers(0, TARGET, (3, 5))
    masks = {"source_lengths": [6, 2, 4], "target_lengths": [5, 1, 3], "window": (2, 0)}
    hw.gradcheck(whole.vjp, [source, target], **masks)


def test_gradients_of_dropout(rng):
    whole = randomize(model(layers=1, dropout=0.3, positions="rotary", dtype="float64"), rng)
    ids = rng.integers(0, TARGET, (2, 5))
    hw.gradcheck(whole.vjp, [ids, ids], training=True, rng=4)
    out = whole(ids, ids, training=True, rng=7)
    assert_same_bits(whole(ids, ids, training=True, rng=7), out)
    assert not np.array_equal(whole(ids, ids, training=True, rng=8), out)


def test_a_few_steps_lower_the_loss(rng):
    whole = model("all", norm_first=True)
    optimizer = hw.optim.AdamW(whole, lr=1e-2)
    ids = rng.integers(2, TARGET, (16, 6))
    start = np.concatenate([np.zeros((16, 1), int), ids[:, :-1]], axis=1)
    losses = []
    for _ in range(30):
        logits, pullback = whole.vjp(ids, start, training=True, rng=rng)
        loss, d_logits = hw.losses.cross_entropy(logits, ids)
        optimizer.step(pullback(d_logits)[1])
        losses.append(loss)
    assert losses[-1] < 0.7 * losses[0]


PROGRAM = """
import hashlib, sys
import numpy as np
import headwise as hw

hw.set_num_threads(int(sys.argv[1]))
rng = np.random.default_rng(2)
model = hw.Seq2Seq(30, 20, 32, 4, 2, 2, 64, dropout=0.2, positions="rotary", activation="gelu", rng=3)
optimizer = hw.optim.AdamW(model, lr=hw.optim.warmup_cosine(1e-2, warmup=1, total=4))
for _ in range(4):
    sources = [rng.integers(0, 30, n) for n in rng.integers(1, 40, 12)]
    targets = [rng.integers(0, 20, n) for n in rng.integers(1, 20, 12)]
    logits, pullback = model.vjp(sources, targets, training=True, rng=rng)
    losses = [hw.losses.cross_entropy(one, ids) for one, ids in zip(logits, targets)]
    _, grads = pullback([loss.gradient for loss in losses])
    optimizer.step(hw.optim.clip_by_norm(grads, 1.0)[0])
found = model.generate(sources, start=0, end=1, max_length=20, num_beams=3)
state = b"".join(array.tobytes() for array in model.state_dict().values())
print(hashlib.sha256(state).hexdigest(), [ids.tolist() for ids in found.tokens])
"""


@pytest.mark.once
def test_a_training_has_the_same_bits_on_every_instruction_set():
    printed = set()
    for isa in hw.show_config(mode="dicts")["available_isas"]:
        for threads in ("1", "2"):
            done = subprocess.run(
                [sys.executable, "-c", PROGRAM, threads],
                env=os.environ | {"HEADWISE_ISA": isa},
                check=True,
                capture_output=True,
                text=True,
            )
            printed.add(done.stdout)
    assert len(printed) == 1, printed


# --- steps with a cache -------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"norm_first": True}, {"num_kv_heads": 1}, {"tied": "all"}])
@pytest.mark.parametrize("positions", [None, "sinusoidal", "rotary", "alibi"])
@pytest.mark.parametrize("window", [None, (3, 0)])
def test_steps_have_the_bits_of_the_whole(rng, positions, options, window):
    whole = randomize(model(positions=positions, **options), rng)
    sources, target = ragged(rng, (5, 1, 20), TARGET), rng.integers(0, TARGET, (3, 12))
    want = np.stack(whole(sources, list(target), window=window))
    state = whole.begin(sources, window=window)
    assert len(state) == 3
    for place in range(12):
        logits, weights = whole.next(target[:, place], state)
        assert weights is None
        assert_same_bits(logits, want[:, place])


def test_a_long_generation_has_the_bits_of_the_whole(rng):
    whole = randomize(model(), rng)
    source, target = rng.integers(0, SOURCE, (2, 70)), rng.integers(0, TARGET, (2, 140))
    for window in (None, (17, 0)):
        want = whole(source, target, window=window)
        state = whole.begin(source, window=window)
        for place in range(140):
            assert_same_bits(whole.next(target[:, place], state)[0], want[:, place])


def test_sequences_leave_and_branch(rng):
    whole = randomize(model(), rng)
    sources, target = ragged(rng, (5, 1, 20), SOURCE), rng.integers(0, TARGET, (3, 6))
    want = np.stack(whole(sources, list(target)))
    state = whole.begin(sources)
    whole.next(target[:, 0], state)
    kept = state.copy()
    order = np.array([2, 0, 2, 2])
    state.reorder(order)
    assert (len(state), len(kept)) == (4, 3)
    for place in range(1, 6):
        assert_same_bits(whole.next(target[order, place], state)[0], want[order, place])
        assert_same_bits(whole.next(target[:, place], kept)[0], want[:, place])
    assert repr(state) == "<state of 4 sequences of a Seq2Seq>"
    state.reorder(np.zeros(0, dtype=int))
    assert len(state) == 0


def test_weights_stand_at_the_places_of_the_source(rng):
    whole = randomize(model(), rng)
    sources, tokens = ragged(rng, (5, 2), SOURCE), np.array([1, 2])
    logits, weights = whole.next(tokens, whole.begin(sources), need_weights=True)
    assert_same_bits(logits, whole.next(tokens, whole.begin(sources))[0])
    assert weights.shape == (2, 2, 2, 5)
    np.testing.assert_allclose(weights.sum(-1), 1.0, rtol=1e-6)
    assert not weights[1, ..., 2:].any()
    # Alone, padded on the left: the same weights, where its tokens stand.
    source, real = pad(sources, -1, left=True)
    _, moved = whole.next(tokens, whole.begin(source, source_key_mask=real), need_weights=True)
    assert_same_bits(moved[1][..., 3:], weights[1][..., :2])
    assert not moved[1][..., :3].any()
    _, single = whole.next(tokens[1:], whole.begin(sources[1]), need_weights=True)
    assert_same_bits(single[0], weights[1][..., :2])


def test_weights_are_those_of_the_decoder(rng):
    whole = randomize(model(), rng)
    source, target = rng.integers(0, SOURCE, (2, 7)), rng.integers(0, TARGET, (2, 4))
    tables = [whole.state_dict()[name] * np.float32(D**0.5) for name in TABLES[:2]]
    memory = whole.transformer.encode(tables[0][source])
    want = whole.transformer.decoder(tables[1][target], memory, need_weights=True).cross_weights
    state = whole.begin(source)
    for place in range(4):
        _, weights = whole.next(target[:, place], state, need_weights=True)
        for layer in range(2):
            assert_same_bits(weights[:, layer], want[layer][:, :, place])


def test_steps_that_do_not_fit_are_named():
    whole = model()
    state = whole.begin(OK)
    for tokens, error, text in (
        (np.array([1]), ValueError, r"tokens: expected \(N,\) with N = 2"),
        (OK, ValueError, r"tokens: expected \(N,\) with N = 2"),
        (np.array([1, TARGET]), ValueError, r"tokens\[1\]: expected an id from 0 to 8, got 9"),
        (np.array([0.5, 1.0]), TypeError, "tokens: expected integers"),
    ):
        with pytest.raises(error, match=text):
            whole.next(tokens, state)
    with pytest.raises(TypeError, match=r"state: expected what begin\(\) returned, got list"):
        whole.next(np.array([1, 2]), [])
    with pytest.raises(ValueError, match="source_ids"):
        whole.begin(OK + SOURCE)


# --- generation ---------------------------------------------------------------------------------------------


def test_greedy_takes_what_the_whole_scores_highest(rng):
    whole = randomize(model(positions="rotary"), rng)
    sources = ragged(rng, (5, 1, 20), SOURCE)
    found = whole.generate(sources, start=0, end=1, max_length=15, return_alignments=True)
    for source, tokens, finished, alignment in zip(
        sources, found.tokens, found.finished, found.alignments, strict=True
    ):
        scores = whole(source, np.append(0, tokens))
        best = scores.argmax(-1)
        np.testing.assert_array_equal(best[: len(tokens)], tokens)
        assert finished == (len(tokens) < 15)
        assert best[-1] == 1 or not finished
        assert alignment.shape[:3] == (len(tokens), 2, 2)
    alone = [whole.generate(ids[None], start=0, end=1, max_length=15) for ids in sources]
    for each, tokens, score in zip(alone, found.tokens, found.scores, strict=True):
        np.testing.assert_array_equal(each.tokens[0], tokens)
        assert_same_bits(each.scores[0], score)
    wide, real = pad(sources, -1)
    again = whole.generate(wide, source_key_mask=real, start=0, end=1, max_length=15)
    assert_same_bits(again.scores, found.scores)


def test_beams_and_samples_score_what_the_whole_scores(rng):
    whole = randomize(model(tied="all"), rng)
    sources = ragged(rng, (5, 2), TARGET)
    for options in ({"num_beams": 3, "length_penalty": 0.0}, {"do_sample": True, "top_k": 4, "rng": 5}):
        found = whole.generate(sources, start=0, end=1, max_length=12, **options)
        assert str(found) == str(whole.generate(sources, start=0, end=1, max_length=12, **options))
        for source, tokens, finished, score in zip(
            sources, found.tokens, found.finished, found.scores, strict=True
        ):
            told = np.append(tokens, 1) if finished else tokens
            scores = whole(source, np.append(0, told[:-1])).astype(np.float64)
            log_sums = np.log(np.exp(scores - scores.max(-1, keepdims=True)).sum(-1)) + scores.max(-1)
            want = (scores[np.arange(len(told)), told] - log_sums).sum()
            assert abs(score - want) <= 1e-12 * max(1.0, abs(want))
