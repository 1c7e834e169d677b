"""What the machine is, in the words of a report."""

import platform

import numpy as np

import headwise as hw
from benchmarks import peers
from benchmarks.cpu import cpu_name
from benchmarks.measure import bandwidth
from headwise._core import _peak_gflops


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
