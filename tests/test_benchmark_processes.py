"""The parts of `make bench` that start processes: neighbours, long attention, memory after many calls."""

import subprocess
import sys
from pathlib import Path

import pytest
from minilm import minilm_folder

from benchmarks import growth, long, neighbours
from benchmarks.callers import works
from benchmarks.peers import Setup
from benchmarks.run import PROCESSES

pytestmark = pytest.mark.once

SETUP = Setup(1, Path(), Path(), frozenset())


def test_every_option_of_the_command_has_a_function():
    options = subprocess.run(
        [sys.executable, "-m", "benchmarks.bench", "--help"], capture_output=True, text=True, check=True
    ).stdout
    for name in PROCESSES:
        assert f"--{name.replace('_', '-')}" in options


def test_workers_make_calls_for_as_long_as_they_are_told():
    folder = minilm_folder()
    work = next(iter(works(folder)))
    with neighbours.Worker(folder, work, 1) as one, neighbours.Worker(folder, work, 1) as other:
        alone = neighbours.together([one], 0.05)
        both = neighbours.together([one, other], 0.05)
    assert sum(alone) >= 0.05
    assert sum(both) >= 0.1
    assert one.process.returncode is not None


def test_a_worker_that_ends_is_noticed():
    worker = neighbours.Worker(minilm_folder(), "no such work", 1)
    with pytest.raises(RuntimeError, match="ended"):
        worker.__enter__()
    worker.__exit__()


def test_a_busy_core_is_free_again():
    started = []
    real = subprocess.Popen

    class Spy(real):
        def __init__(self, *arguments, **keywords):
            super().__init__(*arguments, **keywords)
            started.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours.subprocess, "Popen", Spy)
        with neighbours.busy_core():
            assert started[0].poll() is None
    assert started[0].poll() is not None


def test_the_table_of_long_attention(monkeypatch):
    monkeypatch.setattr(long, "SHORTER", 64)
    monkeypatch.setattr(long, "LONGER", 256)
    monkeypatch.setattr(long, "TURNS", 1)
    monkeypatch.setattr(long, "extra_bytes", lambda kind, threads: 2_500_000)
    head, _, *rows = long.long(SETUP).splitlines()
    assert "4 x the length" in head
    assert [row.split("|")[1].strip() for row in rows] == list(long.KINDS)
    assert all(row.endswith(" 2.5 |") for row in rows)
    assert " 1.00 |" in rows[0]


def test_the_table_of_growth(monkeypatch):
    asked = []
    monkeypatch.setattr(growth, "elsewhere", lambda *given: asked.append(given) or 1_250_000)
    rows = growth.growth(SETUP).splitlines()[2:]
    assert all(row.endswith(" 1.2 |") for row in rows)
    assert {given[1] for given in asked} == {"attention", "padded", "ragged", "encode", "threads"}
    assert all(given[3] < given[4] for given in asked)
