"""Train a Seq2Seq to read dates as people write them, and draw which letters each digit was read from.

    python examples/dates.py [--seed 0] [--steps 1500] [--alignments dates.svg]
    python examples/dates.py --model attention    # or every_step, first_state: recurrent decoders

"3rd of March 2021", "mar 3 21" and "Wednesday 03.03.2021" all become "2021-03-03", letter by letter. The
texts are made from the grammar below; the days of the test occur in training in no form. Drawing needs
`pip install headwise[examples]`.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import re
import string
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

import headwise as hw

Ids = NDArray[np.int64]

# A symbol in braces becomes one of its alternatives; one that is no key here is a part of the date, see
# `parts`. No text means two dates: numbers alone have the month between a day in front and a year, or after a
# year of four digits; years of two digits are those from 1950 to 2049, and all dates are from these.
GRAMMAR = {
    "text": ["{date}", "{weekday} {date}", "{weekday}, {date}"],
    "date": ["{words}", "{numbers}"],
    "words": [
        "{day} {month} {year}",
        "{day} of {month} {year}",
        "the {ordinal} of {month}, {year}",
        "{month} {day} {year}",
        "{month} {day}, {year}",
        "{yyyy} {month} {day}",
        "{d}-{mon}-{year}",
    ],
    "numbers": ["{d}.{m}.{year}", "{dd}.{mm}.{year}", "{d}/{m}/{year}", "{dd}/{mm}/{year}", "{yyyy}{mm}{dd}"],
    "day": ["{d}", "{ordinal}"],
    "month": ["{mmmm}", "{mon}", "{mon}."],
    "year": ["{yyyy}", "{yy}", "'{yy}"],
    "weekday": ["{wwww}", "{www}"],
}
FIRST, LAST = datetime.date(1950, 1, 1), datetime.date(2049, 12, 31)

MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
CASES: tuple[Callable[[str], str], ...] = (str, str.lower, str.upper)

LETTERS = string.digits + " .,/-'" + string.ascii_letters
START, END = 11, 12
WIDTH = 64
BATCH = 64
TESTED = 1000
CONTEXTS: tuple[Literal["attention", "first_state", "every_step"], ...] = (
    "attention",
    "first_state",
    "every_step",
)

Model: TypeAlias = hw.Seq2Seq | hw.RecurrentSeq2Seq


def parts(date: datetime.date) -> dict[str, str]:
    """Return the parts of a date that texts are made of."""
    d, month, weekday = date.day, MONTHS[date.month - 1], WEEKDAYS[date.weekday()]
    suffix = "th" if d // 10 == 1 else {1: "st", 2: "nd", 3: "rd"}.get(d % 10, "th")
    of_day = {"d": f"{d}", "dd": f"{d:02}", "ordinal": f"{d}{suffix}", "wwww": weekday, "www": weekday[:3]}
    of_month = {"m": f"{date.month}", "mm": f"{date.month:02}", "mmmm": month, "mon": month[:3]}
    return of_day | of_month | {"yyyy": f"{date.year}", "yy": f"{date.year % 100:02}"}


SYMBOL = re.compile(r"\{(\w+)\}")


def write(date: datetime.date, rng: np.random.Generator) -> str:
    """Return one text of a date, with an alternative drawn for each symbol and a case for the letters."""
    of_date = parts(date)

    def expand(symbol: str) -> str:
        if symbol in of_date:
            return of_date[symbol]
        alternatives = GRAMMAR[symbol]
        return SYMBOL.sub(lambda found: expand(found[1]), alternatives[rng.integers(len(alternatives))])

    return CASES[rng.integers(len(CASES))](expand("text"))


def all_texts(date: datetime.date) -> Iterator[str]:
    """Yield every text of a date."""
    of_date = parts(date)

    def expand(text: str) -> Iterator[str]:
        found = SYMBOL.search(text)
        if found is None:
            yield text
            return
        symbol = found[1]
        for choice in [of_date[symbol]] if symbol in of_date else GRAMMAR[symbol]:
            yield from expand(text[: found.start()] + choice + text[found.end() :])

    for text, case in itertools.product(expand("{text}"), CASES):
        yield case(text)


def ids_of(text: str) -> Ids:
    """Return the places of a text's letters in the vocabulary of sources."""
    return np.array([LETTERS.index(letter) for letter in text], dtype=np.int64)


def digits_of(date: datetime.date) -> Ids:
    """Return the ids of "2021-03-03": the digits, and 10 for "-"."""
    return np.array([10 if letter == "-" else int(letter) for letter in date.isoformat()], dtype=np.int64)


def read_back(tokens: Ids) -> str:
    """Return the text of a target's ids."""
    return "".join("0123456789-"[token] if token < START else "?" for token in tokens)


def days(rng: np.random.Generator) -> tuple[list[datetime.date], list[datetime.date]]:
    """Return the days of the test and those of training, which share none."""
    every = [datetime.date.fromordinal(n) for n in range(FIRST.toordinal(), LAST.toordinal() + 1)]
    order = rng.permutation(len(every))
    return [every[i] for i in order[:TESTED]], [every[i] for i in order[TESTED:]]


def make(kind: str, rng: np.random.Generator) -> Model:
    """Return a model of a kind: a transformer, or recurrent layers with one of the three contexts."""
    for context in CONTEXTS:
        if kind == context:
            return hw.RecurrentSeq2Seq(len(LETTERS), END + 1, WIDTH, 2 * WIDTH, context=context, rng=rng)
    return hw.Seq2Seq(
        len(LETTERS),
        END + 1,
        WIDTH,
        4,
        2,
        2,
        2 * WIDTH,
        positions="rotary",  # which digit follows which is a matter of distances, not of places
        norm_first=True,
        activation="gelu",
        rng=rng,
    )


def gradients(
    model: Model, dates: list[datetime.date], rng: np.random.Generator
) -> tuple[float, dict[str, NDArray[np.float32]]]:
    """Return the loss of a batch of dates, each written in one form, and the gradients."""
    sources = [ids_of(write(date, rng)) for date in dates]
    targets = [digits_of(date) for date in dates]
    # The model reads "start 2021-03-03" and is to say "2021-03-03 end", each letter one place before.
    logits, pullback = model.vjp(sources, [np.append(START, ids) for ids in targets], training=True, rng=rng)
    answers = np.concatenate([np.append(ids, END) for ids in targets])
    loss, d_logits = hw.losses.cross_entropy(np.concatenate(logits), answers)
    _, grads = pullback(np.split(d_logits, np.cumsum([len(part) for part in logits])[:-1]))
    return loss, grads


def train(kind: str, seed: int, steps: int) -> tuple[Model, list[datetime.date], float]:
    """Return a trained model, the days that it has not seen, and the seconds that training took."""
    rng = np.random.default_rng(seed)
    unseen, seen = days(rng)
    model = make(kind, rng)
    schedule = hw.optim.warmup_cosine(3e-3, warmup=steps // 10, total=steps)
    optimizer = hw.optim.AdamW(model, lr=schedule, weight_decay=0.01)
    start = time.perf_counter()
    turns = hw.progress(range(steps), description=f"Seed {seed}")
    for _ in turns:
        batch = [seen[i] for i in rng.integers(len(seen), size=BATCH)]
        loss, grads = gradients(model, batch, rng)
        optimizer.step(hw.optim.clip_by_norm(grads, 1.0)[0])
        turns.set(loss=loss)
    return model, unseen, time.perf_counter() - start


def translate(model: Model, texts: list[str]) -> list[str]:
    """Return what the model reads in texts."""
    found = model.generate([ids_of(text) for text in texts], start=START, end=END, max_length=12)
    return [read_back(tokens) for tokens in found.tokens]


def draw(path: Path, model: Model, text: str) -> None:
    """Draw from which letters of a text each digit was read: the last layer's weights, mean over heads."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "dates"  # the same picture is the same file
    import matplotlib.pyplot as plt

    found = model.generate([ids_of(text)], start=START, end=END, max_length=12, return_alignments=True)
    assert found.alignments is not None
    weights = found.alignments[0][:, -1].mean(axis=1)  # (T, layers, H, S) to (T, S)
    figure, axes = plt.subplots(figsize=(9, 3.2), layout="constrained")
    axes.imshow(weights, cmap="Blues", vmin=0, aspect="auto")
    axes.set_xticks(range(len(text)), list(text), family="monospace")
    axes.set_yticks(range(len(weights)), list(read_back(found.tokens[0])), family="monospace")
    axes.set(xlabel="source", ylabel="written")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Train, and say how many unseen dates are read without a mistake."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=("transformer", *CONTEXTS), default="transformer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--alignments", type=Path, help="where to draw the alignments of one date")
    arguments = parser.parse_args()
    model, unseen, seconds = train(arguments.model, arguments.seed, arguments.steps)
    rng = np.random.default_rng(arguments.seed + 1)
    texts = [write(date, rng) for date in unseen]
    answers = translate(model, texts)
    for text, answer in zip(texts[:8], answers, strict=False):
        print(f"{text:>36} -> {answer}")
    right = [answer == date.isoformat() for answer, date in zip(answers, unseen, strict=True)]
    print(
        f"{arguments.model}, seed {arguments.seed}: {100 * np.mean(right):.1f} % of {len(right)} unseen "
        f"dates, {arguments.steps} steps of {BATCH} texts, {seconds:.0f} s"
    )
    if arguments.alignments:
        draw(arguments.alignments, model, max(texts, key=len))


if __name__ == "__main__":
    main()
