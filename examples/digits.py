"""Train an Encoder to read handwritten digits, from patches of 2 x 2 pixels, and draw how it learned.

    python examples/digits.py [--seeds 0 1 2] [--epochs 30] [--curve digits.svg]

The images are scikit-learn's (1,797 of 8 x 8 pixels, from the UCI repository); a fifth, the same for every
seed, is held back for the test. Needs `pip install headwise[examples]`. Interrupted, it goes on
from its last checkpoint to the bits that it would have ended with.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import headwise as hw

Array = NDArray[np.float32]

PATCH = 2
PATCHES = 16
WIDTH = 64
BATCH = 64


class Reader:
    """Patches to the scores of ten digits: an embedding of each patch, an encoder, a linear map."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.body = hw.Sequential(
            hw.Linear(PATCH * PATCH, WIDTH, rng=rng),
            hw.Encoder(
                2,
                WIDTH,
                4,
                2 * WIDTH,
                norm_first=True,
                final_norm=True,
                positions="sinusoidal",
                dropout=0.1,
                rng=rng,
            ),
        )
        self.head = hw.Linear(PATCHES * WIDTH, 10, rng=rng)
        self.parts: dict[str, hw.Sequential | hw.Linear] = {"body": self.body, "head": self.head}

    def __call__(self, patches: Array) -> Array:
        """Return the scores (B, 10) of patches (B, 16, 4)."""
        scores: Array = self.head(self.body(patches).reshape(len(patches), -1))
        return scores

    def gradients(
        self, patches: Array, digits: NDArray[np.int64], rng: np.random.Generator
    ) -> tuple[float, dict[str, dict[str, Array]]]:
        """Return the loss of a batch and the gradients of all parameters: forwards, then back."""
        tokens, through_body = self.body.vjp(patches, training=True, rng=rng)
        scores, through_head = self.head.vjp(tokens.reshape(len(tokens), -1))
        loss, d_scores = hw.losses.cross_entropy(scores, digits, label_smoothing=0.1)
        d_tokens, of_head = through_head(d_scores)
        _, of_body = through_body(d_tokens.reshape(tokens.shape))
        return loss, {"body": of_body, "head": of_head}


def patches_of(images: Array) -> Array:
    """Cut images (N, 8, 8) into patches (N, 16, 4), row by row."""
    n, side = len(images), images.shape[1] // PATCH
    cut = images.reshape(n, side, PATCH, side, PATCH).swapaxes(2, 3)
    return np.ascontiguousarray(cut.reshape(n, side * side, PATCH * PATCH))


def train(seed: int, epochs: int, checkpoint: Path | None = None) -> tuple[list[float], list[float], float]:
    """Return the loss of each epoch, the accuracy on the test images after it, and the seconds it took."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images, labels = (digits.images / 16).astype(np.float32), digits.target
    order = np.random.default_rng(0).permutation(len(images))
    test, rest = order[: len(order) // 5], order[len(order) // 5 :]

    rng = np.random.default_rng(seed)
    model = Reader(rng)
    steps = epochs * (len(rest) // BATCH)
    optimizer = hw.optim.AdamW(
        model.parts,
        lr=hw.optim.warmup_cosine(3e-3, warmup=steps // 20, total=steps),
        weight_decay=0.05,
    )
    losses: list[float] = []
    accuracies: list[float] = []
    if checkpoint is not None and checkpoint.exists():
        found = hw.load_checkpoint(checkpoint, model=model.parts, optimizer=optimizer, rng=rng)
        losses, accuracies = found.extra["losses"], found.extra["accuracies"]
    start = time.perf_counter()
    turns = hw.progress(range(len(losses), epochs), description=f"Seed {seed}")
    for _ in turns:
        total = 0.0
        shuffled = rng.permutation(rest)[: len(rest) // BATCH * BATCH]
        for batch in shuffled.reshape(-1, BATCH):
            loss, grads = model.gradients(patches_of(images[batch]), labels[batch], rng)
            grads, _ = hw.optim.clip_by_norm(grads, 1.0)
            optimizer.step(grads)
            total += loss * BATCH / len(shuffled)
        right = model(patches_of(images[test])).argmax(axis=1) == labels[test]
        losses.append(total)
        accuracies.append(float(right.mean()))
        turns.set(loss=total, accuracy=accuracies[-1])
        if checkpoint is not None:
            hw.save_checkpoint(
                checkpoint,
                model=model.parts,
                optimizer=optimizer,
                rng=rng,
                losses=losses,
                accuracies=accuracies,
            )
    return losses, accuracies, time.perf_counter() - start


def draw(path: Path, curves: dict[int, tuple[list[float], list[float]]]) -> None:
    """Draw loss and accuracy of each seed over epochs."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for seed, (losses, accuracies) in curves.items():
        epochs = range(1, len(losses) + 1)
        left.plot(epochs, losses, label=f"seed {seed}")
        right.plot(epochs, [100 * a for a in accuracies])
    left.set(xlabel="epoch", ylabel="training loss (smoothed labels)", yscale="log")
    right.set(xlabel="epoch", ylabel="test accuracy in %", ylim=(80, 100.5))
    left.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Train once for each seed, and say how well the test images are read."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--curve", type=Path, help="where to draw the curves")
    parser.add_argument("--checkpoints", type=Path, help="folder of checkpoints to write, and to go on from")
    arguments = parser.parse_args()
    curves, last = {}, []
    for seed in arguments.seeds:
        checkpoint = arguments.checkpoints and arguments.checkpoints / f"digits-{seed}.safetensors"
        losses, accuracies, seconds = train(seed, arguments.epochs, checkpoint)
        curves[seed] = losses, accuracies
        last.append(100 * accuracies[-1])
        print(f"seed {seed}: {last[-1]:.2f} % of the test images, {arguments.epochs} epochs, {seconds:.0f} s")
    print(f"mean {np.mean(last):.2f} %, spread {np.ptp(last):.2f} % from least to most")
    if arguments.curve:
        draw(arguments.curve, curves)


if __name__ == "__main__":
    main()
