"""Any combination of options against the naive reference: hypothesis draws what nobody thought of."""

import numpy as np
from compare import assert_same_bits, qkv
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import allowed_mask_reference

import headwise as hw
from headwise.testing import attention_reference


@st.composite
def calls(draw):
    """Draw arrays and options of one call, float64 so that a wrong key or row shows at once."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    L, S = draw(st.integers(1, 140)), draw(st.integers(0, 200))
    E, Ev = draw(st.sampled_from([1, 2, 7, 16, 33])), draw(st.sampled_from([1, 5, 16, 40]))
    Hk, group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    B = draw(st.sampled_from([(), (1,), (3,), (2, 2)]))
    H = Hk * group
    arrays = qkv(rng, L, S, E, B=B, H=H, Hk=Hk, Ev=Ev, dtype="float64")

    shape = [draw(st.sampled_from([1, n])) for n in (*B, H, L, S)]
    shape = shape[draw(st.integers(0, len(shape) - 1)) :]
    share = draw(st.sampled_from([0.02, 0.5, 0.98]))
    masks = {
        None: lambda: None,
        "bool": lambda: rng.random(shape) < share,
        "float": lambda: rng.standard_normal(shape),
        "blocking": lambda: np.where(rng.random(shape) < share, rng.standard_normal(shape), -np.inf),
    }
    sides = st.none() | st.integers(0, 220)
    options = {
        "attn_mask": masks[draw(st.sampled_from([*masks]))](),
        "key_mask": draw(st.sampled_from([None, rng.random((*B, S)) < share, rng.random(S) < share])),
        "key_lengths": draw(st.sampled_from([None, rng.integers(0, S + 1, B)])),
        "is_causal": draw(st.booleans()),
        "causal_offset": draw(
            st.sampled_from([0, "bottom_right", rng.integers(-L, S + 1, B)]) | st.integers(-150, 250)
        ),
        "window": draw(st.none() | st.tuples(sides, sides)),
    }
    scores = {
        "softcap": draw(st.sampled_from([None, 0.7, 20.0])),
        "scale": draw(st.sampled_from([None, 0.3, -1.0])),
    }
    return arrays, options, scores


@given(calls())
@settings(max_examples=250)
def test_property_any_options(call):
    arrays, masks, scores = call
    out, weights, lse = hw.scaled_dot_product_attention(
        *arrays, **masks, **scores, return_weights=True, return_lse=True
    )
    want = attention_reference(*arrays, **masks, **scores, return_weights=True, return_lse=True)
    for got, expected in zip((out, weights, lse), want, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-13)
    assert_same_bits(hw.scaled_dot_product_attention(*arrays, **masks, **scores), out)
    allowed = hw.allowed_mask(*weights.shape[-2:], **masks)
    np.testing.assert_array_equal(
        np.broadcast_to(allowed, weights.shape),
        np.broadcast_to(allowed_mask_reference(*weights.shape[-2:], **masks), weights.shape),
    )


@given(calls())
@settings(max_examples=60)
def test_property_scores(call):
    arrays, masks, scores = call
    plain = hw.scaled_dot_product_attention(*arrays, **masks, **scores)
    for kind in ("raw", "capped", "masked"):
        out, got = hw.scaled_dot_product_attention(*arrays, **masks, **scores, return_weights=kind)
        want = attention_reference(*arrays, **masks, **scores, return_weights=kind)[1]
        np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-12)
        assert_same_bits(out, plain)


@given(calls())
@settings(max_examples=60)
def test_property_one_by_one(call):
    """Each sequence of a batch alone, with its own part of every option, gives the same bits."""
    arrays, masks, scores = call
    out = hw.scaled_dot_product_attention(*arrays, **masks, **scores)
    batch = out.shape[:-3]
    if len(batch) != 1:
        return
    for b in range(batch[0]):
        own = dict(masks)
        for name, depth in (("attn_mask", 3), ("key_mask", 1), ("key_lengths", 0), ("causal_offset", 0)):
            value = own[name]
            if isinstance(value, np.ndarray) and value.ndim > depth:
                own[name] = value[b % len(value)]
        assert_same_bits(hw.scaled_dot_product_attention(*(x[b] for x in arrays), **own, **scores), out[b])
