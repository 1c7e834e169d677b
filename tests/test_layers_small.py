"""Linear, Embedding, LayerNorm, RMSNorm and FeedForward: forward, state, forms of input, bits, gradients."""

import copy
import hashlib
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from compare import assert_same_bits, normals, rms_relative
from differences import check_vjp
from layers import randomize

import headwise as hw

D = 20
ACTIVATIONS = ["relu", "gelu", "gelu_tanh", "silu"]
MAKERS = {
    "linear": lambda **k: hw.Linear(D, 33, rng=1, **k),
    "linear without bias": lambda **k: hw.Linear(D, 70, bias=False, rng=1, **k),
    "layer norm": lambda **k: hw.LayerNorm(D, **k),
    "layer norm without bias": lambda **k: hw.LayerNorm(D, eps=1e-3, bias=False, **k),
    "rms norm": lambda **k: hw.RMSNorm(D, **k),
    "rms norm with eps": lambda **k: hw.RMSNorm(D, eps=1e-3, **k),
    "feed forward": lambda **k: hw.FeedForward(D, 50, activation="gelu", rng=1, **k),
    "gated": lambda **k: hw.FeedForward(D, 50, activation="silu", ffn="glu", dropout=0.3, rng=1, **k),
    "gated without bias": lambda **k: hw.FeedForward(
        D, 50, activation="gelu_tanh", ffn="glu", bias=False, rng=1, **k
    ),
}


@pytest.fixture(params=MAKERS)
def maker(request):
    """Return each layer's constructor in turn."""
    return MAKERS[request.param]


def make(maker, seed=5, **options):
    """Return a layer whose parameters hide nothing."""
    return randomize(maker(**options), np.random.default_rng(seed))


# --- forward ------------------------------------------------------------------------------------------------


def erf(x):
    """Return the error function by Gauss-Legendre quadrature of 2/sqrt(pi) exp(-t^2) over (0, x)."""
    nodes, weights = np.polynomial.legendre.leggauss(60)
    t = 0.5 * x[..., None] * (nodes + 1.0)
    return (0.5 * x[..., None] * np.exp(-t * t) * weights).sum(-1) * 2.0 / np.sqrt(np.pi)


TWINS = {
    "relu": lambda x: np.maximum(x, 0.0),
    "gelu": lambda x: 0.5 * x * (1.0 + erf(x / np.sqrt(2.0))),
    "gelu_tanh": lambda x: 0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3))),
    "silu": lambda x: x / (1.0 + np.exp(-x)),
}


def dense(state, name, x):
    """Return the linear map of a state, in float64."""
    bias = state.get(f"{name}bias", np.zeros(1)).astype(np.float64)
    return x @ state[f"{name}weight"].astype(np.float64).T + bias


@pytest.mark.parametrize(("dtype", "bar"), [("float32", 4e-7), ("float64", 1e-15)])
def test_rows_agree_with_the_formulas(rng, dtype, bar):
    x = normals(rng, 3, 7, D, dtype=dtype)
    wide = x.astype(np.float64)
    for name in ("linear", "linear without bias"):
        layer = make(MAKERS[name], dtype=dtype)
        out = layer(x)
        assert out.dtype == dtype
        assert rms_relative(out, dense(layer.state_dict(), "", wide)) <= bar
    for name, eps in (("layer norm", 1e-5), ("layer norm without bias", 1e-3)):
        layer = make(MAKERS[name], dtype=dtype)
        state = {k: v.astype(np.float64) for k, v in layer.state_dict().items()}
        centred = wide - wide.mean(-1, keepdims=True)
        want = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * state["weight"]
        assert rms_relative(layer(x), want + state.get("bias", 0.0)) <= bar
    for name, eps in (("rms norm", np.finfo(dtype).eps), ("rms norm with eps", 1e-3)):
        layer = make(MAKERS[name], dtype=dtype)
        want = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + eps)
        assert rms_relative(layer(x), want * layer.state_dict()["weight"].astype(np.float64)) <= bar


@pytest.mark.parametrize(("dtype", "bar"), [("float32", 6e-7), ("float64", 1e-15)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("ffn", ["mlp", "glu"])
def test_feed_forward_agrees_with_its_formula(rng, activation, ffn, dtype, bar):
    layer = randomize(hw.FeedForward(D, 50, activation=activation, ffn=ffn, dtype=dtype), rng)
    x, state = normals(rng, 3, 7, D, dtype=dtype), layer.state_dict()
    act, wide = TWINS[activation], x.astype(np.float64)
    hidden = dense(state, "linear1.", wide)
    hidden = act(hidden) if ffn == "mlp" else act(dense(state, "linear_gate.", wide)) * hidden
    assert rms_relative(layer(x), dense(state, "linear2.", hidden)) <= bar


def test_feed_forward_is_that_of_an_encoder_layer(rng):
    """A pre-norm layer whose attention gives zeros is its feed-forward part and the residual."""
    part = randomize(hw.FeedForward(D, 50, activation="gelu"), rng)
    layer = hw.EncoderLayer(D, 4, 50, activation="gelu", norm_first=True)
    state = layer.state_dict() | part.state_dict()
    state |= {
        name: np.zeros_like(state[name]) for name in ("self_attn.out_proj.weight", "self_attn.out_proj.bias")
    }
    layer.load_state_dict(state)
    x = normals(rng, 9, D)
    assert_same_bits(layer(x), part(hw.layer_norm(x)) + x)


def test_embedding_looks_rows_up(rng):
    table = randomize(hw.Embedding(11, D), rng)
    weight = table.state_dict()["weight"]
    for shape in ((), (4,), (2, 3), (0,), (2, 0), (2, 1, 3, 2)):
        ids = rng.integers(0, 11, shape)
        assert_same_bits(table(ids), weight[ids])
    for dtype in ("uint8", "int16", "uint64", ">i4"):
        assert_same_bits(table(np.array([[3, 10]], dtype=dtype)), weight[[[3, 10]]])
    assert_same_bits(table([[1, 2], [3, 4]]), weight[[[1, 2], [3, 4]]])
    assert_same_bits(table(7), weight[7])
    assert table.to("float64")([1]).dtype == np.float64
    rows = table([np.array([1, 2, 3]), np.array([], dtype=int), np.array([4])])
    assert [row.shape for row in rows] == [(3, D), (0, D), (1, D)]
    assert_same_bits(rows[0], weight[1:4])
    assert table([]) == []


def test_padding_begins_with_zeros():
    table = hw.Embedding(11, D, padding_idx=3, rng=0)
    assert table.padding_idx == 3
    assert not table([3]).any()
    other = hw.Embedding(11, D, rng=0)
    assert other.padding_idx is None
    rows = np.arange(11) != 3
    assert_same_bits(table.state_dict()["weight"][rows], other.state_dict()["weight"][rows])


# --- what goes in and comes out -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_any_rank_and_lists(rng, maker, dtype):
    layer = make(maker, dtype=dtype)
    x = normals(rng, 2, 3, 5, D, dtype=dtype)
    out = layer(x)
    assert_same_bits(layer(x[1, 2, 4]), out[1, 2, 4])
    assert_same_bits(layer(x[1]), out[1])
    assert_same_bits(layer(x.reshape(-1, D)), out.reshape(-1, out.shape[-1]))
    listed = layer([x[0, 0], x[1, 2, :3], x[0, 1, :0]])
    assert isinstance(listed, list)
    assert_same_bits(listed[0], out[0, 0])
    assert_same_bits(listed[1], out[1, 2, :3])
    assert listed[2].shape == (0, out.shape[-1])
    assert layer([]) == []
    assert layer(x[:0]).shape == (0, 3, 5, out.shape[-1])
    for view in (np.asfortranarray(x), x[..., ::-1].copy()[..., ::-1], x.astype(x.dtype.newbyteorder())):
        assert_same_bits(layer(view), out)
    assert_same_bits(layer(x.astype("float16")), layer(x.astype("float16").astype(dtype)))
    assert layer(np.ones((2, D), dtype=int)).dtype == dtype


def test_what_does_not_fit_is_named(maker):
    layer = maker()
    for wrong in (np.ones((2, D + 1)), np.ones(()), [np.ones((2, D)), np.ones((2, D - 1))]):
        with pytest.raises(hw.ShapeError, match=rf"x: expected .*D = {D}, got shape"):
            layer(wrong)
    with pytest.raises(TypeError, match="key_padding_mask"):
        layer(np.ones((2, D)), key_padding_mask=np.ones(2, dtype=bool))
    with pytest.raises(hw.DTypeError, match="x: expected"):
        layer(np.ones((2, D), dtype=complex))


def test_gradients_that_do_not_fit_are_named(maker):
    layer = maker()
    out, pullback = layer.vjp(np.ones((2, 3, D)))
    for wrong in (np.ones((3, *out.shape[1:])), np.ones(out.shape[-1] + 1), [np.ones(out.shape[1:])] * 2):
        with pytest.raises(hw.ShapeError, match="d_out: expected"):
            pullback(wrong)


BAD_IDS = [
    ([[0, 1], [2, 11]], ValueError, r"ids\[1, 1\]: expected an id from 0 to 10, got 11"),
    ([0, -1], ValueError, r"ids\[1\]: expected an id from 0 to 10, got -1"),
    (11, ValueError, "ids: expected an id from 0 to 10, got 11"),
    ([np.array([1]), np.array([1, 99])], ValueError, r"ids\[1\]\[1\]: expected an id from 0 to 10, got 99"),
    ([0.5], TypeError, "ids: expected integers"),
    ([True], TypeError, "ids: expected integers"),
    (["a"], TypeError, "ids: expected integers"),
]


@pytest.mark.parametrize(("ids", "error", "text"), BAD_IDS)
def test_ids_without_a_row_are_named(ids, error, text):
    table = hw.Embedding(11, D)
    with pytest.raises(error, match=text):
        table(ids)
    with pytest.raises(error, match=text):
        table.vjp(ids)


@pytest.mark.parametrize(
    ("build", "error", "name"),
    [
        (lambda: hw.Linear(0, 3), ValueError, "in_features"),
        (lambda: hw.Linear(3, -1), ValueError, "out_features"),
        (lambda: hw.Linear(3.0, 3), TypeError, "in_features"),
        (lambda: hw.Linear(3, 3, dtype="int32"), TypeError, "dtype"),
        (lambda: hw.Embedding(0, 3), ValueError, "num_embeddings"),
        (lambda: hw.Embedding(3, 3, padding_idx=3), ValueError, "padding_idx"),
        (lambda: hw.Embedding(3, 3, padding_idx=-1), ValueError, "padding_idx"),
        (lambda: hw.LayerNorm(0), ValueError, "d_model"),
        (lambda: hw.LayerNorm(3, eps=-1.0), ValueError, "eps"),
        (lambda: hw.RMSNorm(3, eps=float("nan")), ValueError, "eps"),
        (lambda: hw.FeedForward(3, 0), ValueError, "d_ff"),
        (lambda: hw.FeedForward(3, activation="swish"), ValueError, "activation"),
        (lambda: hw.FeedForward(3, ffn="moe"), ValueError, "ffn"),
        (lambda: hw.FeedForward(3, dropout=1.5), ValueError, "dropout"),
        (lambda: hw.Linear(1 << 40, 1 << 40), ValueError, "in_features"),
        (lambda: hw.Linear(1 << 29, 1 << 20), MemoryError, "cannot allocate"),
        (lambda: hw.LayerNorm(1 << 50), MemoryError, "cannot allocate"),
        (lambda: hw.Embedding(1 << 30, 1 << 20), MemoryError, "cannot allocate"),
    ],
)
def test_arguments_that_do_not_fit_are_named(build, error, name):
    with pytest.raises(error, match=name):
        build()


# --- state --------------------------------------------------------------------------------------------------

NAMES = {
    "linear": {"weight": (33, D), "bias": (33,)},
    "linear without bias": {"weight": (70, D)},
    "layer norm": {"weight": (D,), "bias": (D,)},
    "rms norm": {"weight": (D,)},
    "feed forward": {
        "linear1.weight": (50, D), "linear1.bias": (50,), "linear2.weight": (D, 50), "linear2.bias": (D,),
    },
    "gated without bias": {
        "linear1.weight": (50, D), "linear_gate.weight": (50, D), "linear2.weight": (D, 50),
    },
}  # fmt: skip


@pytest.mark.once
@pytest.mark.parametrize("name", NAMES)
def test_names_and_shapes_are_torchs(name):
    layer = MAKERS[name]()
    state = layer.state_dict()
    assert {k: v.shape for k, v in state.items()} == NAMES[name]
    assert layer.num_parameters == sum(array.size for array in state.values())
    assert hw.Embedding(11, 7).state_dict()["weight"].shape == (11, 7)
    assert hw.Embedding(11, 7).num_parameters == 77


@pytest.mark.once
def test_first_parameters_are_drawn_as_torch_draws_them():
    bound = 1 / np.sqrt(500)
    for name, array in hw.Linear(500, 400, rng=0).state_dict().items():
        assert np.abs(array).max() <= bound, name
        assert abs(array.std() - bound / np.sqrt(3)) < 0.05 * bound
    table = hw.Embedding(1000, 100, rng=0).state_dict()["weight"]
    assert abs(table.mean()) < 0.02
    assert abs(table.std() - 1) < 0.02
    assert (hw.LayerNorm(5).state_dict()["weight"] == 1).all()
    assert not hw.LayerNorm(5).state_dict()["bias"].any()
    layer, part = hw.EncoderLayer(D, 4, 50, rng=3), hw.FeedForward(D, 50, rng=3)
    for name, array in part.state_dict().items():
        assert array.shape == layer.state_dict()[name].shape


STATEFUL = MAKERS | {
    "embedding": lambda **k: hw.Embedding(11, 7, rng=1, **k),
    "padded embedding": lambda **k: hw.Embedding(11, 7, padding_idx=2, rng=1, **k),
}


@pytest.mark.once
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", STATEFUL)
def test_state_copies_and_dtypes(name, dtype):
    layer = make(STATEFUL[name], dtype=dtype)
    state = layer.state_dict()
    assert layer.dtype == dtype
    for other in (copy.deepcopy(layer), *(pickle.loads(pickle.dumps(layer, p)) for p in (2, 5))):
        assert type(other) is type(layer)
        assert repr(other) == repr(layer)
        assert repr(eval(repr(other), dict(vars(hw)))) == repr(layer)
        for k, array in other.state_dict().items():
            assert_same_bits(array, state[k])
    other = STATEFUL[name](dtype=dtype)
    other.load_state_dict({f"module.{k}": v for k, v in state.items()})
    for k, array in other.state_dict().items():
        assert_same_bits(array, state[k])
    wide = layer.to("float64")
    assert wide.dtype == "float64"
    assert all(a.dtype == np.float64 for a in wide.state_dict().values())
    for k, array in wide.to(dtype).state_dict().items():
        assert_same_bits(array, state[k])
    with pytest.raises(ValueError, match=r"missing (linear1\.)?weight"):
        layer.load_state_dict({})
    with pytest.raises(ValueError, match="unexpected what"):
        layer.load_state_dict(state | {"what": np.ones(1)})
    with pytest.raises(ValueError, match="expected shape"):
        layer.load_state_dict({k: np.ones((3, 3, 3)) for k in state})
    for k, array in layer.state_dict().items():
        assert_same_bits(array, state[k])


def test_an_rms_norm_adds_the_eps_of_its_dtype():
    x = np.full((1, 4), 1e-4)
    norm = hw.RMSNorm(4)
    assert norm.eps is None
    np.testing.assert_allclose(norm(x), 1e-4 / np.sqrt(1e-8 + 2.0**-23), rtol=1e-6)
    np.testing.assert_allclose(norm.to("float64")(x), 1e-4 / np.sqrt(1e-8 + 2.0**-52), rtol=1e-12)
    assert hw.RMSNorm(4, eps=1e-3).to("float64").eps == 1e-3


# --- gradients ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(D,), (1, D), (2, 3, D), (17, D)])
def test_gradients_equal_differences(rng, maker, shape):
    layer = make(maker, dtype="float64")
    out = layer(np.ones(shape))
    check_vjp(layer, normals(rng, *shape, dtype="float64"), normals(rng, *out.shape, dtype="float64"))


@pytest.mark.parametrize("ffn", ["mlp", "glu"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_of_every_activation(rng, activation, ffn):
    layer = randomize(hw.FeedForward(5, 9, activation=activation, ffn=ffn, dtype="float64"), rng)
    state = layer.state_dict()
    x, d_out = normals(rng, 100, 5, dtype="float64"), normals(rng, 7, 5, dtype="float64")
    before = dense(state, "linear1." if ffn == "mlp" else "linear_gate.", x)
    x = x[np.abs(before).min(-1) > 1e-2][:7]  # away from the kink of relu
    check_vjp(layer, x, d_out)


@pytest.mark.parametrize("ffn", ["mlp", "glu"])
def test_a_pullback_drops_what_its_forward_pass_dropped(rng, ffn):
    layer = randomize(hw.FeedForward(5, 9, activation="gelu", ffn=ffn, dropout=0.4, dtype="float64"), rng)
    x, d_out = normals(rng, 7, 5, dtype="float64"), normals(rng, 7, 5, dtype="float64")
    check_vjp(layer, x, d_out, training=True, rng=3)
    assert not np.array_equal(layer(x, training=True, rng=3), layer(x))
    generator = np.random.default_rng(0)
    _, pullback = layer.vjp(x, training=True, rng=generator)
    d_x, _ = pullback(d_out)
    _, again = layer.vjp(x, training=True, rng=np.random.default_rng(0))
    assert_same_bits(again(d_out)[0], d_x)
    assert generator.integers(2**60) != np.random.default_rng(0).integers(2**60)


def test_gradients_of_an_embedding(rng):
    table = randomize(hw.Embedding(6, 4, padding_idx=2, dtype="float64"), rng)
    ids = np.array([[0, 2, 5, 0], [0, 2, 2, 3]])
    d_out = normals(rng, 2, 4, 4, dtype="float64")
    out, pullback = table.vjp(ids)
    assert_same_bits(out, table(ids))
    d_ids, grads = pullback(d_out)
    assert d_ids is None
    want = np.zeros((6, 4))
    for place in np.ndindex(ids.shape):
        if ids[place] != 2:
            want[ids[place]] += d_out[place]
    assert_same_bits(grads["weight"], want)
    listed, pullback = table.vjp([ids[0], ids[1, :0], ids[1]])
    assert [a.shape for a in listed] == [(4, 4), (0, 4), (4, 4)]
    assert_same_bits(pullback([d_out[0], d_out[0, :0], d_out[1]])[1]["weight"], want)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_many_places_of_few_ids(rng, dtype):
    table = hw.Embedding(3, 5, dtype=dtype)
    ids, d_out = rng.integers(0, 3, 3000), normals(rng, 3000, 5, dtype=dtype)
    grads = table.vjp(ids)[1](d_out)[1]["weight"]
    want = [d_out[ids == i].astype(np.float64).sum(0) for i in range(3)]
    assert rms_relative(grads, want) < (3e-6 if dtype == "float32" else 1e-14)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_pullback_may_be_called_twice(rng, maker, dtype):
    layer = make(maker, dtype=dtype)
    x = normals(rng, 3, 40, D, dtype=dtype)
    out, pullback = layer.vjp(x)
    d_out = normals(rng, *out.shape, dtype=dtype)
    (d_x, grads), (d_x2, grads2) = pullback(d_out), pullback(d_out)
    assert d_x.dtype == dtype
    assert_same_bits(d_x, d_x2)
    for name in grads:
        assert_same_bits(grads[name], grads2[name])
    layer.load_state_dict({k: np.zeros_like(v) for k, v in layer.state_dict().items()})
    assert_same_bits(pullback(d_out)[0], d_x)  # it holds the layer as it was


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_lists_have_the_gradients_of_their_rows(rng, maker, dtype):
    layer = make(maker, dtype=dtype)
    xs = [normals(rng, n, D, dtype=dtype) for n in (3, 0, 300, 1)]
    outs, pullback = layer.vjp(xs)
    d_outs = [normals(rng, *out.shape, dtype=dtype) for out in outs]
    d_xs, grads = pullback(d_outs)
    out, whole = layer.vjp(np.concatenate(xs))
    d_x, want = whole(np.concatenate(d_outs))
    assert_same_bits(np.concatenate(outs), out)
    assert_same_bits(np.concatenate(d_xs), d_x)
    assert [len(a) for a in d_xs] == [3, 0, 300, 1]
    for name in want:
        assert_same_bits(grads[name], want[name])


def test_no_rows_have_gradients_of_zero(maker):
    layer = maker()
    out, pullback = layer.vjp(np.ones((0, D)))
    d_x, grads = pullback(out)
    assert d_x.shape == (0, D)
    assert list(grads) == list(layer.state_dict())
    assert all(not grad.any() for grad in grads.values())


# --- the law of bits ----------------------------------------------------------------------------------------


def everything():
    """Return outputs and gradients of every layer in both dtypes, of some tasks' size."""
    rng = np.random.default_rng(11)
    arrays = []
    for dtype in ("float32", "float64"):
        x = normals(rng, 700, D, dtype=dtype)
        for maker in MAKERS.values():
            layer = make(maker, dtype=dtype)
            keywords = {"training": True, "rng": 2} if isinstance(layer, hw.FeedForward) else {}
            out, pullback = layer.vjp(x, **keywords)
            d_x, grads = pullback(np.sin(out))
            arrays += [layer(x), out, d_x, *grads.values()]
        table = make(STATEFUL["padded embedding"], dtype=dtype)
        out, pullback = table.vjp(rng.integers(0, 11, 5000))
        arrays += [out, pullback(np.cos(out))[1]["weight"]]
    return arrays


def test_threads_never_change_bits(threads):
    threads(1)
    alone = everything()
    for n in (2, 3):
        threads(n)
        for one, other in zip(alone, everything(), strict=True):
            assert_same_bits(one, other)


def digest():
    """Return a digest of `everything`."""
    return hashlib.sha256(b"".join(array.tobytes() for array in everything())).hexdigest()


@pytest.mark.once
def test_instruction_sets_give_equal_bits():
    command = [sys.executable, "-c", "import test_layers_small; print(test_layers_small.digest())"]
    for isa in hw.show_config(mode="dicts")["available_isas"]:
        environment = os.environ | {"HEADWISE_ISA": isa}
        done = subprocess.run(
            command, env=environment, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == digest(), isa
