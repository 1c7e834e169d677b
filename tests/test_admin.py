"""headwise.init.admin: its profile and the function that it leaves, against a float64 twin that knows omega.

    x_i = norm(omega_i x_(i-1) + f_i(x_(i-1)))

The twin is composed of the naive sublayers of reference_layers.py. A norm of c x with eps c^2 is that of x
with eps: with eps scaled so, the twin with omega and the encoder with smaller maps are one function.
"""

import hashlib

import numpy as np
import pytest
from layers import pad, randomize
from reference import alibi_slopes_reference, as_f64, sinusoidal_positions_reference
from reference_layers import feed_forward_reference, mha_reference, norm_reference, part, real_rows

import headwise as hw

D, H = 12, 3
FORMS = {
    "plain": {},
    "gated": {"ffn": "glu", "activation": "silu", "norm": "rms", "bias": False},
    "grouped": {"num_heads": 4, "num_kv_heads": 2, "head_dim": 5, "activation": "gelu", "final_norm": True},
    "sinusoidal": {"positions": "sinusoidal", "layer_norm_eps": 1e-3},
    "rotary": {"positions": "rotary", "head_dim": 6},
    "alibi": {"positions": "alibi"},
}
MASKS = {"plain": {}, "rotary": {"is_causal": True}, "alibi": {"window": (3, 1)}}


def made(form, layers=3, dtype="float64", **options):
    """Return an encoder of a form, and the keywords of its sublayers' twins."""
    keywords = {"num_heads": H, "norm": "layer", "layer_norm_eps": 1e-5, "activation": "relu", **FORMS[form]}
    heads = keywords.pop("num_heads")
    return hw.Encoder(layers, D, heads, 20, dtype=dtype, **keywords, **options), keywords | {
        "num_heads": heads
    }


def twin(state, x, omega, keywords, lengths, **masks):
    """Return the output (B, L, D) of a post-norm encoder with omega, and the numbers of x_0, f_1, f_2..."""
    real = real_rows(x.shape[:-1], None, lengths)
    x = np.where(real[..., None], as_f64(x), 0.0)
    positions, heads = keywords.get("positions"), keywords["num_heads"]
    if positions == "sinusoidal":
        x = x + sinusoidal_positions_reference(*x.shape[-2:])
    attention = {
        "num_heads": heads,
        "num_kv_heads": keywords.get("num_kv_heads"),
        "rotary": positions == "rotary",
    }
    attention["slopes"] = alibi_slopes_reference(heads) if positions == "alibi" else None
    numbers = [x[real]]
    for number, factors in enumerate(omega):
        layer = part(state, f"layers.{number}.")

        def attend(y, layer=layer):
            return mha_reference(part(layer, "self_attn."), y, key_lengths=lengths, **attention, **masks)

        def feed(y, layer=layer):
            return feed_forward_reference(layer, y, keywords["activation"])

        for name, factor, sublayer in zip(("norm1.", "norm2."), factors, (attend, feed), strict=True):
            added = sublayer(x)
            numbers.append(added[real])
            eps = keywords["layer_norm_eps"] * factor**2
            x = norm_reference(part(layer, name), factor * x + added, keywords["norm"], eps)
    if keywords.get("final_norm"):
        x = norm_reference(part(state, "norm."), x, keywords["norm"], keywords["layer_norm_eps"])
    return np.where(real[..., None], x, 0.0), numbers


def batch(rng, dtype="float64"):
    """Return sequences of several lengths, those padded with NaN, and their lengths."""
    lengths = [7, 1, 4, 5]
    sequences = [(0.5 + 1.5 * rng.standard_normal((n, D))).astype(dtype) for n in lengths]
    return sequences, pad(sequences, fill=np.nan)[0], lengths


@pytest.mark.parametrize("form", FORMS)
def test_omega_is_that_of_the_profile(form, rng):
    encoder, keywords = made(form)
    state = randomize(encoder, rng).state_dict()
    _, wide, lengths = batch(rng)
    masks = MASKS.get(form, {})
    omega, _ = hw.init.admin(encoder, wide, lengths=lengths, **masks)
    _, numbers = twin(state, wide, np.ones((3, 2)), keywords, lengths, **masks)
    variances = [x.var() for x in numbers]
    expected = [1.0] + [np.sqrt(sum(variances[:n])) for n in range(2, 7)]
    assert omega.shape == (3, 2)
    assert omega.dtype == np.float64
    np.testing.assert_allclose(omega.ravel(), expected, rtol=1e-11)


@pytest.mark.parametrize("form", FORMS)
def test_smaller_maps_are_the_function_with_omega(form, rng):
    encoder, keywords = made(form)
    state = randomize(encoder, rng).state_dict()
    _, wide, lengths = batch(rng)
    masks = MASKS.get(form, {})
    before = encoder(wide, lengths=lengths, **masks)
    omega, _ = hw.init.admin(encoder, wide, lengths=lengths, **masks)
    expected, _ = twin(state, wide, omega, keywords, lengths, **masks)
    got = encoder(wide, lengths=lengths, **masks)
    np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-11)
    assert np.abs(got - before).max() > 0.1


def test_only_the_last_maps_change(rng):
    encoder, _ = made("plain")
    before = randomize(encoder, rng).state_dict()
    omega, _ = hw.init.admin(encoder, batch(rng)[0])
    for name, array in encoder.state_dict().items():
        number, part_name = name.split(".", 1)[1].split(".", 1)
        factors = {"self_attn.out_proj": omega[int(number), 0], "linear2": omega[int(number), 1]}
        factor = factors.get(part_name.rpartition(".")[0], 1.0)
        np.testing.assert_array_equal(array, before[name] / factor, err_msg=name)


def test_with_its_factors_adam_goes_the_way_of_a_fixed_omega(rng):
    """Maps that are omega times larger, moved by a naive Adam at the whole rate, stay so: W = omega W'."""
    encoder, _ = made("grouped", rng=2)  # gelu: no gradient is exactly 0
    sequences, _, _ = batch(rng)
    omega, factors = hw.init.admin(encoder, sequences)
    last = [name for name in encoder.state_dict() if "out_proj" in name or "linear2" in name]
    assert sorted(factors) == sorted(last)
    assert factors["layers.1.linear2.bias"] == 1 / omega[1, 1]
    large = {name: encoder.state_dict()[name] / factors[name] for name in last}
    optimizer = hw.optim.Adam(encoder, lr=0.01, eps=0.0, lr_factors=factors)
    moments = {name: [0.0, 0.0] for name in last}
    for step in range(1, 4):
        out, pullback = encoder.vjp(sequences[0])
        _, grads = pullback(np.sin(out))
        optimizer.step(grads)
        for name in last:
            g = grads[name] * factors[name]  # of W: W' = W / omega
            m, v = moments[name] = [0.9 * moments[name][0] + 0.1 * g, 0.999 * moments[name][1] + 0.001 * g**2]
            large[name] = large[name] - 0.01 * (m / (1 - 0.9**step)) / np.sqrt(v / (1 - 0.999**step))
    for name in last:
        expected = large[name] * factors[name]
        np.testing.assert_allclose(encoder.state_dict()[name], expected, rtol=1e-9, atol=1e-12)


def test_float32_is_near(rng):
    encoder, _ = made("plain", dtype="float32")
    wide = randomize(encoder, rng).to("float64")
    sequences, _, _ = batch(rng, "float32")
    omega, _ = hw.init.admin(encoder, sequences)
    np.testing.assert_allclose(omega, hw.init.admin(wide, sequences)[0], rtol=1e-5)
    assert encoder.state_dict()["layers.2.linear2.weight"].dtype == np.float32


def test_forms_of_a_sample_are_one_to_the_bit(rng, threads):
    sequences, wide, lengths = batch(rng, "float32")
    order = [2, 0, 3, 1]
    samples = [
        (sequences, {}),
        ([sequences[i] for i in order], {}),
        (wide, {"lengths": lengths}),
        (wide[order], {"lengths": np.array(lengths)[order]}),
        ([*sequences, np.zeros((0, D), np.float32)], {}),
    ]
    found = []
    for sample, keywords in samples:
        for count in (1, 2):
            threads(count)
            encoder, _ = made("plain", dtype="float32", rng=5)
            omega, _ = hw.init.admin(encoder, sample, **keywords)
            found.append((omega.tobytes(), encoder.state_dict()["layers.2.linear2.weight"].tobytes()))
    assert len(set(found)) == 1
    one, _ = made("plain", rng=5)
    other, _ = made("plain", rng=5)
    np.testing.assert_array_equal(hw.init.admin(one, wide[0])[0], hw.init.admin(other, wide[:1])[0])


def test_the_bits_are_the_same_everywhere():
    encoder = hw.Encoder(4, 16, 2, 32, rng=1)
    omega, _ = hw.init.admin(encoder, hw.init.normal((3, 9, 16), rng=2))
    assert hashlib.sha256(omega.astype("<f8").tobytes()).hexdigest()[:16] == "da53dfd5dcee32e0"


def test_pruned_heads(rng):
    encoder, _ = made("plain")
    pruned = randomize(encoder, rng).prune_heads({1: [0, 2]})
    sequences, _, _ = batch(rng)
    # A head whose output is multiplied by 0 is a head that is not there.
    state = encoder.state_dict()
    for head in (0, 2):
        state["layers.1.self_attn.out_proj.weight"][:, 4 * head : 4 * head + 4] = 0.0
    encoder.load_state_dict(state)
    np.testing.assert_allclose(
        hw.init.admin(pruned, sequences)[0], hw.init.admin(encoder, sequences)[0], rtol=1e-12
    )


@pytest.mark.parametrize(
    ("encoder", "sample", "keywords", "error", "text"),
    [
        (hw.Encoder(1, 4, 2, norm_first=True, rng=0), np.eye(4), {}, ValueError, "encoder.*norm_first=False"),
        (hw.EncoderLayer(4, 2, rng=0), np.eye(4), {}, TypeError, "encoder.*EncoderLayer"),
        (None, np.ones(4), {}, ValueError, r"sample.*\(B, L, D\).*\(4,\)"),
        (None, [], {}, ValueError, "sample.*one token"),
        (None, np.ones((2, 0, 4)), {}, ValueError, "sample.*one token"),
        (None, np.eye(5), {}, hw.ShapeError, "sample.*D = 4.*5"),
        (None, np.full((3, 4), np.nan), {}, ValueError, "sample.*finite"),
        (None, np.full((3, 4), 2.0), {}, ValueError, "sample.*vary"),
        (None, [np.eye(4)], {"lengths": [2]}, ValueError, "lengths.*None"),
        (None, np.ones((2, 3, 4)), {"lengths": [2, 4]}, ValueError, r"lengths.*\(2,\) integers from 0 to 3"),
        (None, np.ones((2, 3, 4)), {"lengths": [2.0, 1.0]}, ValueError, "lengths.*integers"),
    ],
)
def test_errors_name_the_argument_and_change_nothing(encoder, sample, keywords, error, text):
    encoder = encoder or hw.Encoder(1, 4, 2, 8, rng=0)
    before = encoder.state_dict()
    with pytest.raises(error, match=text):
        hw.init.admin(encoder, sample, **keywords)
    for name, array in encoder.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
