"""The grammar of examples/heads.py, read back from the written page; a tiny run from end to end."""

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import headwise as hw

pytestmark = pytest.mark.once

PATH = Path(__file__).resolve().parent.parent / "examples" / "heads.py"


@pytest.fixture(scope="module")
def heads():
    """Return the example as a module that processes of a pool can import too."""
    spec = importlib.util.spec_from_file_location("heads", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["heads"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["heads"]


def solve(text):
    """Answer the questions of a written page, from its letters alone."""
    known, answers = {}, []
    for word in text.split():
        if stated := re.fullmatch(r"([a-z])=(\d)", word):
            known[stated[1]] = int(stated[2])
        else:
            first, second = re.fullmatch(r"([a-z])-([a-z])\?", word).groups()
            assert first != second
            answers.append(known[first] - known[second])
    return answers


def test_every_answer_is_right(heads):
    ids, answers = heads.pages(300, np.random.default_rng(1))
    assert ids.shape == (300, heads.STATEMENTS + heads.QUESTIONS)
    assert answers.shape == (300, heads.QUESTIONS)
    for page, right in zip(ids, answers, strict=True):
        assert solve(heads.written(page)) == (right - heads.DIGITS + 1).tolist()


def test_statements_matter(heads):
    # Every name is stated, one of them twice, and somewhere the second statement changes an answer.
    ids, _ = heads.pages(200, np.random.default_rng(2))
    texts = [heads.written(page).split() for page in ids]
    changed = 0
    for words in texts:
        names = [word[0] for word in words if "=" in word]
        assert len(names) == heads.STATEMENTS
        assert len(set(names)) == heads.NAMES
        once = [word for n, word in enumerate(words) if "=" not in word or word[0] not in names[:n]]
        changed += solve(" ".join(once)) != solve(" ".join(words))
    assert changed > 50


def test_all_ids_and_answers_come(heads):
    ids, answers = heads.pages(500, np.random.default_rng(3))
    same = [heads.NAMES * heads.DIGITS + n * heads.NAMES + n for n in range(heads.NAMES)]
    assert set(np.unique(ids)) == set(range(heads.TOKENS)) - set(same)
    assert np.unique(answers).tolist() == list(range(heads.ANSWERS))


def test_seeds_repeat(heads):
    one, same, other = (heads.pages(20, np.random.default_rng(seed)) for seed in (4, 4, 5))
    np.testing.assert_array_equal(one[0], same[0])
    np.testing.assert_array_equal(one[1], same[1])
    assert not np.array_equal(one[0], other[0])


def test_networks_of_a_seed_differ_as_their_row_says(heads):
    rows = [heads.Row(2, deep, admin) for deep, admin in ((False, False), (False, True), (True, False))]
    usual, admin, deep = (heads.network(row, np.random.default_rng(0))[0].state_dict() for row in rows)
    changed = {name for name in usual if not np.array_equal(usual[name], admin[name])}
    # omega of the first sublayer is 1.
    expected = {f"encoder.layers.{n}.{last}" for n in (0, 1) for last in ("self_attn.out_proj", "linear2")}
    expected.remove("encoder.layers.0.self_attn.out_proj")
    assert {name.removesuffix(".weight").removesuffix(".bias") for name in changed} == expected
    assert sum(name.endswith("norm1.weight") for name in deep) == 2 * heads.HEADS


def test_guessing_is_what_the_shares_of_answers_give(heads):
    # The difference of two independent digits of 0 to 3: shares 1 to 4 to 1 of 16.
    shares = np.array([1, 2, 3, 4, 3, 2, 1]) / 16
    assert heads.guessing() == pytest.approx(-(shares * np.log(shares)).sum(), rel=0.01)


def test_a_run_repeats_and_learns(heads, threads):
    threads(1)
    row = heads.Row(layers=2, deep=False, admin=True)
    first = heads.train(row, 0, 30, 3e-3)
    assert first == heads.train(row, 0, 30, 3e-3)
    assert first.loss < heads.train(row, 0, 1, 3e-3).loss


def test_a_few_steps_run_as_a_script(heads, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["heads.py", "--steps", "2", "--seeds", "0", "1", "--jobs", "1"])
    monkeypatch.setattr(hw, "progress", lambda items, **_: hw._loop.Loop(items, None, "", shown=False))
    heads.main()
    printed = capsys.readouterr().out.splitlines()
    assert solve(printed[0])
    assert printed[1].startswith("2 steps of 64 pages, learning rate 0.003; loss of guessing 1.8")
    assert [line.split("|")[1].strip() for line in printed[4:]] == ["2 x 4"] * 2 + ["8 x 1"] * 2
    assert all("2 of 2" in line or "1 of 2" in line or "0 of 2" in line for line in printed[4:])
