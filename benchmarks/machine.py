"""What the machine is, in the words of a report."""

import platform
from pathlib import Path

import numpy as np

import headwise as hw
from benchmarks import peers
from benchmarks.measure import bandwidth
from headwise._core import _peak_gflops


def cpu_name() -> str:
    """Return the CPU's own name, with family and model, since some virtual machines shorten the name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = dict(line.split("\t", 1) for line in reversed(lines) if "\t" in line)
    facts = {key.strip(): value.strip(" \t:") for key, value in facts.items()}
    name = facts.get("model name", platform.machine())
    if "cpu family" in facts:
        name += f" (family {facts['cpu family']}, model {facts['model']})"
    return name


def facts(setup: peers.Setup, command: str) -> dict[str, str]:
    """Return what somebody needs who wants to compare: the machine, its limits now, versions, the command."""
    peak = np.median([_peak_gflops("float32", setup.threads) for _ in range(5)])
    reading = np.median([bandwidth(setup.threads) for _ in range(5)])
    versions = {"headwise": hw.__version__} | {name: peers.version(name) for name in sorted(setup.peers)}
    return {
        "CPU": cpu_name(),
        "instruction set of headwise": hw.isa(),
        "threads": str(setup.threads),
        "peak": f"{peak:.0f} GFLOP/s in float32",
        "bandwidth": f"{reading:.0f} GB/s",
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": ", ".join(f"{name} {number}" for name, number in versions.items()),
        "command": f"`{command}`",
    }
