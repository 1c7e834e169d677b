"""See a slower kernel without a timed test: ``python -m benchmarks.check``, which is `make bench-check`.

The hot kernels (`benches/kernels`) run once each under callgrind, which counts their instructions, with AVX2
forced: valgrind knows no AVX-512. A count depends neither on the load of the machine nor on its processor, so
it is compared with the committed one within `ALLOWED_MORE`. What a count cannot see (the latency of spilled
registers, caches, AVX-512) the second table shows: products and attention as a share of the peak loop on the
best instruction set, compared within `ALLOWED_LESS`, and only on the processor that they were recorded on.

Exit status: 0 if nothing is slower, 1 if something is, 2 if it could not be found out.
"""

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.cpu import cpu_name
from benchmarks.verdicts import RENEW, Verdict, compare, conclusion, table

ROOT = Path(__file__).parent.parent
RECORD = Path(__file__).parent / "kernels.json"

COUNTED_ISA = "avx2"
ALLOWED_MORE = 0.01
"""Two runs of one binary agree to the last instruction, but a change elsewhere in the crate lets the compiler
lay out a kernel anew, which was seen to move a count by up to half a percent. One percent is above that, and
below what a spilled register or a loop that is no longer unrolled costs (the product without it: 8 %)."""
ALLOWED_LESS = 0.1
"""The best of hundreds of turns still differs by some percent between runs on a shared machine, since the
neighbours' load on clock and memory outlasts a run. A tenth is above that; a tile that spills loses half."""
TRIES = 3
"""Runs of the timed part, at most: each share may reach its bar in any of them."""


class CannotTellError(RuntimeError):
    """Something that is needed to measure is not here."""


@dataclass
class Record:
    """What was measured, and what it depends on."""

    made_by: str
    rustc: str
    valgrind: str
    isa: str
    """What instructions were counted with."""
    instructions: dict[str, int]
    share_cpu: str
    share_isa: str
    shares: dict[str, float]
    """Of the peak loop, on the processor and the instruction set that the two lines above name."""


def build() -> Path:
    """Build the kernels' binary as the wheel is built, and return its path."""
    command = ["cargo", "bench", "--locked", "--bench", "kernels", "--no-run", "--message-format=json"]
    # Who builds with less optimisation to save time would count other instructions.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CARGO_PROFILE_")}
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False, env=environment)
    for line in done.stdout.splitlines() if done.returncode == 0 else ():
        message = json.loads(line)
        if message.get("executable") and message["target"]["name"] == "kernels":
            return Path(message["executable"])
    raise CannotTellError("cargo could not build benches/kernels, see above")


def run(command: list[str], isa: str | None = None) -> str:
    """Return what a command prints, run with this instruction set or the best one."""
    environment = {name: value for name, value in os.environ.items() if name != "HEADWISE_ISA"}
    if isa is not None:
        environment["HEADWISE_ISA"] = isa
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise CannotTellError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    return done.stdout


def count(binary: Path) -> dict[str, int]:
    """Return the instructions of each kernel: callgrind counts within `measured`, then writes a file."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["valgrind", "--quiet", "--tool=callgrind", "--compress-strings=no"]
        command += ["--toggle-collect=*::measured", "--dump-after=*::measured"]
        command += [f"--callgrind-out-file={folder}/out", str(binary), "count"]
        names = run(command, COUNTED_ISA).splitlines()
        files = [Path(folder, f"out.{i + 1}") for i in range(len(names))]
        return dict(zip(names, (total(file.read_text()) for file in files), strict=True))


def total(dump: str) -> int:
    """Return the instructions that a file of callgrind's counts."""
    found = re.search(r"^totals: (\d+)$", dump, re.MULTILINE)
    if found is None or int(found[1]) == 0:
        raise CannotTellError("callgrind counted nothing: it did not find the function `measured`")
    return int(found[1])


def share(binary: Path, bars: Mapping[str, float]) -> dict[str, float]:
    """Return each kernel's best share of the peak loop, out of as many runs as it takes to reach all bars."""
    best: dict[str, float] = {}
    for _ in range(TRIES):
        for line in run([str(binary), "share"]).splitlines():
            name, value = line.split("\t")
            best[name] = max(best.get(name, 0.0), float(value))
        if bars and all(best.get(name, bar) >= bar for name, bar in bars.items()):
            break
    return best


def tools() -> tuple[str, str]:
    """Return the versions of rustc and valgrind."""
    if platform.machine() != "x86_64":
        raise CannotTellError(f"instructions are counted with AVX2, and this is {platform.machine()}")
    if shutil.which("valgrind") is None:
        raise CannotTellError(
            "instructions are counted by valgrind, and there is none here. Debian and Ubuntu: "
            "apt install valgrind; Fedora: dnf install valgrind; elsewhere: https://valgrind.org"
        )
    return run(["rustc", "--version"]).strip(), run(["valgrind", "--version"]).strip()


def check(renew: bool) -> int:
    """Measure, print, and either renew the record or compare with it; return the exit status."""
    rustc, valgrind = tools()
    binary = build()
    counts = count(binary)
    isa, cpu = run([str(binary), "isa"]).strip(), cpu_name()
    if renew:
        record = Record(RENEW, rustc, valgrind, COUNTED_ISA, counts, cpu, isa, share(binary, {}))
        RECORD.write_text(json.dumps(asdict(record), indent=1) + "\n")
        print(f"Written to {RECORD.relative_to(ROOT)}: {len(counts)} counts, {len(record.shares)} shares.")
        return 0

    record = Record(**json.loads(RECORD.read_text()))
    by_count = compare(record.instructions, counts, ALLOWED_MORE, less_is_better=True)
    notes = [
        f"Recorded with {then}, and this is {now}: counts depend on it. Compare with the recorded version."
        for then, now in [(record.rustc, rustc), (record.valgrind, valgrind)]
        if then != now
    ]
    if (record.share_cpu, record.share_isa) == (cpu, isa):
        shares = share(binary, {name: (1 - ALLOWED_LESS) * bar for name, bar in record.shares.items()})
        by_share = compare(record.shares, shares, ALLOWED_LESS, less_is_better=False)
    else:
        by_share = [Verdict(name, None, now, "shown") for name, now in share(binary, {}).items()]
        notes.append(
            f"Shares are shown, not compared: they were recorded on {record.share_cpu} with "
            f"{record.share_isa}, and this is {cpu} with {isa}."
        )
    print(table(f"instructions, {COUNTED_ISA}", by_count, ",.0f"))
    print("\n" + table(f"share of the peak loop, {isa}", by_share, ".3f"))
    text, status = conclusion([*by_count, *by_share])
    print("\n" + "\n".join([*notes, text]))
    return status


def main() -> int:
    """Read the options and check."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.check", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("mode", nargs="?", choices=["compare", "write"], default="compare")
    try:
        return check(renew=parser.parse_args().mode == "write")
    except CannotTellError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
