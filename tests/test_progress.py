"""headwise.progress: the items, the line without tqdm, and tqdm's bar where it is installed."""

import builtins
import sys

import pytest

import headwise as hw

pytestmark = pytest.mark.once


@pytest.fixture
def no_tqdm(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.split(".")[0] == "tqdm":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)


def test_items_go_through(capsys):
    steps = hw.progress(range(5), shown=False)
    assert len(steps) == 5
    assert list(steps) == list(steps) == [0, 1, 2, 3, 4]
    assert capsys.readouterr() == ("", "")


def test_one_line_without_a_terminal(no_tqdm, capsys):
    steps = hw.progress(range(5))
    for step in steps:
        steps.set(loss=1 / (step + 1), epoch=step)
    assert capsys.readouterr().err == "Steps: 5 of 5, loss=0.2, epoch=4\n"
    for _ in hw.progress(iter("abc"), description="Letters"):
        pass
    assert capsys.readouterr().err == "Letters: 3\n"
    with pytest.raises(TypeError, match="not known"):
        len(hw.progress(iter("abc")))


def test_a_line_that_is_left_says_how_far_it_came(no_tqdm, capsys):
    steps = hw.progress(range(5), total=7)
    for step in steps:
        if step == 3:
            break
    steps.set(loss=1.0)  # after the end: nothing to show it on
    del steps
    assert capsys.readouterr().err == "Steps: 3 of 7\n"


def test_a_terminal_sees_the_line_change(no_tqdm, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    steps = hw.progress(range(1000))
    for step in steps:
        steps.set(loss=step)
    lines = capsys.readouterr().err.split("\r")
    assert lines[1].startswith("Steps: 1 of 1000, loss=0")
    assert lines[-1] == "Steps: 1000 of 1000, loss=999\n"
    # A loop of a thousand short steps does not write a thousand times.
    assert len(lines) < 500


def test_tqdm(capsys):
    pytest.importorskip("tqdm")
    steps = hw.progress(range(3))
    for _ in steps:
        steps.set(loss=0.123456)
    text = capsys.readouterr().err
    assert "3/3" in text
    assert "Steps" in text
