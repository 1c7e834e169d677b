"""Exceptions: every class, faults of headwise itself, memory that is not there."""

import copy
import pickle
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import headwise as hw

pytestmark = pytest.mark.once

CLASSES = {
    "HeadwiseError": Exception,
    "ShapeError": ValueError,
    "DTypeError": TypeError,
    "ModelFormatError": ValueError,
    "TokenizerError": ValueError,
    "UnsupportedModelError": Exception,
    "InternalError": RuntimeError,
}


@pytest.mark.parametrize("name", CLASSES)
def test_classes(name):
    error = getattr(hw, name)
    assert issubclass(error, hw.HeadwiseError)
    assert issubclass(error, CLASSES[name])
    assert error.__module__ == "headwise"
    assert error.__doc__
    assert name in hw.__all__


@pytest.mark.parametrize("name", CLASSES)
def test_exceptions_survive_pickle_and_copy(name):
    error = getattr(hw, name)("query: expected this, got that")
    for other in (pickle.loads(pickle.dumps(error)), copy.deepcopy(error)):
        assert type(other) is type(error)
        assert other.args == error.args


def test_raised_exceptions_survive_pickle():
    with pytest.raises(ValueError, match="softcap") as caught:
        hw.scaled_dot_product_attention(np.ones((2, 4)), np.ones((2, 4)), np.ones((2, 4)), softcap=0.0)
    other = pickle.loads(pickle.dumps(caught.value))
    assert type(other) is type(caught.value)
    assert str(other) == str(caught.value)


@pytest.mark.parametrize("here", [False, True])
def test_a_panic_is_an_internal_error(here, capfd):
    with pytest.raises(hw.InternalError, match=r"injected in .* at .*\.rs:[0-9]+; please report") as caught:
        hw._core._panic_for_test(here)
    assert isinstance(caught.value, RuntimeError)
    assert capfd.readouterr() == ("", "")  # nothing is printed: the exception says it all
    x = np.ones((8, 100, 32), dtype=np.float32)
    assert np.isfinite(hw.scaled_dot_product_attention(x, x, x)).all()  # the pool lives


def test_an_error_of_numpy_names_the_argument():
    with pytest.raises(hw.ShapeError, match=r"^key: .*inhomogeneous") as caught:
        hw.scaled_dot_product_attention(np.ones((2, 2)), [[1.0, 2.0], [3.0]], np.ones((2, 2)))
    assert isinstance(caught.value.__cause__, ValueError)

    class Broken:
        def __array__(self, dtype=None, copy=None):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):  # what the caller's own code raises is left alone
        hw.scaled_dot_product_attention(Broken(), np.ones((2, 2)), np.ones((2, 2)))


def test_a_wrong_instruction_set_is_told_by_the_import(monkeypatch):
    for name in ("sse9", "neon" if hw.isa() != "neon" else "avx2"):
        monkeypatch.setenv("HEADWISE_ISA", name)
        done = subprocess.run(
            [sys.executable, "-c", "import headwise"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith("ImportError: HEADWISE_ISA: ")
        assert name in done.stderr


def test_show_config(capsys):
    config = hw.show_config(mode="dicts")
    assert config["version"] == hw.__version__
    assert config["isa"] == hw.isa()
    assert config["isa"] in config["available_isas"]
    assert config["num_threads"] == hw.get_num_threads()
    assert hw.show_config() is None
    assert f"isa:            {hw.isa()}" in capsys.readouterr().out
    with pytest.raises(ValueError, match="mode"):
        hw.show_config("html")


# --- sizes --------------------------------------------------------------------------------------------------


def broadcast(*shape):
    """Return an array of a huge shape over one number."""
    return np.broadcast_to(np.float32(1), shape)


BIG = 2**40
OVERFLOWING = {
    "queries": lambda: hw.scaled_dot_product_attention(broadcast(BIG, 4), np.ones((2, 4)), np.ones((2, 4))),
    "float32 queries": lambda: hw.scaled_dot_product_attention(broadcast(BIG, 4), *[broadcast(2, 4)] * 2),
    "keys": lambda: hw.scaled_dot_product_attention(np.ones((2, 4)), *[broadcast(BIG, 4)] * 2),
    "a batch": lambda: hw.scaled_dot_product_attention(
        broadcast(2**21, 1, 1, 1, 4), *[broadcast(2**21, 1, 2, 4)] * 2
    ),
    "weights": lambda: hw.scaled_dot_product_attention(*[broadcast(2**22, 4)] * 3, return_weights=True),
    "more than a word": lambda: hw.scaled_dot_product_attention(
        broadcast(2**30, 1, 2, 1), broadcast(2**30, 1, 1, 2, 1), broadcast(1, 2, 2**10)
    ),
    "allowed_mask": lambda: hw.allowed_mask(BIG, BIG),
    "allowed_mask of a word": lambda: hw.allowed_mask(2**31, 2**31),
    "packed": lambda: hw.attention_varlen(broadcast(BIG, 1, 4), *[np.ones((2, 1, 4))] * 2, [0, BIG], [0, 2]),
    "linear": lambda: hw.linear(broadcast(BIG, 4), np.ones((4, 4))),
    "linear of nothing": lambda: hw.linear(broadcast(BIG, 4), np.ones((0, 4))),
    "integers": lambda: hw.linear(np.broadcast_to(np.int8(1), (BIG, 4)), np.ones((4, 4))),
    "half": lambda: hw.linear(np.broadcast_to(np.float16(1), (BIG, 4)), np.ones((4, 4), dtype=np.float16)),
}


@pytest.mark.parametrize("what", OVERFLOWING)
def test_what_no_memory_holds(what):
    with pytest.raises((MemoryError, ValueError)):
        OVERFLOWING[what]()


LIMITED = """
    import resource
    import numpy as np
    import headwise as hw

    hw.set_num_threads(2)
    x = np.ones((1, 2, 4096, 64), dtype=np.float32)
    small = x[:, :, :256]
    wide = np.ones((1, 2, 1, 4096), dtype=np.float32)
    bytes_ = np.broadcast_to(np.int8(1), (2, 200000, 64))
    halves = np.broadcast_to(np.float16(1), (400000, 64))
    hw.scaled_dot_product_attention(small, small, small)  # the pool has started
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.RLIM_INFINITY))
    calls = {
        "weights": lambda: hw.scaled_dot_product_attention(x, x, x, return_weights=True),
        "output": lambda: hw.scaled_dot_product_attention(x, x[:, :, :1], wide),
        "conversion": lambda: hw.scaled_dot_product_attention(bytes_, bytes_, bytes_),
        "half": lambda: hw.relu(halves),
        "mask": lambda: hw.allowed_mask(10000, 10000),
        "linear": lambda: hw.linear(x[0, 0], np.ones((8192, 64), dtype=np.float32)),
    }
    for name, call in calls.items():
        try:
            call()
        except MemoryError:
            print(name)
    assert np.isfinite(hw.scaled_dot_product_attention(small, small, small)).all()
    print("alive")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits as Linux has them")
def test_memory_that_is_not_there():
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LIMITED)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    expected = ["weights", "output", "conversion", "half", "mask", "linear", "alive"]
    assert done.stdout.split() == expected, done.stderr
