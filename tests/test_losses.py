"""headwise.losses against torch 2.15 (golden/make_torch_training_golden.py) and central differences."""

import numpy as np
import pytest
from compare import assert_same_bits, rms_relative
from test_torch_golden import golden

import headwise as hw

ABOUT, CASES = golden("torch_training.npz")
DTYPES = ["float32", "float64"]


def entropy(arrays, options, dtype):
    """Call cross_entropy as torch was called for a golden case."""
    options = dict(options)
    targets = arrays["targets"]
    if options.pop("probabilities", False):
        targets = targets.astype(dtype)
    if options.pop("weight", False):
        options["class_weight"] = arrays["weight"]
    return hw.losses.cross_entropy(arrays["logits"].astype(dtype), targets, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ABOUT["entropies"])
def test_cross_entropy_is_torchs(case, dtype):
    arrays = CASES[f"entropy_{case}"]
    loss, gradient = entropy(arrays, ABOUT["entropies"][case], dtype)
    assert type(loss) is float
    assert gradient.dtype == dtype
    bar = {"float32": 3e-7, "float64": 1e-14}[dtype]
    assert abs(loss - arrays["loss64"]) <= bar * arrays["loss64"]
    assert rms_relative(gradient, arrays["gradient64"]) <= bar


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ["pairs", "more", "both"])
def test_contrastive_is_torchs(case, dtype):
    arrays = CASES[f"contrastive_{case}"]
    q, d = arrays["queries"].astype(dtype), arrays["documents"].astype(dtype)
    loss, (dq, dd) = hw.losses.contrastive(q, d, symmetric=case == "both")
    # The scores are some 20: their rounding is 20 times that of the softmax.
    bar = {"float32": 5e-6, "float64": 1e-13}[dtype]
    assert abs(loss - arrays["loss64"]) <= bar * arrays["loss64"]
    assert rms_relative(dq, arrays["d_queries64"]) <= bar
    assert rms_relative(dd, arrays["d_documents64"]) <= bar
    assert dq.dtype == dd.dtype == dtype


def differences(f, x, h=1e-5):
    """Return the central differences of a function of an array."""
    out = np.zeros_like(x)
    for at in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[at] = h
        out[at] = (f(x + step) - f(x - step)) / (2 * h)
    return out


def test_gradients_are_central_differences(rng):
    x = rng.standard_normal((2, 3, 5))
    classes = rng.integers(0, 5, (2, 3))
    probabilities = rng.dirichlet(np.ones(5), (2, 3))
    mask = np.array([[True, False, True], [True, True, False]])
    weight = rng.random(5)
    for targets, options in [
        (classes, {}),
        (classes, {"label_smoothing": 0.2, "mask": mask, "class_weight": weight}),
        (classes, {"ignore_index": int(classes[0, 0]), "reduction": "sum"}),
        (probabilities, {"mask": mask, "class_weight": weight, "label_smoothing": 0.1}),
    ]:
        gradient = hw.losses.cross_entropy(x, targets, **options).gradient
        want = differences(lambda x, t=targets, o=options: hw.losses.cross_entropy(x, t, **o).value, x)
        assert rms_relative(gradient, want) <= 1e-8
    target = rng.standard_normal(x.shape)
    for options in [{}, {"mask": mask[..., None]}, {"reduction": "sum"}]:
        gradient = hw.losses.mean_squared_error(x, target, **options).gradient
        want = differences(lambda x, o=options: hw.losses.mean_squared_error(x, target, **o).value, x)
        assert rms_relative(gradient, want) <= 1e-8


@pytest.mark.parametrize("dtype", DTYPES)
def test_masked_rows_leave_no_trace(rng, dtype):
    x = rng.standard_normal((3, 300, 7)).astype(dtype)
    targets = rng.integers(0, 7, (3, 300))
    mask = rng.random((3, 300)) < 0.7
    kept = hw.losses.cross_entropy(x, targets, mask=mask, label_smoothing=0.1)
    poisoned, wild = x.copy(), targets.copy()
    poisoned[~mask], wild[~mask] = np.nan, -100
    loss, gradient = hw.losses.cross_entropy(poisoned, wild, mask=mask, label_smoothing=0.1)
    assert loss == kept.value
    assert_same_bits(gradient, kept.gradient)
    assert not gradient[~mask].any()
    # The same by the class, and by 0 and 1.
    for options in ({"ignore_index": -100}, {"mask": mask.astype(int)}):
        other = hw.losses.cross_entropy(poisoned, wild, label_smoothing=0.1, **options)
        assert other.value == loss
        assert_same_bits(other.gradient, gradient)
    y = rng.standard_normal(x.shape).astype(dtype)
    kept = hw.losses.mean_squared_error(x, y, mask=mask[..., None])
    loss, gradient = hw.losses.mean_squared_error(poisoned, y, mask=mask[..., None])
    assert loss == kept.value
    assert_same_bits(gradient, kept.gradient)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_nothing_counts(reduction):
    x, mask = np.full((4, 3), np.nan, np.float32), np.zeros(4, bool)
    targets = np.full(4, 99)
    for loss, gradient in (
        hw.losses.cross_entropy(x, targets, mask=mask, reduction=reduction),
        hw.losses.cross_entropy(x, targets, ignore_index=99, reduction=reduction),
        hw.losses.mean_squared_error(x, x, mask=mask[:, None], reduction=reduction),
    ):
        assert loss == 0.0
        assert_same_bits(gradient, np.zeros((4, 3), np.float32))
    loss, gradient = hw.losses.cross_entropy(np.zeros((0, 3)), [], reduction=reduction)
    assert (loss, gradient.shape) == (0.0, (0, 3))
    loss, gradient = hw.losses.mean_squared_error(np.zeros((0, 3)), np.zeros((0, 3)), reduction=reduction)
    assert (loss, gradient.shape) == (0.0, (0, 3))


def test_losses_are_never_negative(rng):
    x = np.array([[50.0, 0.0, -20.0]], np.float32)
    assert 0.0 <= hw.losses.cross_entropy(x, [0]).value < 1e-7
    x = (30 * rng.standard_normal((1000, 5))).astype(np.float32)
    assert all(hw.losses.cross_entropy(row[None], [int(row.argmax())]).value >= 0.0 for row in x)


def test_infinite_logits():
    loss, gradient = hw.losses.cross_entropy([[0.0, -np.inf]], [0])
    assert (loss, gradient.tolist()) == (0.0, [[0.0, 0.0]])
    loss, gradient = hw.losses.cross_entropy([[0.0, -np.inf]], [[1.0, 0.0]])
    assert (loss, gradient.tolist()) == (0.0, [[0.0, 0.0]])
    loss, gradient = hw.losses.cross_entropy([[0.0, -np.inf]], [1])
    assert (loss, gradient.tolist()) == (np.inf, [[1.0, -1.0]])


def test_threads_do_not_show(rng, threads):
    x = rng.standard_normal((2000, 33)).astype(np.float32)
    y = rng.integers(0, 33, 2000)
    q, d = rng.standard_normal((70, 48)), rng.standard_normal((90, 48))
    results = []
    for n in (1, 2, 5):
        threads(n)
        loss, gradient = hw.losses.cross_entropy(x, y, label_smoothing=0.1)
        squared, d_squared = hw.losses.mean_squared_error(x, x[::-1])
        pairs, (dq, dd) = hw.losses.contrastive(q, d)
        results.append([np.array([loss, squared, pairs]), gradient, d_squared, dq, dd])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert_same_bits(a, b)


def test_half_precision_is_rounded_once(rng):
    x = rng.standard_normal((9, 20)).astype(np.float16)
    y = rng.integers(0, 20, 9)
    loss, gradient = hw.losses.cross_entropy(x, y)
    wide_loss, wide = hw.losses.cross_entropy(x.astype(np.float32), y)
    assert loss == wide_loss
    assert_same_bits(gradient, wide.astype(np.float16))
    # A target of another dtype does not change the gradient's.
    assert hw.losses.mean_squared_error(x, np.zeros(x.shape)).gradient.dtype == np.float16


def test_layout_does_not_matter(rng):
    x = rng.standard_normal((6, 8, 5)).astype(np.float32)
    y = rng.integers(0, 5, (8, 6))
    a = hw.losses.cross_entropy(x.swapaxes(0, 1), y)
    b = hw.losses.cross_entropy(np.ascontiguousarray(x.swapaxes(0, 1)), y)
    assert a.value == b.value
    assert_same_bits(a.gradient, b.gradient)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda x, y: hw.losses.cross_entropy(x, y + 3), ValueError, r"targets.*C - 1 = 4, got 5 in row 2"),
        (lambda x, y: hw.losses.cross_entropy(x, y - 1), ValueError, "targets.*got -1 in row 0"),
        (lambda x, y: hw.losses.cross_entropy(x, y[:2]), hw.ShapeError, r"targets.*\[3\].*\[3, 5\]"),
        (lambda x, y: hw.losses.cross_entropy(x, y.astype(float)), hw.ShapeError, "targets.*float64"),
        (lambda x, y: hw.losses.cross_entropy(x, y > 1), TypeError, "targets.*booleans"),
        (lambda x, y: hw.losses.cross_entropy(x.astype(complex), y), hw.DTypeError, "logits"),
        (lambda x, y: hw.losses.cross_entropy(x, y, label_smoothing=1.5), ValueError, "label_smoothing.*1.5"),
        (
            lambda x, y: hw.losses.cross_entropy(x, y, class_weight=[1, 2]),
            hw.ShapeError,
            r"class_weight.*\(5,\)",
        ),
        (lambda x, y: hw.losses.cross_entropy(x, y, mask=[1.0] * 3), TypeError, "mask.*float64"),
        (lambda x, y: hw.losses.cross_entropy(x, y, mask=[2, 0, 1]), TypeError, "mask.*int64"),
        (lambda x, y: hw.losses.cross_entropy(x, y, mask=[True] * 4), hw.ShapeError, r"mask.*\(3,\).*\(4,\)"),
        (lambda x, y: hw.losses.cross_entropy(x, y, reduction="none"), ValueError, "reduction.*'none'"),
        (lambda x, y: hw.losses.cross_entropy(x, x, ignore_index=0), ValueError, "ignore_index.*float64"),
        (lambda x, y: hw.losses.cross_entropy(1.0, 0), hw.ShapeError, r"logits.*\(\.\.\., C\)"),
        (lambda x, y: hw.losses.cross_entropy(x[:, :0], y), hw.ShapeError, "logits.*C > 0"),
        (lambda x, y: hw.losses.mean_squared_error(x, x[0]), hw.ShapeError, r"target.*\[3, 5\].*\[5\]"),
        (lambda x, y: hw.losses.contrastive(x, x[:2]), hw.ShapeError, r"documents.*at least B = 3.*\[2, 5\]"),
        (lambda x, y: hw.losses.contrastive(x[:2], x, symmetric=True), hw.ShapeError, r"documents.*B = 2"),
        (lambda x, y: hw.losses.contrastive(x[0], x[0]), hw.ShapeError, r"queries.*\(B, D\)"),
        (lambda x, y: hw.losses.contrastive(x, x, temperature=0), ValueError, "temperature.*above 0"),
    ],
)
def test_errors_name_the_argument(call, error, text):
    with pytest.raises(error, match=text):
        call(np.zeros((3, 5)), np.arange(3))
