"""Gradients of attention pooling: of every input and parameter, by central differences in float64."""

import numpy as np
import pytest
from differences import norm_relative, slopes
from layers import randomize
from pooling_cases import NORMALIZE, SCORES, WIDTH, arrays, score

import headwise as hw
from headwise.testing import assert_same_bits

BAR = 1e-8


def masks():
    rng = np.random.default_rng(4)
    bias = rng.standard_normal((2, 1, 7))  # repeated over the batch and the queries
    return {"attn_mask": bias, "key_lengths": [7, 5], "is_causal": True, "causal_offset": 2, "softcap": 2.0}


def agree(got, want, bar, name):
    """Compare a gradient with differences; where these are exactly 0, as under a step, it is 0 too."""
    if np.any(want):
        assert norm_relative(got, want) <= bar, name
    else:
        np.testing.assert_array_equal(got, 0, err_msg=str(name))


def check(q, k, v, bar=BAR, mask_grad=False, **options):
    """Compare all gradients with differences; return the parameters' gradients, named."""
    out, pullback = hw.vjp.attention(q, k, v, mask_grad=mask_grad, **options)
    assert_same_bits(out, hw.attention(q, k, v, **options))
    d_out = np.random.default_rng(9).standard_normal(out.shape)
    answer, again = pullback(d_out), pullback(d_out)
    (answer, grads), (again, _) = (x if len(x) == 2 else (x, {}) for x in (answer, again))
    for a, b in zip(answer, again, strict=True):
        assert_same_bits(a, b)
    given = {"query": q, "key": k, "value": v}
    if mask_grad:
        given["attn_mask"] = options.pop("attn_mask")

    def loss(**some):
        return float(np.sum(d_out * hw.attention(**{**given, **some}, **options)))

    for (name, x), got in zip(given.items(), answer, strict=True):
        assert got.shape == x.shape
        want = slopes(lambda x, name=name: loss(**{name: x}), x)
        agree(got, want, bar, name)
    for of in ("score", "local"):
        layer = options.get(of)
        if not hasattr(layer, "state_dict"):
            continue
        state = layer.state_dict()
        assert [n for n in grads if n.startswith(of)] == [f"{of}.{n}" for n in state]
        for name, parameter in state.items():

            def of_parameter(p, layer=layer, state=state, name=name):
                layer.load_state_dict({**state, name: p})
                return loss()

            want = slopes(of_parameter, parameter)
            layer.load_state_dict(state)
            agree(grads[f"{of}.{name}"], want, bar, (of, name))
    return grads


@pytest.mark.parametrize("normalize", NORMALIZE)
@pytest.mark.parametrize("name", SCORES)
def test_differences(name, normalize):
    q, k, v = arrays()
    grads = check(q, k, v, score=score(name)[0], normalize=NORMALIZE[normalize])
    assert bool(grads) == (name in ("bilinear", "additive"))


@pytest.mark.parametrize("normalize", NORMALIZE)
@pytest.mark.parametrize("name", SCORES)
def test_differences_with_masks_and_fewer_key_heads(name, normalize):
    q, k, v = arrays(H=4)
    check(
        q,
        k,
        v,
        score=score(name)[0],
        normalize=NORMALIZE[normalize],
        mask_grad=True,
        **{**masks(), "attn_mask": np.tile(masks()["attn_mask"], (2, 1, 1))},
    )


def test_differences_with_broadcast_batches_and_one_head():
    q, _, _ = arrays(B=(3, 1))
    _, k, v = arrays(B=(1, 2))
    check(q, k, v, score="l2", normalize="sparsemax")
    q, k, v = (x[0] for x in arrays(B=(), H=1, Hk=1))
    check(q, k, v, score="cosine", scale=3.0)


@pytest.mark.parametrize("normalize", ["softmax", "sparsemax", "sigmoid", "top_2", "hard"])
def test_differences_with_a_predicted_window(normalize):
    q, k, v = arrays(S=11)
    window = hw.PredictiveWindow(WIDTH, 6, width=3.3, dtype="float64")
    randomize(window, np.random.default_rng(5))
    options = {"local": window, "key_lengths": [11, 8], "normalize": NORMALIZE[normalize]}
    grads = check(q, k, v, score=score("additive")[0], bar=1e-7, **options)
    assert {"local.proj.weight", "local.v.weight", "score.v.weight"} < set(grads)


def test_softmax_of_products_has_the_gradients_of_scaled_dot_product_attention():
    q, k, v = arrays("float32")
    out, pullback = hw.vjp.attention(q, k, v, score="dot", key_lengths=[7, 2])
    want, pull = hw.vjp.scaled_dot_product_attention(q, k, v, scale=1.0, key_lengths=[7, 2])
    assert_same_bits(out, want)
    for a, b in zip(pullback(out), pull(out), strict=True):
        assert_same_bits(a, b)


class Scaled:
    """A score with a parameter: c q . k."""

    def __init__(self, c):
        self.c = c

    def __call__(self, query, key):
        return self.c * (query @ np.swapaxes(key, -1, -2))

    def vjp(self, query, key):
        plain = query @ np.swapaxes(key, -1, -2)

        def pullback(d):
            d_query, d_key = self.c * d @ key, self.c * np.swapaxes(d, -1, -2) @ query
            return (d_query, d_key), {"c": np.sum(d * plain)}

        return self.c * plain, pullback


def test_a_callable_with_its_own_vjp():
    q, k, v = arrays()
    (d_c,) = check(q, k, v, score=Scaled(0.7), normalize="sparsemax").values()

    def loss(c):
        out = hw.attention(q, k, v, score=Scaled(c), normalize="sparsemax")
        return float(np.sum(np.random.default_rng(9).standard_normal(out.shape) * out))

    assert abs(d_c - slopes(loss, 0.7)) <= BAR * abs(d_c)
    _, pullback = hw.vjp.attention(q, k, v, score=Scaled(0.7))
    _, named = pullback(np.ones((2, 2, 4, 3)))
    assert list(named) == ["score.c"]

    def without_vjp(query, key):
        return Scaled(1.0)(query, key)

    with pytest.raises(TypeError, match=r"score: gradients of a callable need its own score\.vjp"):
        hw.vjp.attention(q, k, v, score=without_vjp)


def test_gradcheck_takes_it():
    q, k, v = (x[0] for x in arrays(B=(), H=1, Hk=1))
    for options in ({"score": "l2"}, {"score": score("additive")[0]}):
        assert hw.gradcheck(hw.vjp.attention, [q, k, v], normalize="sparsemax", **options) < 1e-8


@pytest.mark.parametrize("name", ["bilinear", "additive"])
def test_the_layers_own_vjp(name):
    rng = np.random.default_rng(6)
    layer = score(name)[0]
    q, k = rng.standard_normal((3, 1, 4, WIDTH)), rng.standard_normal((2, 6, WIDTH))
    scores, pullback = layer.vjp(q, k)
    assert_same_bits(scores, layer(q, k))
    d = rng.standard_normal(scores.shape)
    (d_query, d_key), grads = pullback(d)
    assert norm_relative(d_query, slopes(lambda q: float(np.sum(d * layer(q, k))), q)) <= BAR
    assert norm_relative(d_key, slopes(lambda k: float(np.sum(d * layer(q, k))), k)) <= BAR
    assert list(grads) == list(layer.state_dict())


def test_the_windows_own_vjp():
    rng = np.random.default_rng(6)
    window = randomize(hw.PredictiveWindow(WIDTH, 6, width=1, dtype="float64"), rng)
    q = rng.standard_normal((3, 4, WIDTH))
    places, pullback = window.vjp(q, [5, 6, 7])
    assert_same_bits(places, window(q, [5, 6, 7]))
    d = rng.standard_normal(places.shape)
    d_query, grads = pullback(d)
    assert norm_relative(d_query, slopes(lambda q: float(np.sum(d * window(q, [5, 6, 7]))), q)) <= BAR
    assert list(grads) == list(window.state_dict())


def test_half_precision_gradients():
    q, k, v = arrays("float16")
    out, pullback = hw.vjp.attention(q, k, v, score="l2")
    assert all(
        d.dtype == np.float16 and d.shape == x.shape for d, x in zip(pullback(out), (q, k, v), strict=True)
    )
