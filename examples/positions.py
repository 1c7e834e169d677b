"""Draw four ways to tell tokens apart by their place.

    python examples/positions.py docs/positions.svg

- sinusoidal: a table that is added to the tokens; each number of a token is a wave, longer by pair;
- rotary: the angles by which pairs of numbers of queries and keys are turned: products know distances;
- ALiBi: what is added to a score for its distance, steeper or flatter by head;
- relative buckets: which distances share one learned bias (T5), one each when near, then wider and wider.

Everything drawn is what the functions of headwise return. Needs `pip install headwise[examples]`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import headwise as hw

Array = NDArray[Any]

PLACES, WIDTH, HEADS, BUCKETS = 64, 32, 8, 32


def sinusoidal() -> Array:
    """Return (PLACES, WIDTH) of what is added."""
    return hw.sinusoidal_positions(PLACES, WIDTH)


def rotary() -> Array:
    """Return (PLACES, WIDTH / 2) angles from 0 to 2 pi: where each place turns the pairs (1, 0)."""
    half = WIDTH // 2
    ones = np.concatenate([np.ones((PLACES, half)), np.zeros((PLACES, half))], axis=1)
    turned = hw.rotary_embedding(ones)
    angles: Array = np.arctan2(turned[:, half:], turned[:, :half]) % (2 * np.pi)
    return angles


def alibi() -> tuple[Array, Array]:
    """Return distances (N,) and what each head adds at them (HEADS, N)."""
    distances = np.arange(1 - PLACES, PLACES)
    return distances, -hw.alibi_slopes(HEADS)[:, None] * np.abs(distances)


def buckets() -> Array:
    """Return (PLACES, PLACES): the bucket of each query and key."""
    return hw.relative_position_buckets(PLACES, PLACES, num_buckets=BUCKETS, max_distance=PLACES)


def draw(path: Path) -> None:
    """Draw all four."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "positions"  # the same picture is the same file
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(9, 7), layout="constrained")
    (top_left, top_right), (low_left, low_right) = axes

    shown = top_left.imshow(
        sinusoidal().T, cmap="RdBu", vmin=-1, vmax=1, aspect="auto", interpolation="nearest"
    )
    top_left.set(title="sinusoidal: added to the tokens", xlabel="place", ylabel="number of a token")
    figure.colorbar(shown, ax=top_left, ticks=[-1, 0, 1])

    shown = top_right.imshow(
        rotary().T, cmap="twilight", vmin=0, vmax=2 * np.pi, aspect="auto", interpolation="nearest"
    )
    top_right.set(title="rotary: angle of queries and keys", xlabel="place", ylabel="pair of numbers")
    bar = figure.colorbar(shown, ax=top_right, ticks=[0, np.pi, 2 * np.pi])
    bar.ax.set_yticklabels(["0", "π", "2π"])

    distances, biases = alibi()
    colours = mpl.colormaps["viridis"](np.linspace(0, 0.9, HEADS))
    for head, (bias, colour) in enumerate(zip(biases, colours, strict=True)):
        low_left.plot(distances, bias, color=colour, label=f"head {head}" if head in (0, HEADS - 1) else None)
    low_left.set(title="ALiBi: added to a score", xlabel="place of key - place of query")
    low_left.set(xlim=(1 - PLACES, PLACES - 1), ylim=(-20, 0.5))
    low_left.legend(frameon=False, loc="lower center")
    low_left.spines[["top", "right"]].set_visible(False)
    low_left.grid(alpha=0.3)

    # Two maps of twenty colours make one in which all buckets differ.
    every = mpl.colors.ListedColormap(
        [*mpl.colormaps["tab20b"].colors, *mpl.colormaps["tab20c"].colors][:BUCKETS]
    )
    shown = low_right.imshow(buckets(), cmap=every, vmin=-0.5, vmax=BUCKETS - 0.5, interpolation="nearest")
    low_right.set(
        title="relative buckets: which bias is added", xlabel="place of key", ylabel="place of query"
    )
    figure.colorbar(shown, ax=low_right, label="bucket")

    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Draw into the file that is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, help="where to draw")
    draw(parser.parse_args().path)


if __name__ == "__main__":
    main()
