"""CPUs older than the machine's, emulated: the module imports, computes, and gives the machine's own bits.

Needs qemu's user mode (on Debian: apt-get install qemu-user-static); a few seconds for each CPU.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import write_model

import headwise as hw

QEMU = shutil.which("qemu-x86_64-static") or shutil.which("qemu-x86_64")

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="emulates x86 CPUs for an x86 interpreter"),
    pytest.mark.skipif(
        QEMU is None, reason="qemu-x86_64 is missing (on Debian: apt-get install qemu-user-static)"
    ),
]

SCRIPT = """
import hashlib, json, sys
import numpy as np
import headwise as hw

rng = np.random.default_rng(5)
results = {}
for dtype in ("float32", "float64"):
    x = rng.normal(size=(2, 3, 20, 16)).astype(dtype)
    w = rng.normal(size=(50, 16)).astype(dtype)
    results["attention", dtype] = hw.scaled_dot_product_attention(x, x, x, is_causal=True)
    results["linear", dtype] = hw.linear(x, w, activation="gelu")
    results["layer_norm", dtype] = hw.layer_norm(x)
    results["encoder", dtype] = hw.Encoder(1, 16, 2, 24, dtype=dtype, rng=0)(x[0])
    model = hw.TextEncoder.from_pretrained(sys.argv[1], dtype=dtype)
    results["texts", dtype] = model.encode(["a dog ate it", "dogs"])
digests = {f"{name} {dtype}": hashlib.sha256(y.tobytes()).hexdigest() for (name, dtype), y in results.items()}
print(json.dumps({"isa": hw.isa(), "digests": digests}))
"""


def run(folder, *emulator):
    """Run the script, natively or emulated, with the instruction set that the CPU gives."""
    env = {name: value for name, value in os.environ.items() if name != "HEADWISE_ISA"}
    env["PYTHONPATH"] = str(Path(hw.__file__).parents[1])
    # Left to itself, NumPy's OpenBLAS takes the emulated Nehalem for a Haswell, and dies of AVX.
    env["OPENBLAS_CORETYPE"] = "Nehalem"
    command = [*emulator, sys.executable, "-c", SCRIPT, str(folder)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(("cpu", "isa"), [("Nehalem", "scalar"), ("Haswell", "avx2")])
def test_an_old_cpu_imports_and_gives_the_same_bits(tmp_path, cpu, isa):
    folder = write_model(tmp_path / "model")
    got = run(folder, QEMU, "-cpu", cpu)
    assert got["isa"] == isa
    assert got["digests"] == run(folder)["digests"]
