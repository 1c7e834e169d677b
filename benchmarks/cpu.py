"""The name of the processor, without anything that must be built first."""

import platform
from pathlib import Path


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
