"""What is in memory of this process: now, and at most during a call. Linux tells it in /proc."""

import os
import re
from collections.abc import Callable
from pathlib import Path

MEGABYTE = 10**6


def resident() -> int:
    """Return the bytes of this process that are in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_growth(call: Callable[[], object]) -> int:
    """Return by how many bytes the memory of this process grew at most during a call."""
    # This sets the peak back to what is resident now: an earlier one would hide that of the call.
    Path("/proc/self/clear_refs").write_text("5")
    before = resident()
    call()
    found = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError("/proc/self/status has no VmHWM")
    return 1024 * int(found[1]) - before
