"""Many heads against many layers of one head: train both, with and without Admin, and print what they reach.

    python examples/heads.py [--layers 2] [--seeds 0 1 2 3 4] [--steps 800] [--jobs 2]

The task is made by a grammar that stands here. A page states digits of four names, one of them twice, and
asks for differences; of two statements the last counts:

    b=3  a=1  d=0  b=2  c=1    a-b?  d-c?  b-d?    the answers: -1, -1, 2

Each statement is one token, each question one token, and the answer is read off at the question. It has to
look at two places, and to know which of them is which: with two heads in one layer, or one head in two
layers. The second network is `Encoder.to_deep_single_head()` of the first: a layer for every head.
"""

from __future__ import annotations

import argparse
import itertools
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

import headwise as hw

NAMES, DIGITS = 4, 4
STATEMENTS, QUESTIONS = 5, 10
TOKENS = NAMES * DIGITS + NAMES * NAMES
ANSWERS = 2 * DIGITS - 1

HEADS, WIDTH, HIDDEN = 4, 32, 128
BATCH = 64
TESTED = 2000

Ids = NDArray[np.int64]


class Result(NamedTuple):
    """What one run ended with, on pages that it had not seen."""

    loss: float
    accuracy: float


class Row(NamedTuple):
    """One network and one start, of which several seeds are trained."""

    layers: int
    deep: bool
    admin: bool


def pages(n: int, rng: np.random.Generator) -> tuple[Ids, Ids]:
    """Draw pages: ids (n, STATEMENTS + QUESTIONS), and the answers (n, QUESTIONS), shifted to begin at 0.

    A statement has the id name * DIGITS + digit; a question that of its two names, which differ, after those.
    """
    again = rng.integers(NAMES, size=(n, STATEMENTS - NAMES))
    names = rng.permuted(np.concatenate([np.tile(np.arange(NAMES), (n, 1)), again], axis=1), axis=1)
    digits = rng.integers(DIGITS, size=names.shape)
    known = np.zeros((n, NAMES), dtype=np.int64)
    for place in range(STATEMENTS):  # in their order, so that the last one stays
        known[np.arange(n), names[:, place]] = digits[:, place]
    first = rng.integers(NAMES, size=(n, QUESTIONS))
    second = (first + rng.integers(1, NAMES, size=first.shape)) % NAMES
    questions = NAMES * DIGITS + first * NAMES + second
    answers = np.take_along_axis(known, first, axis=1) - np.take_along_axis(known, second, axis=1)
    return np.concatenate([names * DIGITS + digits, questions], axis=1), answers + DIGITS - 1


def written(page: Ids) -> str:
    """Write a page as people would read it."""
    letters = "abcdefghijklmnopqrstuvwxyz"[:NAMES]
    split = NAMES * DIGITS
    return "  ".join(
        f"{letters[i // DIGITS]}={i % DIGITS}"
        if i < split
        else f"{letters[(i - split) // NAMES]}-{letters[(i - split) % NAMES]}?"
        for i in page
    )


def network(row: Row, rng: np.random.Generator) -> tuple[hw.Sequential, dict[str, float]]:
    """Return embedding, post-norm encoder and output, with factors of some parameters' learning rate."""
    encoder = hw.Encoder(row.layers, WIDTH, HEADS, HIDDEN, positions="sinusoidal", rng=rng)
    if row.deep:
        encoder = encoder.to_deep_single_head(rng=rng)
    embedding, output = hw.Embedding(TOKENS, WIDTH, rng=rng), hw.Linear(WIDTH, ANSWERS, rng=rng)
    factors: dict[str, float] = {}
    if row.admin:
        _, factors = hw.init.admin(encoder, embedding(pages(BATCH, rng)[0]))
    model = hw.Sequential(embedding=embedding, encoder=encoder, output=output)
    return model, {f"encoder.{name}": factor for name, factor in factors.items()}


def train(row: Row, seed: int, steps: int, lr: float) -> Result:
    """Train one network from one seed, and test it; rows of the same seed see the same pages."""
    model, factors = network(row, np.random.default_rng(seed))
    rng = np.random.default_rng((seed, 1))
    schedule = hw.optim.warmup_cosine(lr, warmup=steps // 10, total=steps)
    optimizer = hw.optim.Adam(model, lr=schedule, lr_factors=factors)
    for _ in range(steps):
        ids, answers = pages(BATCH, rng)
        logits, pullback = model.vjp(ids, training=True, rng=rng)
        _, d_asked = hw.losses.cross_entropy(logits[:, STATEMENTS:], answers)
        d_logits = np.zeros_like(logits)
        d_logits[:, STATEMENTS:] = d_asked
        grads, _ = hw.optim.clip_by_norm(pullback(d_logits)[1], 1.0)
        optimizer.step(grads)
    ids, answers = unseen()
    scores = model(ids)[:, STATEMENTS:]
    loss = float(hw.losses.cross_entropy(scores, answers).value)
    return Result(loss, float((scores.argmax(axis=-1) == answers).mean()))


def unseen() -> tuple[Ids, Ids]:
    """Return the pages of the test, the same for every run."""
    return pages(TESTED, np.random.default_rng((0, 2)))


def guessing() -> float:
    """Return the loss of one who knows how often each answer comes, and nothing of the page."""
    shares = np.bincount(unseen()[1].ravel(), minlength=ANSWERS) / (TESTED * QUESTIONS)
    return -float((shares[shares > 0] * np.log(shares[shares > 0])).sum())


def line(row: Row, results: list[Result]) -> str:
    """Return a row of the table: means, least and most over the seeds, and how many runs learned nothing."""
    encoder = network(row, np.random.default_rng(0))[0]["encoder"]
    losses, accuracies = [r.loss for r in results], [100 * r.accuracy for r in results]
    failed = sum(not r.loss < guessing() for r in results)  # NaN is not less
    return (
        f"| {encoder.num_layers} x {encoder.num_heads} | {'Admin' if row.admin else 'usual'} "
        f"| {encoder.num_parameters:,} "
        f"| {np.mean(losses):.3f} ({min(losses):.3f} to {max(losses):.3f}) "
        f"| {np.mean(accuracies):.1f} ({min(accuracies):.1f} to {max(accuracies):.1f}) "
        f"| {failed} of {len(results)} |"
    )


def main() -> None:
    """Train every network from every seed, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=2, help="of the network of many heads")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--lr", type=float, default=3e-3, help="highest learning rate, the same for all")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, on one thread each")
    arguments = parser.parse_args()
    rows = [Row(arguments.layers, deep, admin) for deep in (False, True) for admin in (False, True)]
    runs = list(itertools.product(rows, arguments.seeds))
    rest = itertools.repeat(arguments.steps), itertools.repeat(arguments.lr)
    # Arrays as small as these gain nothing from a second thread; a second run does. No bit depends on either.
    with ProcessPoolExecutor(arguments.jobs, initializer=hw.set_num_threads, initargs=(1,)) as pool:
        found = pool.map(train, *zip(*runs, strict=True), *rest)
        results = list(hw.progress(found, total=len(runs), description="Runs"))
    print(written(pages(1, np.random.default_rng(0))[0][0]))
    setting = f"{arguments.steps} steps of {BATCH} pages, learning rate {arguments.lr}"
    print(f"{setting}; loss of guessing {guessing():.3f}")
    print("| layers x heads | start | parameters | loss | accuracy in % | no better than guessing |")
    print("|---|---|---|---|---|---|")
    for number, row in enumerate(rows):
        print(line(row, results[number * len(arguments.seeds) :][: len(arguments.seeds)]))


if __name__ == "__main__":
    main()
