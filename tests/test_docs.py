"""The examples of README.md, of the documentation and of every public docstring run, and print what they say.

The ``pycon`` blocks of a page are one session, in order; so are the ``console`` blocks of the page about the
command line. Pages that load MiniLM need it fetched, as ``make test`` does.
"""

import doctest
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from check_docstrings import public_names

import headwise

pytestmark = pytest.mark.once

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
BLOCK = re.compile(r"^```pycon\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def session(path):
    """Return a page's examples as one doctest that keeps the page's line numbers."""
    text = path.read_text()
    kept, end = "", 0
    for block in BLOCK.finditer(text):
        kept += "\n" * text.count("\n", end, block.start(1)) + block.group(1)
        end = block.end(1)
    return doctest.DocTestParser().get_doctest(kept, {}, path.name, str(path), 0)


def run(test):
    """Run a doctest; what it prints about differences becomes the failure."""
    report = []
    doctest.DocTestRunner(optionflags=OPTIONS, verbose=False).run(test, out=report.append)
    if report:
        pytest.fail("".join(report), pytrace=False)


@pytest.mark.parametrize(
    "path", [page for page in PAGES if BLOCK.search(page.read_text())], ids=lambda p: p.name
)
def test_page(path):
    run(session(path))


CONSOLE = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_command_line_page(tmp_path):
    """Run each command in a shell; ``cat FILE`` makes the file that it shows."""
    for name, module in (("headwise", "-m headwise"), ("python", "")):
        script = tmp_path / "bin" / name
        script.parent.mkdir(exist_ok=True)
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n')
        script.chmod(0o755)
    # The instruction set may be forced on the tests; what is printed is the same on each of them.
    env = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "LC_ALL": "C.UTF-8"}
    checker, ran = doctest.OutputChecker(), 0
    for block in CONSOLE.finditer((ROOT / "docs" / "command_line.md").read_text()):
        for session in block.group(1).removeprefix("$ ").split("\n$ "):
            command, _, want = session.rstrip("\n").partition("\n")
            if command.startswith("cat "):
                (tmp_path / command.removeprefix("cat ")).write_text(want + "\n")
                continue
            got = subprocess.run(
                command, shell=True, cwd=tmp_path, env=env, text=True, check=False,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            ).stdout  # fmt: skip
            assert checker.check_output(want + "\n", got, OPTIONS), f"$ {command}\n{got}"
            ran += 1
    assert ran > 10


@pytest.mark.parametrize("name", list(public_names(headwise)))
def test_docstring(name):
    value = headwise
    for part in name.split(".")[1:]:
        value = getattr(value, part)
    run(
        doctest.DocTestParser().get_doctest(
            value.__doc__ or "", {"np": np, "headwise": headwise, "hw": headwise}, name, None, 0
        )
    )


def test_every_public_name_is_in_the_reference():
    page = (ROOT / "docs" / "api.md").read_text()
    listed = set(re.findall(r"^ *([A-Za-z_][\w.]*)$", page, re.MULTILINE))
    names = {name for name in headwise.__all__ if not name.startswith("__")}
    modules = {name for name in names if inspect.ismodule(getattr(headwise, name))}
    for module in modules:
        names |= set(getattr(headwise, module).__all__)
    assert names - modules <= listed
