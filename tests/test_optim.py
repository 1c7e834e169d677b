"""headwise.optim against torch 2.15 (golden/make_torch_training_golden.py), and how it treats parameters."""

import copy
import pickle

import numpy as np
import pytest
from compare import assert_same_bits, rms_relative
from test_torch_golden import golden

import headwise as hw

ABOUT, CASES = golden("torch_training.npz")
DTYPES = ["float32", "float64"]


def make(case, parameters):
    kind, options = ABOUT["optimizers"][case]
    # torch has a default for SGD's learning rate; headwise asks for it.
    return getattr(hw.optim, kind)(parameters, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ABOUT["optimizers"])
def test_trajectories_are_torchs(case, dtype):
    parameters = {name: value.astype(dtype) for name, value in CASES["start"].items()}
    grads, frozen = CASES["grads"], CASES["frozen"]["b"]
    optimizer = make(case, parameters)
    for step in range(len(grads["w"])):
        optimizer.step({n: g[step].astype(dtype) for n, g in grads.items() if n != "b" or step not in frozen})
        for name, parameter in parameters.items():
            want = CASES[case][f"{name}64"][step]
            assert rms_relative(parameter, want) <= {"float32": 1e-6, "float64": 1e-15 * 10}[dtype]
    assert optimizer.steps == len(grads["w"])


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_schedules_are_torchs(name):
    schedule = getattr(hw.optim, f"warmup_{name}")(0.3, warmup=5, total=20, end=0.1)
    rates = CASES[f"schedule_{name}"]["rates"]
    np.testing.assert_allclose([schedule(step) for step in range(20)], rates, rtol=1e-12)
    assert schedule(20) == schedule(1000) == 0.1
    assert pickle.loads(pickle.dumps(schedule)) == schedule
    assert repr(schedule) == f"warmup_{name}(0.3, warmup=5, total=20, end=0.1)"


@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_clipping_is_torchs(max_norm):
    arrays = CASES["clip"]
    grads = {"w": arrays["w"], "b": arrays["b"]}
    clipped, norm = hw.optim.clip_by_norm(grads, max_norm)
    assert abs(norm - arrays[f"norm_{max_norm}"]) <= 1e-15 * norm
    for name in grads:
        np.testing.assert_allclose(clipped[name], arrays[f"{name}_{max_norm}"], rtol=1e-14)
    if norm < max_norm:
        assert clipped["w"] is grads["w"]
    nested, same = hw.optim.clip_by_norm({"a": {"w": grads["w"]}, "b": grads["b"]}, max_norm)
    assert same == norm
    assert_same_bits(nested["a"]["w"], clipped["w"])


def test_clipping_at_the_ends(threads):
    assert hw.optim.clip_by_norm({}, 1.0) == ({}, 0.0)
    assert hw.optim.clip_by_norm({"w": np.zeros(3)}, 0.0)[1] == 0.0
    grads, norm = hw.optim.clip_by_norm({"w": np.array([1.0, np.nan]), "b": np.ones(2)}, 1.0)
    assert np.isnan(norm)
    assert np.isnan(grads["b"]).all()
    grads, norm = hw.optim.clip_by_norm({"w": np.array([1.0, np.inf], np.float32)}, 1.0)
    assert norm == np.inf
    np.testing.assert_array_equal(grads["w"], np.array([0.0, np.nan], np.float32))
    big = np.random.default_rng(1).standard_normal(100_003).astype(np.float32)
    norms = set()
    for n in (1, 2, 3):
        threads(n)
        norms.add(hw.optim.clip_by_norm({"w": big}, 1.0)[1])
    assert len(norms) == 1
    # Squares of large float32 numbers do not overflow.
    assert hw.optim.clip_by_norm({"w": np.full(4, 1e38, np.float32)}, 1.0)[1] == pytest.approx(2e38)


class Toy:
    """A layer as optimisers see it: copies go out, and come in."""

    def __init__(self, **arrays):
        self.arrays = arrays
        self.loads = 0

    def state_dict(self):
        return {name: array.copy() for name, array in self.arrays.items()}

    def load_state_dict(self, state):
        assert state.keys() == self.arrays.keys()
        self.arrays = {name: np.array(array) for name, array in state.items()}
        self.loads += 1


def test_a_layer_stays_the_truth(rng):
    start, g = rng.standard_normal((3, 4)), rng.standard_normal((3, 4))
    layer, plain = Toy(weight=start.copy(), bias=np.zeros(2)), {"weight": start.copy()}
    for_layer, for_plain = hw.optim.AdamW(layer, 0.1), hw.optim.AdamW(plain, 0.1)
    for_layer.step({"weight": g})
    for_plain.step({"weight": g})
    assert_same_bits(layer.arrays["weight"], plain["weight"])
    assert not layer.arrays["bias"].any()
    # What is loaded in between counts.
    layer.load_state_dict({"weight": start, "bias": np.ones(2)})
    plain["weight"] = start.copy()
    for_layer.step({"weight": g})
    for_plain.step({"weight": g})
    assert_same_bits(layer.arrays["weight"], plain["weight"])
    assert layer.arrays["bias"].tolist() == [1.0, 1.0]


def test_dicts_of_layers_and_arrays():
    first, second, scale = Toy(weight=np.zeros(2)), Toy(weight=np.zeros(2)), np.zeros(())
    optimizer = hw.optim.SGD({"first": first, "second": second, "scale": scale}, 1.0)
    optimizer.step({"first": {"weight": [1.0, 2.0]}, "scale": 3.0})
    assert first.arrays["weight"].tolist() == [-1.0, -2.0]
    assert (first.loads, second.loads, float(scale)) == (1, 0, -3.0)
    optimizer.step({"second.weight": [4.0, 5.0]})
    assert second.arrays["weight"].tolist() == [-4.0, -5.0]
    assert (first.loads, second.loads) == (1, 1)


def test_an_encoder_layer_learns_its_own_name_and_shape():
    layer = hw.EncoderLayer(8, 2, 16, rng=0)
    before = layer.state_dict()
    optimizer = hw.optim.SGD({"encoder": layer}, 0.5)
    optimizer.step({"encoder": {"linear1.weight": np.ones((16, 8))}})
    after = layer.state_dict()
    assert_same_bits(after["linear1.weight"], before["linear1.weight"] - np.float32(0.5))
    assert all(np.array_equal(after[name], before[name]) for name in before if name != "linear1.weight")


def test_arrays_of_any_layout(rng):
    start, g = rng.standard_normal((6, 4)), rng.standard_normal((6, 4))
    want = {"w": start.copy()}
    hw.optim.Adam(want).step({"w": g})
    wide = np.zeros((12, 4))
    for array in (wide[::2], np.zeros((4, 6)).T, np.zeros((6, 4), ">f8"), np.zeros((6, 4))[::-1]):
        array[...] = start
        parameters = {"w": array}
        hw.optim.Adam(parameters).step({"w": np.asfortranarray(g)})
        assert_same_bits(np.ascontiguousarray(array, "=f8"), want["w"])
        assert parameters["w"] is array
    assert not wide[1::2].any()
    # A gradient that is the parameter itself.
    w = np.ones(3)
    hw.optim.SGD({"w": w}, 0.5).step({"w": w})
    assert w.tolist() == [0.5] * 3


def test_nan_spreads_as_in_torch():
    w = np.ones(3)
    hw.optim.AdamW({"w": w}).step({"w": [0.0, np.nan, 1.0]})
    assert np.isnan(w).tolist() == [False, True, False]


@pytest.mark.parametrize("kind", ["SGD", "SGD_nesterov", "Adam_decay", "AdamW"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_do_not_show(threads, kind, dtype, rng):
    start, g = rng.standard_normal((2, 50_000)).astype(dtype)
    results = []
    for n in (1, 2, 5):
        threads(n)
        parameters = {"w": start.copy()}
        optimizer = make(kind, parameters)
        for _ in range(3):
            optimizer.step({"w": g})
        results.append(parameters["w"])
    assert_same_bits(results[0], results[1])
    assert_same_bits(results[0], results[2])


@pytest.mark.parametrize("case", ABOUT["optimizers"])
def test_state_goes_on(case, rng):
    start = {"w": rng.standard_normal((3, 4)).astype(np.float32), "b": rng.standard_normal(3)}
    grads = [{name: rng.standard_normal(value.shape) for name, value in start.items()} for _ in range(6)]
    whole = copy.deepcopy(start)
    optimizer = make(case, whole)
    for g in grads:
        optimizer.step(g)
    parts = copy.deepcopy(start)
    first = make(case, parts)
    for g in grads[:3]:
        first.step(g)
    state, middle = first.state_dict(), copy.deepcopy(parts)
    # The state is a copy: the first may go on, in another direction.
    first.step(grads[0])
    second = type(first)(middle, lr=9.0)
    second.load_state_dict(state)
    for g in grads[3:]:
        second.step(g)
    for name in start:
        assert_same_bits(middle[name], whole[name])
    assert repr(second) == repr(optimizer)


def test_schedules_and_rates():
    w = np.zeros(1)
    optimizer = hw.optim.SGD({"w": w}, lambda step: 10.0**-step)
    rates = []
    for _ in range(3):
        rates.append(optimizer.lr)
        optimizer.step({"w": [1.0]})
    assert rates == [1.0, 0.1, 0.01]
    assert "lr" not in optimizer.state_dict()["hyper_parameters"]
    optimizer.lr = 0.5
    assert optimizer.lr == 0.5
    assert optimizer.state_dict()["hyper_parameters"]["lr"] == 0.5
    # A schedule is kept over a load, a number is replaced.
    scheduled = hw.optim.SGD({"w": w}, hw.optim.constant(2.0))
    scheduled.load_state_dict(optimizer.state_dict())
    assert (scheduled.lr, scheduled.steps) == (2.0, 3)
    falling = hw.optim.SGD({"w": w}, lambda step: -1.0)
    with pytest.raises(ValueError, match=r"lr.*-1\.0"):
        falling.step({"w": [1.0]})


def test_wrong_gradients_change_nothing():
    start = {"w": np.ones((2, 3)), "b": np.ones(2, np.float32)}
    for grads, error, text in [
        ({"w": np.ones((2, 3)), "c": np.ones(2)}, ValueError, r"grads.*\(w, b\), got 'c'"),
        ({"w": np.ones((2, 3)), "b": np.ones(3)}, hw.ShapeError, r"grads.*\(2,\) of 'b'.*got \(3,\)"),
        ({"w": np.ones((2, 3)), "b": np.ones(2, complex)}, hw.DTypeError, "'b' of dtype complex128"),
        ([np.ones((2, 3))], TypeError, "grads.*dict.*list"),
    ]:
        parameters = copy.deepcopy(start)
        optimizer = hw.optim.AdamW(parameters)
        with pytest.raises(error, match=text):
            optimizer.step(grads)
        assert all(np.array_equal(parameters[name], start[name]) for name in start)
        assert optimizer.steps == 0
        assert optimizer.state_dict()["state"] == {}


def read_only():
    array = np.ones(2)
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda w: hw.optim.SGD([w], 0.1), TypeError, "parameters.*list"),
        (lambda w: hw.optim.SGD({"w": [1.0]}, 0.1), TypeError, "parameters.*list at 'w'"),
        (lambda w: hw.optim.SGD({1: w}, 0.1), TypeError, "parameters.*at 1"),
        (
            lambda w: hw.optim.SGD({"a": w, "b": w}, 0.1),
            ValueError,
            "parameters: 'b' is there under another key",
        ),
        (lambda w: hw.optim.SGD({"a.w": w, "a": Toy(w=w)}, 0.1), ValueError, "name 'a.w'"),
        (lambda w: hw.optim.SGD({"w": np.ones(2, int)}, 0.1), hw.DTypeError, "'w' of dtype int64"),
        (lambda w: hw.optim.SGD({"w": read_only()}, 0.1).step({"w": w}), ValueError, "'w' is read-only"),
        (lambda w: hw.optim.SGD({"w": w}, -0.1), ValueError, r"lr.*-0\.1"),
        (lambda w: hw.optim.SGD({"w": w}, "fast"), TypeError, "lr.*'fast'"),
        (lambda w: hw.optim.SGD({"w": w}, 0.1, nesterov=True), ValueError, "nesterov.*momentum"),
        (lambda w: hw.optim.Adam({"w": w}, betas=(0.9, 1.0)), ValueError, r"betas.*below 1\.0.*1\.0"),
        (lambda w: hw.optim.Adam({"w": w}, betas=0.9), ValueError, r"betas.*two numbers.*0\.9"),
        (lambda w: hw.optim.Adam({"w": w}, eps=float("nan")), ValueError, "eps.*nan"),
        (lambda w: hw.optim.warmup_cosine(1.0, warmup=5, total=5), ValueError, "warmup.*5 and 5"),
        (lambda w: hw.optim.constant(-1.0), ValueError, "lr"),
        (lambda w: hw.optim.clip_by_norm({"w": w}, -1.0), ValueError, "max_norm"),
        (lambda w: hw.optim.clip_by_norm([w], 1.0), TypeError, "grads.*list"),
    ],
)
def test_errors_name_the_argument(call, error, text):
    with pytest.raises(error, match=text):
        call(np.ones(2))


def test_states_that_do_not_fit_change_nothing():
    optimizer = hw.optim.AdamW({"w": np.ones(2)})
    optimizer.step({"w": np.ones(2)})
    good = optimizer.state_dict()
    before = repr(good)
    for change, text in [
        ({"algorithm": "Adam"}, "expected that of AdamW, got that of Adam"),
        ({"hyper_parameters": {"lr": 1.0}}, "hyper-parameters"),
        ({"hyper_parameters": {**good["hyper_parameters"], "betas": (2.0, 0.5)}}, "betas"),
        ({"state": {"v": good["state"]["w"]}}, "'v' is no parameter"),
        ({"state": {"w": {"step": 1}}}, "'w'"),
        ({"state": {"w": {**good["state"]["w"], "exp_avg": np.ones(3)}}}, r"exp_avg of 'w', got \(3,\)"),
    ]:
        with pytest.raises(ValueError, match=text):
            optimizer.load_state_dict({**good, **change})
        assert repr(optimizer.state_dict()) == before
    with pytest.raises(ValueError, match="state_dict"):
        optimizer.load_state_dict({})


def test_parameters_that_change_their_shape():
    parameters = {"w": np.ones(2)}
    optimizer = hw.optim.Adam(parameters)
    optimizer.step({"w": np.ones(2)})
    parameters["w"] = np.ones(3)
    with pytest.raises(ValueError, match=r"'w' was \(2,\).*\(3,\)"):
        optimizer.step({"w": np.ones(3)})


@pytest.mark.parametrize("kind", [hw.optim.SGD, hw.optim.Adam, hw.optim.AdamW])
def test_factors_are_rates_of_their_own(kind):
    """Two parameters at two rates move as two optimisers would move them; a state goes on."""
    start, grads = {"a": np.ones(3), "b": np.ones(3)}, {"a": [1.0, 2.0, 3.0], "b": [3.0, -2.0, 1.0]}
    both = {name: array.copy() for name, array in start.items()}
    alone = {name: array.copy() for name, array in start.items()}
    schedule = hw.optim.warmup_linear(0.1, warmup=1, total=4)
    one = kind(both, lr=schedule, lr_factors={"b": 0.25}, weight_decay=0.1)
    two = [kind({"a": alone["a"]}, lr=schedule, weight_decay=0.1)]
    two.append(kind({"b": alone["b"]}, lr=lambda step: 0.25 * schedule(step), weight_decay=0.1))
    for _ in range(2):
        one.step(grads)
        for name, optimizer in zip("ab", two, strict=True):
            optimizer.step({name: grads[name]})
        assert both["a"].tobytes() == alone["a"].tobytes()
        assert both["b"].tobytes() == alone["b"].tobytes()
    again = kind(both, lr=schedule, lr_factors={"b": 0.25}, weight_decay=0.1)
    again.load_state_dict(one.state_dict())
    again.step(grads)
    two[1].step({"b": grads["b"]})
    assert both["b"].tobytes() == alone["b"].tobytes()


def test_factors_that_cannot_be():
    with pytest.raises(ValueError, match=r"lr_factors.*'c'"):
        hw.optim.Adam({"a": np.ones(1)}, lr_factors={"c": 1.0})
    with pytest.raises(ValueError, match=r"lr_factors.*-1"):
        hw.optim.Adam({"a": np.ones(1)}, lr_factors={"a": -1.0})
    with pytest.raises(TypeError, match=r"lr_factors.*'x'"):
        hw.optim.SGD({"a": np.ones(1)}, lr=0.1, lr_factors={"a": "x"})
