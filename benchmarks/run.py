"""Run what the options ask for, print it as it comes, and write it into the page of the documentation."""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import headwise as hw
from benchmarks import chart, fresh, machine, peers, report
from benchmarks.bench import GROUPS
from benchmarks.callers import CALLERS, callers
from benchmarks.growth import growth
from benchmarks.long import long
from benchmarks.measure import Plan, measure
from benchmarks.model_peers import Models
from benchmarks.neighbours import neighbours
from benchmarks.results import Result, load, save
from benchmarks.rows import GROUPS as ROWS
from headwise._fetch import fetched

AVX2_ROW = "MiniLM 32 x 128"


PROCESSES: dict[str, tuple[str, Callable[[peers.Setup], str]]] = {
    "cold_start": ("Cold start", fresh.cold_start),
    "memory": ("Memory", fresh.memory),
    "callers": (f"{CALLERS} Python threads that call at once", callers),
    "neighbours": ("Beside other processes", neighbours),
    "long": ("Long attention", long),
    "growth": ("Memory after many calls", growth),
}
"""What is measured beside the table: the option and the block's name, the title, the function."""


def run(options: argparse.Namespace) -> None:
    """Measure, print and write."""
    hw.set_num_threads(options.threads)
    setup = make_setup(options)
    some_rows = bool(options.only or options.rows)
    whole = not some_rows and set(peers.PACKAGES) == setup.peers
    page = Page(options.write if whole else None)
    chosen = [name for name in PROCESSES if getattr(options, name)]
    if some_rows or not chosen:
        table(options, setup, page)
    for name in PROCESSES if not (some_rows or chosen) else chosen:
        title, measured = PROCESSES[name]
        body = f"### {title}, {report.threads_of(options.threads)}\n\n{measured(setup)}"
        print(f"\n{body}", flush=True)
        page.blocks[f"{name.replace('_', '-')}-{options.threads}"] = body
    page.write()


class Page:
    """The generated blocks of the documentation's page, collected and written at the end."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.blocks: dict[str, str] = {}

    def write(self) -> None:
        """Write the blocks into the page."""
        if self.path is None:
            print("\nno page is written: that takes a whole run with all peers, and --write")
            return
        text = self.path.read_text(encoding="utf-8")
        for name, body in self.blocks.items():
            text = report.replace_block(text, name, body)
        self.path.write_text(text, encoding="utf-8")
        print(f"\nwritten to {self.path}: {', '.join(self.blocks)}")


def make_setup(options: argparse.Namespace) -> peers.Setup:
    """Find MiniLM, the peers and their forms of it; say who is left out and why."""
    folder = fetched("minilm")
    if folder is None:
        sys.exit("MiniLM is not here: run `headwise fetch minilm`")
    here = peers.installed()
    wanted = here if options.peers is None else options.peers
    without = peers.without_form(wanted, options.forms)
    for name in peers.PACKAGES:
        if name not in here:
            print(f"{name} is not installed here and left out (`make bench-peers` sets the peers up)")
        elif name in without:
            print(f"{name} is left out: no MiniLM for it in {options.forms} (`make bench-peers` makes it)")
    taking_part = frozenset(name for name in wanted if name in here and name not in without)
    return peers.Setup(options.threads, folder, options.forms, taking_part)


def table(options: argparse.Namespace, setup: peers.Setup, page: Page) -> None:
    """Measure the rows, print each when it is there and the table at the end."""
    facts = machine.facts(setup, options.command)
    print(report.facts_list(facts), flush=True)
    plan = Plan(options.threads, options.seconds, options.turns)
    models = Models(setup)
    results: list[Result] = []
    for group in options.only or GROUPS:
        if group == "avx2":
            if options.rows in f"{AVX2_ROW}, AVX2":
                results += held_to_avx2(options, setup)
            continue
        for row in ROWS[group](models):
            if options.rows in row.name:
                results.append(measure(row, plan))
                print(report.progress(results[-1]), flush=True)
    if not results:
        sys.exit(f"no row's name contains {options.rows!r}")
    print(f"\n{report.text_table(results)}")
    if warning := report.disturbed(results):
        print(f"\n{warning}")
    if options.json:
        save(results, options.json)
    if page.path is not None:
        drawing = page.path.with_name(f"performance-{options.threads}.svg")
        drawing.write_text(chart.svg(results, options.threads), encoding="utf-8")
        page.blocks[f"speed-{options.threads}"] = report.speed_section(results, facts, drawing.name)


def held_to_avx2(options: argparse.Namespace, setup: peers.Setup) -> list[Result]:
    """Measure MiniLM in a process where headwise and torch (the others cannot be held to it) use AVX2."""
    if "avx2" not in hw.show_config(mode="dicts")["available_isas"]:
        return []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "results.json"
        command = [sys.executable, "-m", "benchmarks.bench", "--only", "minilm", "--rows", AVX2_ROW]
        command += ["--threads", str(options.threads), "--seconds", str(options.seconds)]
        command += ["--turns", str(options.turns), "--forms", str(options.forms), "--json", str(file)]
        command += ["--peers", *(["torch"] if "torch" in setup.peers else [])]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **peers.AVX2})
        results = [replace(result, name=f"{result.name}, AVX2") for result in load(file)]
    print("\n".join(map(report.progress, results)), flush=True)
    return results
