"""The examples of README.md, of the documentation and of every public docstring run, and print what they say.

The ``pycon`` blocks of a page are one session, in order. Pages that load MiniLM need it fetched, as
``make test`` does.
"""

import doctest
import re
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
    assert {name for name in headwise.__all__ if not name.startswith("__")} <= listed
