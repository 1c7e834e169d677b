"""What layers and models hold: each weight once, whatever was called, and to the bit."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from compare import assert_same_bits, normals
from layers import randomize
from minilm import minilm_folder

import headwise as hw

MAKERS = {
    "attention": lambda **k: hw.MultiHeadAttention(80, 4, **k),
    "widths": lambda **k: hw.MultiHeadAttention(80, 4, key_dim=33, value_dim=50, **k),
    "grouped": lambda **k: hw.MultiHeadAttention(80, 4, num_kv_heads=2, head_dim=10, bias=False, **k),
    "layer": lambda **k: hw.EncoderLayer(80, 4, 200, **k),
    "gated layer": lambda **k: hw.EncoderLayer(80, 4, 130, ffn="glu", **k),
    "encoder": lambda **k: hw.Encoder(2, 80, 4, 97, final_norm=True, **k),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", MAKERS)
def test_a_state_is_what_was_loaded_to_the_bit(rng, kind, dtype):
    layer = randomize(MAKERS[kind](dtype=dtype), rng)
    state = layer.state_dict()
    for array in state.values():
        # What arithmetic would change: NaNs with a payload, infinities, a subnormal, a negative zero.
        words = array.view(np.uint32 if dtype == "float32" else np.uint64).ravel()
        words[:5] = np.array([np.nan, np.inf, -np.inf, 1e-45, -0.0], dtype=dtype).view(words.dtype)
        words[0] |= words.dtype.type(5)
    layer.load_state_dict(state)
    x = normals(rng, 3, 80)
    arguments = (x, normals(rng, 3, 33), normals(rng, 3, 50)) if kind == "widths" else (x,)
    for _ in range(2):
        again = layer.state_dict()
        assert list(again) == list(state)
        assert all(a.tobytes() == state[name].tobytes() for name, a in again.items())
        layer(*arguments)
    assert layer.num_parameters == sum(a.size for a in state.values())


def test_part_of_a_state_leaves_the_rest_to_the_bit(rng):
    layer = randomize(hw.EncoderLayer(80, 4, 200), rng)
    state, x = layer.state_dict(), normals(rng, 5, 80)
    out = layer(x)
    for name, array in state.items():
        layer.load_state_dict({name: array}, strict=False)
    assert_same_bits(layer(x), out)
    new = {
        "self_attn.in_proj_weight": -state["self_attn.in_proj_weight"],
        "linear1.bias": state["linear1.bias"] + 1,
    }
    layer.load_state_dict(new, strict=False)
    for name, array in layer.state_dict().items():
        assert_same_bits(array, (state | new)[name])


def fresh(code: str, **environment: str) -> dict[str, float]:
    """Return what a script prints as JSON in a fresh process with NumPy, `MB()` and `threads()`."""
    begin = """
        import json, os, sys
        import numpy as np

        def status(key):
            lines = open("/proc/self/status").read().splitlines()
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))

        def MB(key="VmRSS"):
            return status(key) / 1e6

        def threads():
            return len(os.listdir("/proc/self/task"))
    """
    clean = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(begin) + textwrap.dedent(code)],
        env=clean | {"HEADWISE_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc here")


@pytest.mark.once
@needs_proc
def test_a_large_layer_holds_its_weights_once():
    got = fresh("""
        import headwise as hw
        hw.EncoderLayer(64, 4, 64)(np.ones((2, 64), np.float32))  # pages of the library, not of the layer
        before = MB()
        layer = hw.EncoderLayer(1024, 16, 4096)
        made = MB() - before
        x = np.ones((3, 1024), np.float32)
        layer(x)
        called = MB() - before
        layer.state_dict()
        layer(x)
        print(json.dumps({"weights": layer.num_parameters * 4 / 1e6, "made": made, "called": called,
                          "state": MB() - before}))
    """)
    for moment in ("made", "called", "state"):
        assert 0.98 * got["weights"] < got[moment] < 1.1 * got["weights"] + 3, (moment, got)


LOAD = """
    import headwise as hw
    before = MB()
    model = hw.TextEncoder.from_pretrained(sys.argv[1], mmap=bool(MMAP))
    loaded, started = MB() - before, threads()
    model.encode("a dog ate the food because it was hungry")
    most = MB("VmHWM") - before
    print(json.dumps({"loaded": loaded, "encoded": MB() - before, "most": most, "threads": started}))
"""


def loaded(mmap: bool, count: int) -> tuple[dict[str, float], float]:
    """Return the megabytes of MiniLM in a fresh process, and those of its weights."""
    folder = minilm_folder()
    code = LOAD.replace("MMAP", str(int(mmap))).replace("sys.argv[1]", repr(str(folder)))
    weights = (folder / "model.safetensors").stat().st_size / 1e6
    return fresh(code, HEADWISE_NUM_THREADS=str(count)), weights


@pytest.mark.once
@needs_proc
@pytest.mark.parametrize("count", [1, 2])
def test_a_model_holds_its_weights_once(count):
    got, weights = loaded(False, count)
    assert weights < got["loaded"] < got["encoded"] < weights + 32, got
    assert got["most"] < weights + 40, got
    # With one thread there is nobody to help: no pool is made.
    assert got["threads"] == count


@pytest.mark.once
@needs_proc
def test_a_mapped_model_holds_no_rows_that_it_packed():
    got, weights = loaded(True, 1)
    # The word table stays in the file; 43 MB are packed.
    assert got["encoded"] < weights - 20, got


@pytest.mark.once
@needs_proc
def test_importing_starts_no_thread():
    code = """
        import headwise as hw
        hw.MultiHeadAttention(16, 4)(np.ones((3, 16), np.float32))
        print(json.dumps({"threads": threads()}))
    """
    assert fresh(code, HEADWISE_NUM_THREADS="4") == {"threads": 1}
