"""`Bilinear`, `Additive`, `PredictiveWindow`: state, copies, dtypes; and what attention refuses, by name."""

import copy
import pickle

import numpy as np
import pytest
from pooling_cases import arrays

import headwise as hw
from headwise.testing import assert_same_bits

LAYERS = {
    "bilinear": (lambda **o: hw.Bilinear(5, 4, **o), {"weight": (4, 5)}),
    "additive": (
        lambda **o: hw.Additive(5, 4, 3, **o),
        {"query_proj.weight": (3, 5), "key_proj.weight": (3, 4), "key_proj.bias": (3,), "v.weight": (1, 3)},
    ),
    "window": (
        lambda **o: hw.PredictiveWindow(5, 3, width=2, **o),
        {"proj.weight": (3, 5), "v.weight": (1, 3)},
    ),
}


def call(layer):
    """Return what the layer gives for ones."""
    second = 6 if isinstance(layer, hw.PredictiveWindow) else np.ones((6, 4))
    return layer(np.ones((2, 5)), second)


@pytest.mark.parametrize("name", LAYERS)
def test_state(name):
    make, shapes = LAYERS[name]
    layer, other = make(rng=0), make(rng=1)
    state = layer.state_dict()
    assert {n: x.shape for n, x in state.items()} == shapes
    assert layer.num_parameters == sum(x.size for x in state.values())
    assert (call(layer) != call(other)).any()
    other.load_state_dict(state)
    assert_same_bits(call(other), call(layer))
    with pytest.raises(ValueError, match="unexpected"):
        other.load_state_dict({**state, "more": np.zeros(1)})
    with pytest.raises(ValueError, match="missing"):
        other.load_state_dict({})
    assert_same_bits(call(make(rng=0)), call(layer))


@pytest.mark.parametrize("name", LAYERS)
def test_copies(name):
    layer = LAYERS[name][0](rng=0)
    for again in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        assert repr(again) == repr(layer)
        assert_same_bits(call(again), call(layer))
        again.load_state_dict({n: x + 1 for n, x in layer.state_dict().items()})
        assert (call(again) != call(layer)).any()


@pytest.mark.parametrize("name", LAYERS)
def test_dtypes(name):
    layer = LAYERS[name][0](rng=0)
    assert layer.dtype == "float32"
    assert call(layer).dtype == np.float32
    wide = layer.to("float64")
    assert type(wide) is type(layer)
    assert call(wide).dtype == np.float64
    np.testing.assert_allclose(call(wide), call(layer), rtol=1e-6, atol=1e-6)


def test_reprs():
    assert repr(hw.Bilinear(5, 4)) == 'Bilinear(5, 4, dtype="float32")'
    assert repr(hw.Additive(5, 4, 3, bias=False)) == 'Additive(5, 4, 3, bias=False, dtype="float32")'
    assert repr(hw.PredictiveWindow(5, 3, 1.5)) == 'PredictiveWindow(5, 3, width=1.5, dtype="float32")'
    assert repr(hw.TopK(3)) == "TopK(k=3)"


def test_training_with_an_optimizer():
    """A score that is learned: each query finds the key with its own number, under another basis."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((8, 8)))[0]
    score = hw.Bilinear(8, 8, rng=0)
    optimizer = hw.optim.Adam(score, lr=0.05)
    losses = []
    for _ in range(60):
        key = rng.standard_normal((16, 8)).astype(np.float32)
        value = np.eye(16, dtype=np.float32)
        out, pullback = hw.vjp.attention((key @ basis).astype(np.float32), key, value, score=score)
        loss, d_out = hw.losses.mean_squared_error(out, value)
        losses.append(loss)
        _, grads = pullback(d_out)
        optimizer.step({name.removeprefix("score."): grad for name, grad in grads.items()})
    assert np.mean(losses[-5:]) < 0.3 * np.mean(losses[:5])


REFUSED = [
    ({"score": "cos"}, ValueError, r'score: expected "scaled_dot", .* got \'cos\''),
    ({"score": 3}, TypeError, r"score: expected .* got int"),
    ({"score": hw.Bilinear}, TypeError, r"score: expected .* got the class Bilinear"),
    (
        {"score": hw.Bilinear(4, 5)},
        hw.ShapeError,
        r"query: expected \(B, H, L, E\) with E = 4, as the",
    ),
    (
        {"score": hw.Additive(5, 4, 2)},
        hw.ShapeError,
        r"key: expected \(B, Hk, S, E\) with E = 4, as the",
    ),
    (
        {"score": lambda q, k: q},
        hw.ShapeError,
        r"score: expected .* \(B, H, L, S\) = \(2, 2, 4, 7\)",
    ),
    ({"normalize": "soft"}, ValueError, r'normalize: expected "softmax", .* or a TopK\(k\), got \'soft\''),
    ({"normalize": hw.TopK}, TypeError, r"normalize: expected .*; TopK wants its k"),
    ({"local": "m"}, ValueError, r'local: expected .*; "m" wants its width: local=\("m", D\)'),
    (
        {"local": "p"},
        ValueError,
        r'local: expected .*; "p" has parameters and is given as a',
    ),
    ({"local": ("m", -1)}, ValueError, r"local: the width D: expected an int from 0 on, got -1"),
    ({"local": ("m", 1.5)}, TypeError, r"local: the width D: expected an int, got float"),
    ({"local": 3}, TypeError, r"local: expected None, .* got 3"),
    (
        {"local": hw.PredictiveWindow(4, 2, 1)},
        hw.ShapeError,
        r"query: expected .* E = 4, the query_dim",
    ),
    ({"softcap": 0}, ValueError, r"softcap: expected a positive number, got 0"),
    ({"softcap": "x"}, TypeError, r"softcap: expected a number, got str"),
    ({"scale": "x"}, TypeError, r"scale: expected a number, got str"),
    ({"return_weights": "raw"}, TypeError, r"return_weights: expected a bool, got 'raw'"),
    ({"rng": 1.5}, TypeError, r"rng: expected None, an int or a numpy.random.Generator, got float"),
    (
        {"attn_mask": np.ones((3, 7), bool)},
        hw.ShapeError,
        r"attn_mask: expected .* got \(3, 7\)",
    ),
    ({"attn_mask": np.ones((4, 7), int)}, TypeError, r"attn_mask: expected booleans .* or floating numbers"),
    ({"key_mask": np.ones(6, bool)}, hw.ShapeError, r"key_mask: expected .* \(B, S\) = \(2, 7\), got \(6,\)"),
    ({"key_lengths": [1, 2, 3]}, hw.ShapeError, r"key_lengths: expected .* \(B,\) = \(2,\), got \(3,\)"),
    ({"key_lengths": [1, 8]}, ValueError, r"key_lengths: expected numbers from 0 to S = 7, got 8"),
    ({"window": (-1, 0)}, ValueError, r"window: expected numbers from 0 on"),
    ({"window": (1,), "local": ("m", 2)}, ValueError, r"window: expected \(left, right\)"),
]


@pytest.mark.parametrize(("options", "error", "text"), REFUSED, ids=range(len(REFUSED)))
def test_refusals_name_the_argument(options, error, text):
    q, k, v = arrays()
    with pytest.raises(error, match=text):
        hw.attention(q, k, v, **{"score": "l2", **options})
    # Gradients of a callable without a vjp are another error, and weights are no argument of the gradients.
    if "return_weights" not in options and not callable(options.get("score")):
        with pytest.raises(error, match=text):
            hw.vjp.attention(q, k, v, **{"score": "l2", **options})


def test_shapes_that_do_not_fit():
    q, k, v = arrays()
    for arguments, text in [
        ((q[0, 0, 0], k, v), r"query: expected \(B, H, L, E\)"),
        ((q, k[0, 0], v), r"key: expected .* two axes in query, key and value alike"),
        ((q, k[..., :4], v), r"key: expected \(B, Hk, S, E\) with E = 5, that of query"),
        ((q, k, v[:, :, :3]), r"value: expected \(B, Hk, S, Ev\) with S = 7"),
        ((q, k, v[:, :1]), r"value: expected .* Hk = 2 heads"),
        ((q, k[:, [0, 0, 0]], v[:, [0, 0, 0]]), r"key: expected .* divides H = 2"),
        ((q, k[[0, 0, 0]], v), r"key: expected batch axes B that broadcast"),
        ((q[..., :0], k[..., :0], v), r"query: expected \(B, H, L, E\) with E > 0"),
    ]:
        with pytest.raises(hw.ShapeError, match=text):
            hw.attention(*arguments, score="l2")
    with pytest.raises(hw.DTypeError, match="query: expected booleans, integers"):
        hw.attention(q.astype(complex), k, v, score="l2")
    with pytest.raises(TypeError, match="mask_grad: True, but there is no floating attn_mask"):
        hw.vjp.attention(q, k, v, score="l2", mask_grad=True)
    out, pullback = hw.vjp.attention(q, k, v, score="l2")
    with pytest.raises(hw.ShapeError, match=r"d_out: expected \(2, 2, 4, 3\), the shape of the result, got"):
        pullback(out[0])


def test_torchs_masks_of_the_opposite_polarity():
    q, k, v = arrays()
    for function in (hw.attention, hw.vjp.attention):
        with pytest.raises(TypeError, match="pass key_mask=~key_padding_mask, True where a key may be"):
            function(q, k, v, key_padding_mask=np.zeros((2, 7), bool))
        with pytest.raises(TypeError, match="unexpected keyword argument 'mask'"):
            function(q, k, v, mask=None)


def test_k_and_widths():
    for bad, error in [(0, ValueError), (True, TypeError), (1.0, TypeError)]:
        with pytest.raises(error, match="k: expected an int"):
            hw.TopK(bad)
    with pytest.raises(ValueError, match="width: expected a positive number, got 0"):
        hw.PredictiveWindow(4, 3, width=0)
    with pytest.raises(hw.ShapeError, match=r"query: expected \(\.\.\., L, query_dim\) with query_dim = 5"):
        hw.Bilinear(5, 4)(np.ones((2, 4)), np.ones((2, 4)))
    with pytest.raises(hw.ShapeError, match=r"key: expected axes in front that broadcast"):
        hw.Bilinear(5, 4)(np.ones((2, 2, 5)), np.ones((3, 2, 4)))
