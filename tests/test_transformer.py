"""Transformer: the two stacks as one, its keywords, seeds, state and forms, and gradients through both."""

import copy
import pickle

import numpy as np
import pytest
from compare import assert_same_bits, normals
from layers import pad, randomize

import headwise as hw

D = 8


def model(**options):
    """Return a small model; gelu has no kink that differences would meet."""
    return hw.Transformer(D, 2, 2, 2, 12, **{"activation": "gelu", "rng": 1} | options)


def inputs(rng, dtype="float32"):
    """Return a source of three sequences of six, and a target of five."""
    return normals(rng, 3, 6, D, dtype=dtype), normals(rng, 3, 5, D, dtype=dtype)


def test_the_decoder_reads_what_the_encoder_made(rng):
    whole = randomize(model(positions="rotary"), rng)
    source, target = inputs(rng)
    memory = whole.encode(source, source_lengths=[6, 2, 4])
    assert_same_bits(memory, whole.encoder(source, lengths=[6, 2, 4]))
    want = whole.decoder(target, memory, lengths=[5, 5, 3], memory_lengths=[6, 2, 4], window=(2, 0))
    masks = {"source_lengths": [6, 2, 4], "target_lengths": [5, 5, 3], "window": (2, 0)}
    assert_same_bits(whole(source, target, **masks), want)


KEYWORDS = {
    "source_mask": np.tri(6, dtype=bool),
    "source_key_mask": np.arange(6) < [[6], [2], [4]],
    "source_lengths": [6, 2, 4],
    "source_window": (1, 1),
    "source_head_mask": np.array([[0.5, 1.0], [0.0, 2.0]]),
    "target_mask": np.tri(5, dtype=bool).T,
    "target_key_mask": np.arange(5) < [[5], [1], [3]],
    "target_lengths": [5, 1, 3],
    "is_causal": False,
    "window": (1, 0),
    "memory_mask": np.random.default_rng(0).random((5, 6)) < 0.7,
    "target_head_mask": np.array([[0.5, 1.0], [0.0, 2.0]]),
    "cross_head_mask": np.array([[0.5, 1.0], [0.0, 2.0]]),
}


@pytest.mark.parametrize("keyword", KEYWORDS)
def test_every_keyword_reaches_its_stack(rng, keyword):
    whole = randomize(model(), rng)
    source, target = inputs(rng)
    if keyword == "target_mask":
        keywords = {keyword: KEYWORDS[keyword], "is_causal": False}
    else:
        keywords = {keyword: KEYWORDS[keyword]}
    out = whole(source, target, **keywords)
    assert not np.array_equal(out, whole(source, target))
    assert_same_bits(whole.vjp(source, target, **keywords)[0], out)
    assert_same_bits(
        whole(source, target, **keywords, **{k: None for k in KEYWORDS if k not in keywords}), out
    )


def test_nothing_after_a_token_changes_it(rng):
    whole = randomize(model(positions="sinusoidal"), rng)
    source, target = inputs(rng)
    out = whole(source, target)
    changed = target.copy()
    changed[:, 3:] += 1.0
    assert_same_bits(whole(source, changed)[:, :3], out[:, :3])
    assert not np.array_equal(whole(source, changed, is_causal=False)[:, :3], out[:, :3])


@pytest.mark.parametrize("positions", [None, "sinusoidal", "rotary", "alibi"])
def test_every_form_of_a_batch_has_the_same_bits(rng, positions):
    whole = randomize(model(positions=positions), rng)
    sources = [normals(rng, n, D) for n in (7, 1, 66)]
    targets = [normals(rng, n, D) for n in (3, 65, 2)]
    d_outs = [normals(rng, len(x), D) for x in targets]
    outs, pullback = whole.vjp(sources, targets)
    (d_sources, d_targets), grads = pullback(d_outs)
    for out, again in zip(outs, whole(sources, targets), strict=True):
        assert_same_bits(out, again)
    for one in range(3):
        assert_same_bits(whole(sources[one], targets[one]), outs[one])
        assert_same_bits(whole(sources[one][None], targets[one][None])[0], outs[one])
    for left in (False, True):
        wide, of_source = pad(sources, fill=np.nan, left=left)
        wide_target, of_target = pad(targets, fill=np.nan, left=left)
        masks = {"source_key_mask": of_source, "target_key_mask": of_target}
        padded, back = whole.vjp(wide, wide_target, **masks)
        assert_same_bits(padded[of_target], np.concatenate(outs))
        assert not padded[~of_target].any()
        (d_wide, d_wide_target), of_padded = back(pad(d_outs, fill=np.nan, left=left)[0])
        assert_same_bits(d_wide[of_source], np.concatenate(d_sources))
        assert_same_bits(d_wide_target[of_target], np.concatenate(d_targets))
        assert not d_wide[~of_source].any()
        assert list(of_padded) == list(grads)
        for name, grad in grads.items():
            assert_same_bits(of_padded[name], grad)


def test_empty_batches(rng):
    whole = model()
    assert whole([], []) == []
    assert whole(np.zeros((0, 6, D)), np.zeros((0, 5, D))).shape == (0, 5, D)
    assert whole(np.zeros((2, 6, D)), np.zeros((2, 0, D))).shape == (2, 0, D)
    out, pullback = whole.vjp([], [])
    d_inputs, grads = pullback([])
    assert (out, d_inputs) == ([], ([], []))
    assert list(grads) == list(whole.state_dict())
    assert not any(grad.any() for grad in grads.values())


# --- gradients ----------------------------------------------------------------------------------------------

OPTIONS = {
    "post": {},
    "pre_rotary": dict(norm_first=True, positions="rotary", num_kv_heads=1),
    "gated_rms": dict(ffn="glu", norm="rms", activation="silu", bias=False, positions="alibi"),
    "no_final_norm": dict(final_norm=False, norm_first=True, positions="sinusoidal"),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_gradients_by_differences(rng, options):
    whole = randomize(model(dtype="float64", **options), rng)
    masks = {"source_lengths": [6, 2, 4], "target_lengths": [5, 1, 3], "window": (2, 0)}
    hw.gradcheck(whole.vjp, inputs(rng, "float64"), **masks)


def test_gradients_of_dropout_masks_and_heads(rng):
    whole = randomize(model(dropout=0.3, dtype="float64"), rng)
    heads = {name: rng.uniform(0.2, 1.5, (2, 2)) for name in KEYWORDS if name.endswith("head_mask")}
    bias = rng.standard_normal((5, 6))
    hw.gradcheck(whole.vjp, inputs(rng, "float64"), training=True, rng=4, memory_mask=bias, **heads)


def test_one_seed_repeats_a_run(rng):
    whole = randomize(model(dropout=0.5), rng)
    source, target = inputs(rng)
    out = whole(source, target, training=True, rng=7)
    assert_same_bits(whole(source, target, training=True, rng=7), out)
    assert_same_bits(whole.vjp(source, target, training=True, rng=7)[0], out)
    assert not np.array_equal(whole(source, target, training=True, rng=8), out)
    assert_same_bits(whole(source, target, rng=7), whole(source, target))
    used, other = np.random.default_rng(3), np.random.default_rng(3)
    whole(source, target, training=True, rng=used)
    other.integers(0, 2**64 - 1, dtype=np.uint64, endpoint=True)
    assert used.bit_generator.state == other.bit_generator.state


def test_the_stacks_are_drawn_apart():
    state = model(num_kv_heads=None).state_dict()
    name = "layers.0.self_attn.in_proj_weight"
    assert not np.array_equal(state[f"encoder.{name}"], state[f"decoder.{name}"])
    for key, array in model().state_dict().items():
        assert_same_bits(array, state[key])
    assert not np.array_equal(model(rng=2).state_dict()[f"encoder.{name}"], state[f"encoder.{name}"])


# --- state --------------------------------------------------------------------------------------------------


def test_names_are_those_of_the_stacks():
    whole = model()
    state = whole.state_dict()
    want = [f"{part}.{name}" for part in ("encoder", "decoder") for name in getattr(whole, part).state_dict()]
    assert list(state) == want
    assert {
        "encoder.norm.weight",
        "decoder.norm.bias",
        "decoder.layers.1.multihead_attn.out_proj.weight",
    } <= {*state}
    assert whole.num_parameters == sum(array.size for array in state.values())
    assert (whole.d_model, whole.dtype) == (D, "float32")
    assert "encoder.norm.weight" not in model(final_norm=False).state_dict()


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
def test_state_goes_round(rng, prefix):
    whole, other = randomize(model(), rng), model(rng=5)
    source, target = inputs(rng)
    other.load_state_dict({prefix + k: v for k, v in whole.state_dict().items()})
    assert_same_bits(other(source, target), whole(source, target))


def test_a_state_that_does_not_fit_changes_nothing(rng):
    whole = randomize(model(), rng)
    state, other = whole.state_dict(), {k: np.ones_like(v) for k, v in whole.state_dict().items()}
    last = list(state)[-1]
    for wrong, text in (
        ({k: v for k, v in other.items() if k != last}, "layer 'decoder': state: missing"),
        (other | {last: np.ones((3, 3, 3))}, "layer 'decoder': state: .*expected shape"),
        (other | {"what.is": np.ones(1)}, r"unexpected what\.is"),
    ):
        with pytest.raises(ValueError, match=text):
            whole.load_state_dict(wrong)
        for k, array in whole.state_dict().items():
            assert_same_bits(array, state[k])
    whole.load_state_dict({last: other[last], "what.is": np.ones(1)}, strict=False)
    for k, array in whole.state_dict().items():
        assert_same_bits(array, other[k] if k == last else state[k])


def test_copies_dtypes_and_texts(rng):
    whole = randomize(model(dropout=0.2), rng)
    source, target = inputs(rng)
    out = whole(source, target)
    for other in (copy.deepcopy(whole), pickle.loads(pickle.dumps(whole))):
        assert_same_bits(other(source, target), out)
        assert repr(other) == repr(whole)
        other.load_state_dict({k: np.zeros_like(v) for k, v in other.state_dict().items()})
        assert_same_bits(whole(source, target), out)
    wide = whole.to("float64")
    assert isinstance(wide, hw.Transformer)
    assert wide.dtype == "float64"
    assert wide(source, target).dtype == np.float64
    assert_same_bits(wide.to("float32")(source, target), out)
    text = repr(whole)
    assert text.startswith("Transformer(\n  (encoder): Encoder(2, 8, 2, 12, ")
    assert "\n  (decoder): Decoder(2, 8, 2, 12, " in text


def test_pruned_heads_are_those_with_factor_0(rng):
    whole = randomize(model(), rng)
    source, target = inputs(rng)
    gone = {"source_heads": {0: [1]}, "target_heads": {1: [0]}, "cross_heads": {0: [0], 1: [1]}}
    pruned = whole.prune_heads(**gone)
    factors = {"source_head_mask": [[1, 0], [1, 1]], "target_head_mask": [[1, 1], [0, 1]]}
    factors["cross_head_mask"] = [[0, 1], [1, 0]]
    np.testing.assert_allclose(pruned(source, target), whole(source, target, **factors), rtol=1e-5, atol=1e-6)
    assert pruned.num_parameters < whole.num_parameters
    for other in (copy.deepcopy(pruned), pickle.loads(pickle.dumps(pruned))):
        assert_same_bits(other(source, target), pruned(source, target))
    assert_same_bits(whole.prune_heads()(source, target), whole(source, target))
    with pytest.raises(ValueError, match="decoder: "):
        whole.prune_heads(cross_heads={0: [0, 1]})


# --- errors -------------------------------------------------------------------------------------------------


def test_errors_name_what_came(rng):
    whole, (source, target) = model(), inputs(rng)
    with pytest.raises(ValueError, match=r"encoder: x: expected .*got shape"):
        whole(source[..., :5], target)
    with pytest.raises(ValueError, match="decoder: "):
        whole(source, target[..., :5])
    with pytest.raises(ValueError, match="decoder: "):
        whole(source[:2], target)
    with pytest.raises(TypeError, match=r"decoder: .*list"):
        whole(source, list(target))
    with pytest.raises(ValueError, match="no padding to mask"):
        whole(list(source), list(target), source_lengths=[6, 6, 6])
    _, pullback = whole.vjp(source, target)
    with pytest.raises(ValueError, match="d_out"):
        pullback(target[0])
    assert repr(pullback) == "<pullback of Transformer>"


def test_unknown_keywords_are_refused(rng):
    whole, (source, target) = model(), inputs(rng)
    padding = np.zeros((3, 6), dtype=bool)
    with pytest.raises(TypeError, match="source_key_mask=~src_key_padding_mask"):
        whole(source, target, src_key_padding_mask=padding)
    with pytest.raises(TypeError, match="target_key_mask=~tgt_key_padding_mask"):
        whole.vjp(source, target, tgt_key_padding_mask=padding)
    with pytest.raises(TypeError, match="pass target_mask"):
        whole(source, target, tgt_mask=padding)
    with pytest.raises(TypeError, match="unexpected keyword argument 'target_key_mask'"):
        whole.encode(source, target_key_mask=padding)
    with pytest.raises(TypeError, match="unexpected keyword argument 'key_mask'"):
        whole(source, target, key_mask=padding)
    with pytest.raises(TypeError, match="what"):
        hw.Transformer(D, 2, what=3)
    with pytest.raises(ValueError, match="num_heads"):
        hw.Transformer(D, 3)
