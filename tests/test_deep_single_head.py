"""Encoder.to_deep_single_head: as many heads, nearly as many numbers, the rest as it was, fresh numbers."""

import pickle

import numpy as np
import pytest

import headwise as hw


def widths(encoder):
    """Return for each layer its heads, as its weights have them, and its hidden numbers."""
    x = np.zeros((2, encoder.d_model))
    heads = [w.shape[0] for w in encoder(x, need_weights=True).weights]
    state = encoder.state_dict()
    return heads, [len(state[f"layers.{n}.linear1.weight"]) for n in range(encoder.num_layers)]


def projections(encoder):
    """Return how many weights (no biases, no norms) the attention and the feed-forward parts have."""
    state = {name: array for name, array in encoder.state_dict().items() if array.ndim == 2}
    attention = sum(array.size for name, array in state.items() if "self_attn" in name)
    return attention, sum(array.size for array in state.values()) - attention


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"head_dim": 5},
        {"ffn": "glu", "norm": "rms", "bias": False},
        {"positions": "rotary", "final_norm": True, "norm_first": True, "dtype": "float64"},
        {"activation": "gelu", "layer_norm_eps": 1e-3, "dropout": 0.25, "positions": "alibi"},
    ],
    ids=["plain", "width", "gated", "rotary", "more"],
)
def test_as_many_heads_and_weights(options):
    encoder = hw.Encoder(2, 24, 3, 48, rng=0, **options)
    deep = encoder.to_deep_single_head(rng=1)
    assert isinstance(deep, hw.Encoder)
    assert widths(deep) == ([1] * 6, [16] * 6)
    assert projections(deep) == projections(encoder)
    made, new = encoder.__reduce__()[1][1], deep.__reduce__()[1][1]
    changed = {name for name in made if made[name] != new[name]}
    assert changed == {"num_layers", "num_heads", "num_kv_heads", "d_ff"}
    assert new["head_dim"] == options.get("head_dim", 8)
    # What is on top: two norms, and the biases of two outputs, for each new layer.
    norm = 24 if options.get("norm") == "rms" else 48
    added = 2 * norm + (48 if options.get("bias", True) else 0)
    assert deep.num_parameters - encoder.num_parameters == 4 * added


def test_the_encoder_of_transformer_base_has_nearly_as_many_parameters():
    # Transformer base: 6 layers of 8 heads become 48 of one, each 64 wide, with 256 hidden numbers.
    encoder = hw.Encoder(6, 512, 8, 2048, rng=0)
    deep = encoder.to_deep_single_head(rng=0)
    assert repr(deep) == 'Encoder(48, 512, 1, 256, head_dim=64, dtype="float32")'
    assert 1.0 < deep.num_parameters / encoder.num_parameters < 1.01


def test_first_parameters_are_those_of_a_fresh_encoder():
    encoder = hw.Encoder(2, 16, 4, 32, rng=0)
    fresh = hw.Encoder(8, 16, 1, 8, head_dim=4, rng=7).state_dict()
    deep = encoder.to_deep_single_head(rng=7).state_dict()
    assert list(deep) == list(fresh)
    for name, array in deep.items():
        np.testing.assert_array_equal(array, fresh[name])
    other = encoder.to_deep_single_head(rng=8).state_dict()
    assert not np.array_equal(other["layers.0.linear1.weight"], deep["layers.0.linear1.weight"])
    generators = [np.random.default_rng(3) for _ in range(2)]
    encoder.to_deep_single_head(rng=generators[0])
    hw.init.normal(1, rng=generators[1])
    assert generators[0].bit_generator.state == generators[1].bit_generator.state
    unseeded = [encoder.to_deep_single_head().state_dict()["layers.0.linear1.weight"] for _ in range(2)]
    assert not np.array_equal(*unseeded)


def test_grouped_heads_get_keys_and_values_of_their_own():
    encoder = hw.Encoder(1, 16, 4, 32, num_kv_heads=2, rng=0)
    deep = encoder.to_deep_single_head(rng=0)
    assert widths(deep) == ([1] * 4, [8] * 4)
    assert projections(deep)[0] == projections(hw.Encoder(1, 16, 4, 32, rng=0))[0]


def test_pruned_heads_do_not_count():
    encoder = hw.Encoder(2, 16, 4, 32, rng=0).prune_heads({1: [0, 3]})
    # 64 hidden numbers over 6 layers: 11 is the nearest.
    assert widths(encoder.to_deep_single_head(rng=0)) == ([1] * 6, [11] * 6)


def test_hidden_numbers_that_cannot_be_shared_out_are_rounded():
    assert widths(hw.Encoder(1, 12, 3, 8, rng=0).to_deep_single_head(rng=0))[1] == [3] * 3
    assert widths(hw.Encoder(1, 12, 4, 1, rng=0).to_deep_single_head(rng=0))[1] == [1] * 4
    again = hw.Encoder(3, 12, 1, 8, rng=0).to_deep_single_head(rng=0)
    assert widths(again) == ([1] * 3, [8] * 3)


def test_it_is_an_encoder_like_the_others(rng):
    deep = hw.Encoder(2, 8, 2, 16, rng=0).to_deep_single_head(rng=1)
    x = rng.standard_normal((2, 5, 8)).astype(np.float32)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(deep))(x), deep(x))
    out, pullback = deep.vjp(x)
    d_x, grads = pullback(np.ones_like(out))
    assert d_x.shape == x.shape
    assert list(grads) == list(deep.state_dict())


def test_errors():
    encoder = hw.Encoder(1, 8, 2, 16, rng=0)
    with pytest.raises(TypeError, match="rng"):
        encoder.to_deep_single_head(rng="x")
    with pytest.raises(TypeError, match="positional"):
        encoder.to_deep_single_head(1)
