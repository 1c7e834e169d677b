"""The grammar of examples/dates.py: a parser of its own reads every text back, and seeds repeat."""

import datetime
import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import headwise as hw

pytestmark = pytest.mark.once

PATH = Path(__file__).resolve().parent.parent / "examples" / "dates.py"


@pytest.fixture(scope="module")
def dates():
    """Return the example as a module."""
    spec = importlib.util.spec_from_file_location("dates", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parse(text):
    """Read a date without the grammar: the numbers in their order, and the first letters of a month."""
    text = text.lower()
    text = re.sub(r"^(mon|tue|wed|thu|fri|sat|sun)[a-z]*,? ", "", text)
    months = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
    name = next((found[0] for found in re.finditer("|".join(months), text)), None)
    numbers = re.findall(r"\d+", text)
    if name is not None:
        month = months.index(name) + 1
        year, day = numbers if len(numbers[0]) == 4 else reversed(numbers)
    elif len(numbers) == 1:
        year, month, day = numbers[0][:4], numbers[0][4:6], numbers[0][6:]
    else:
        day, month, year = numbers
    year = int(year)
    if year < 100:
        year += 1900 if year >= 50 else 2000
    return datetime.date(year, int(month), int(day))


def some_days(dates):
    """Return days of every month and weekday, with every suffix, at both ends of the range."""
    rng = np.random.default_rng(3)
    span = dates.LAST.toordinal() - dates.FIRST.toordinal()
    drawn = [dates.FIRST + datetime.timedelta(int(n)) for n in rng.integers(span, size=60)]
    shorter = [datetime.date(2000, 2, day) for day in range(1, 30)]
    return [dates.FIRST, dates.LAST, datetime.date(1999, 12, 31), datetime.date(2001, 1, 1), *drawn, *shorter]


def test_every_text_parses_back(dates):
    seen = {}
    for date in some_days(dates):
        texts = set(dates.all_texts(date))
        assert len(texts) > 1000
        for text in texts:
            assert parse(text) == date, text
            assert seen.setdefault(text, date) == date, text


def test_weekdays_are_those_of_the_date(dates):
    for date in some_days(dates):
        whole = {text.split()[0].rstrip(",") for text in dates.all_texts(date)} & set(dates.WEEKDAYS)
        assert whole == {date.strftime("%A")}


def test_what_is_drawn_is_of_the_grammar(dates):
    rng = np.random.default_rng(0)
    for date in some_days(dates)[:10]:
        every = set(dates.all_texts(date))
        drawn = {dates.write(date, rng) for _ in range(300)}
        assert drawn <= every
        assert len(drawn) > 100


def test_known_forms_are_there(dates):
    texts = set(dates.all_texts(datetime.date(2021, 3, 3)))
    for text in ("3rd of March 2021", "mar 3 21", "Wednesday 03.03.2021", "20210303", "WED, 3-MAR-'21"):
        assert text in texts


def test_seeds_repeat(dates):
    draws = []
    for _ in range(2):
        rng = np.random.default_rng(7)
        unseen, seen = dates.days(rng)
        draws.append((unseen, seen, [dates.write(date, rng) for date in unseen[:50]]))
    assert draws[0] == draws[1]
    assert dates.days(np.random.default_rng(8))[0] != draws[0][0]


def test_days_of_the_test_are_no_days_of_training(dates):
    unseen, seen = dates.days(np.random.default_rng(0))
    assert len(unseen) == len(set(unseen)) == 1000
    assert not set(unseen) & set(seen)
    assert len(unseen) + len(seen) == (dates.LAST - dates.FIRST).days + 1


def test_ids_go_there_and_back(dates):
    date = datetime.date(1987, 11, 5)
    assert dates.read_back(dates.digits_of(date)) == "1987-11-05"
    for text in dates.all_texts(date):
        assert "".join(dates.LETTERS[i] for i in dates.ids_of(text)) == text


@pytest.mark.parametrize("model", ["transformer", "attention", "first_state", "every_step"])
def test_a_few_steps_run_as_a_script(dates, monkeypatch, capsys, model):
    arguments = ["dates.py", "--steps", "4", "--seed", "3", "--model", model]
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setattr(hw, "progress", lambda items, **_: hw._loop.Loop(items, None, "", shown=False))
    monkeypatch.setattr(dates, "TESTED", 20)
    dates.main()
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 9
    assert re.match(rf"{model}, seed 3: [\d.]+ % of 20 unseen dates, 4 steps of 64 texts", printed[-1])
