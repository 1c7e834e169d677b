"""RecurrentSeq2Seq: its formulas, forms of a batch, gradients, steps, generation, training, state, errors."""

import copy
import pickle

import numpy as np
import pytest
from compare import assert_same_bits, normals
from differences import norm_relative, slopes
from layers import randomize
from test_seq2seq import pad, ragged

import headwise as hw

D, H, SOURCE, TARGET = 6, 5, 11, 9
CONTEXTS = ("every_step", "first_state", "attention")
CELLS = ("gru", "lstm", "rnn")


def model(context="attention", cell="gru", **options):
    """Return a small model."""
    return hw.RecurrentSeq2Seq(SOURCE, TARGET, D, H, cell=cell, context=context, **({"rng": 1} | options))


# --- forward ------------------------------------------------------------------------------------------------


def step(state, cell, prefix, x, h, c):
    """One step of a cell by its formula, in float64: torch's names and order of gates."""
    sigmoid = lambda v: 1 / (1 + np.exp(-v))  # noqa: E731
    suffix = "_l0_reverse" if prefix.endswith("reverse.") else "_l0"
    name = prefix.removesuffix("reverse.")
    a = state[f"{name}weight_ih{suffix}"] @ x + state[f"{name}bias_ih{suffix}"]
    b = state[f"{name}weight_hh{suffix}"] @ h + state[f"{name}bias_hh{suffix}"]
    if cell == "rnn":
        return np.tanh(a + b), c
    if cell == "lstm":
        i, f, g, o = np.split(a + b, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        return sigmoid(o) * np.tanh(c), c
    (ar, az, an), (br, bz, bn) = np.split(a, 3), np.split(b, 3)
    z = sigmoid(az + bz)
    return (1 - z) * np.tanh(an + sigmoid(ar + br) * bn) + z * h, c


def twin(state, context, cell, source, target, score):
    """Return the logits of one sequence, in plain loops."""
    x = state["source_embedding.weight"][source]
    zeros = np.zeros(H)
    ways = []
    for name, order in (("encoder.", range(len(x))), ("encoder.reverse.", reversed(range(len(x))))):
        h, c, states = zeros, zeros, {}
        for t in order:
            h, c = step(state, cell, name, x[t], h, c)
            states[t] = h
        ways.append((states, h))
    memory = np.array([np.concatenate([ways[0][0][t], ways[1][0][t]]) for t in range(len(x))])
    summary = np.concatenate([ways[0][1], ways[1][1]])
    s, c = np.tanh(state["bridge.weight"] @ summary + state["bridge.bias"]), zeros
    logits = []
    for token in target:
        y = state["target_embedding.weight"][token]
        y = np.concatenate([y, summary]) if context == "every_step" else y
        s, c = step(state, cell, "decoder.", y, s, c)
        read = s
        if context == "every_step":
            read = np.concatenate([s, summary])
        elif context == "attention":
            scores = np.array([score(s, h) for h in memory])
            weights = np.exp(scores - scores.max())
            read = np.concatenate([s, weights @ memory / weights.sum()])
        r = np.tanh(state["readout.weight"] @ read + state["readout.bias"])
        logits.append(state["output_projection.weight"] @ r + state["output_projection.bias"])
    return np.array(logits)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("context", CONTEXTS)
def test_formulas(rng, context, cell):
    whole = randomize(model(context, cell, dtype="float64"), rng)
    state = whole.state_dict()
    layer = whole._layers.get("score")
    score = lambda s, h: layer(s[None], h[None])[0, 0]  # noqa: E731
    source, target = rng.integers(0, SOURCE, 7), rng.integers(0, TARGET, 4)
    np.testing.assert_allclose(
        whole(source, target), twin(state, context, cell, source, target, score), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize(
    "options", [{"score": "additive"}, {"score": "dot", "bidirectional": False}, {"num_layers": 2}]
)
@pytest.mark.parametrize("cell", CELLS)
def test_every_form_of_a_batch_has_the_same_bits(rng, cell, options):
    for context in CONTEXTS if "num_layers" in options else ["attention"]:
        whole = randomize(model(context, cell, **options), rng)
        sources, targets = ragged(rng, (7, 1, 20), SOURCE), ragged(rng, (3, 9, 2), TARGET)
        d_logits = [normals(rng, len(ids), TARGET) for ids in targets]
        logits, pullback = whole.vjp(sources, targets)
        _, grads = pullback(d_logits)
        assert list(grads) == list(whole.state_dict())
        again = whole(sources, targets)
        for source, target, want, same in zip(sources, targets, logits, again, strict=True):
            assert_same_bits(same, want)
            assert_same_bits(whole(source, target), want)
        (source, of_source), (target, of_target) = pad(sources, -1, True), pad(targets, 99, True)
        out, back = whole.vjp(source, target, source_key_mask=of_source, target_key_mask=of_target)
        assert_same_bits(out[of_target], np.concatenate(logits))
        assert not out[~of_target].any()
        d_padded = np.full(out.shape, np.nan, dtype=np.float32)
        d_padded[of_target] = np.concatenate(d_logits)
        for name, grad in back(d_padded)[1].items():
            assert_same_bits(grad, grads[name])


# --- gradients ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("context", CONTEXTS)
def test_gradients_are_differences(rng, context, cell):
    whole = randomize(model(context, cell, dtype="float64"), rng)
    sources, targets = ragged(rng, (5, 2), SOURCE), ragged(rng, (3, 4), TARGET)
    d_logits = [normals(rng, len(ids), TARGET, dtype="float64") for ids in targets]
    _, pullback = whole.vjp(sources, targets)
    _, grads = pullback(d_logits)
    state = whole.state_dict()
    assert list(grads) == list(state)

    def loss(name, values):
        whole.load_state_dict(state | {name: values})
        return sum(float((a * d).sum()) for a, d in zip(whole(sources, targets), d_logits, strict=True))

    for name, array in state.items():
        want = slopes(lambda values, name=name: loss(name, values), array)
        # A parameter that nothing depends on has exactly no gradient.
        assert norm_relative(grads[name], want) <= 1e-7 if want.any() else not grads[name].any(), name


def test_hard_attention_learns_by_what_was_drawn(rng):
    """The same draws forwards and backwards; without training, the best state and no gradient of scores."""
    whole = randomize(model(normalize="hard"), rng)
    sources, targets = ragged(rng, (5, 6), SOURCE), ragged(rng, (3, 4), TARGET)
    d_logits = [normals(rng, len(ids), TARGET) for ids in targets]
    calm, pullback = whole.vjp(sources, targets)
    assert not any(g.any() for name, g in pullback(d_logits)[1].items() if name.startswith("score."))
    one, pullback = whole.vjp(sources, targets, training=True, rng=3)
    again = whole(sources, targets, training=True, rng=3)
    assert_same_bits(np.concatenate(one), np.concatenate(again))
    assert not np.array_equal(np.concatenate(one), np.concatenate(calm))
    assert any(g.any() for name, g in pullback(d_logits)[1].items() if name.startswith("score."))


# --- steps --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("context", CONTEXTS)
def test_steps_give_the_bits_of_a_call(rng, context, cell):
    whole = randomize(model(context, cell, num_layers=2), rng)
    sources, targets = ragged(rng, (7, 3, 12), SOURCE), rng.integers(0, TARGET, (3, 6))
    want = np.stack(whole(sources, list(targets)))
    state = whole.begin(sources)
    steps = [whole.next(targets[:, i], state)[0] for i in range(3)]
    state.reorder(np.array([2, 0, 2]))
    later = [whole.next(targets[[2, 0, 2], i], state)[0] for i in range(3, 6)]
    assert_same_bits(np.stack(steps, axis=1), want[:, :3])
    assert_same_bits(np.stack(later, axis=1), want[[2, 0, 2], 3:])


def test_weights_of_steps_name_the_places_of_the_source(rng):
    whole = randomize(model(), rng)
    source = rng.integers(0, SOURCE, (2, 6))
    real = np.array([[0, 1, 1, 0, 1, 1], [1, 1, 1, 1, 1, 1]], dtype=bool)
    state = whole.begin(source, source_key_mask=real)
    _, weights = whole.next([1, 2], state, need_weights=True)
    assert weights.shape == (2, 1, 1, 6)
    assert not weights[0, 0, 0][~real[0]].any()
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-6)


@pytest.mark.parametrize("context", CONTEXTS)
def test_it_learns_to_write_backwards(context):
    """A little training lowers the loss, and generation finds what was learned, with its alignments."""
    rng = np.random.default_rng(0)
    start, end = 6, 7
    whole = hw.RecurrentSeq2Seq(6, 8, 12, 24, context=context, rng=2)
    optimizer = hw.optim.AdamW(whole, lr=1e-2)
    losses = []
    for _ in range(60):
        sources = [rng.integers(0, 6, n) for n in rng.integers(1, 4, 32)]
        targets = [ids[::-1] for ids in sources]
        logits, pullback = whole.vjp(sources, [np.append(start, ids) for ids in targets])
        answers = np.concatenate([np.append(ids, end) for ids in targets])
        loss, d_logits = hw.losses.cross_entropy(np.concatenate(logits), answers)
        _, grads = pullback(np.split(d_logits, np.cumsum([len(part) for part in logits])[:-1]))
        optimizer.step(hw.optim.clip_by_norm(grads, 1.0)[0])
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]
    options = {"start": start, "end": end, "max_length": 6}
    with_alignments = {"return_alignments": True} if context == "attention" else {}
    greedy = whole.generate([np.array([1, 2]), np.array([3])], **options, **with_alignments)
    beam = hw.generate(whole, [np.array([1, 2]), np.array([3])], num_beams=3, **options)
    assert len(greedy.tokens) == len(beam.tokens) == 2
    assert (beam.scores >= greedy.scores - 1e-6).all() or True in beam.finished
    if with_alignments:
        assert greedy.alignments[0].shape == (len(greedy.tokens[0]), 1, 1, 2)


# --- the rest -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", CONTEXTS)
def test_state_copies_and_dtypes(rng, context):
    whole = randomize(model(context, "lstm"), rng)
    source, target = rng.integers(0, SOURCE, (2, 5)), rng.integers(0, TARGET, (2, 3))
    want = whole(source, target)
    for other in (copy.deepcopy(whole), pickle.loads(pickle.dumps(whole))):
        assert_same_bits(other(source, target), want)
        assert other.num_parameters == whole.num_parameters
        assert whole.num_parameters == sum(array.size for array in whole.state_dict().values())
    wide = whole.to("float64")
    assert (wide.dtype, wide.context) == ("float64", context)
    np.testing.assert_allclose(wide(source, target), want, rtol=0, atol=1e-5)
    fresh = model(context, "lstm", rng=5)
    fresh.load_state_dict(whole.state_dict())
    assert_same_bits(fresh(source, target), want)
    assert context in repr(whole)


def test_errors_name_the_argument(rng):
    for options, text in [
        ({"cell": "qrnn"}, "cell"),
        ({"context": "never"}, "context"),
        ({"score": "cosine"}, "score"),
        ({"score": "dot"}, "score"),
    ]:
        with pytest.raises(ValueError, match=f"^{text}:"):
            model(**options)
    whole = model("first_state")
    with pytest.raises(ValueError, match=r"^need_weights:"):
        whole.next([1], whole.begin([np.array([1, 2])]), need_weights=True)
    with pytest.raises(TypeError, match=r"^state:"):
        whole.next([1], None)
    with pytest.raises(ValueError, match=r"^tokens:"):
        whole.next([1, 2], whole.begin([np.array([1, 2])]))
    with pytest.raises(ValueError, match=r"^source_ids\[0\]\[1\]: .*11"):
        whole([np.array([1, 11])], [np.array([1])])
    with pytest.raises(TypeError, match="src_key_padding_mask"):
        whole([[1]], [[1]], src_key_padding_mask=[[False]])
