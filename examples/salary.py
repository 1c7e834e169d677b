"""What would a newcomer earn? Attention pooling over colleagues, beside their mean and k nearest neighbours.

    python examples/salary.py [--seeds 5]

The query is the newcomer's features, the keys are those of the colleagues, the values their salaries: a
prediction is the mean of the salaries, weighted by exp(-|q - k|^2 / 2) (Nadaraya 1964, Watson 1964). How much
a feature counts in the distance is learned, each colleague being predicted from all the others.
"""

from __future__ import annotations

import argparse

import numpy as np
from numpy.typing import NDArray

import headwise as hw

Array = NDArray[np.float64]

FEATURES = ("years at work", "years of school", "people led", "distance to work", "shoe size")
COLLEAGUES, NEWCOMERS = 400, 200


def people(count: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Return features (count, 5), scaled to about one, and salaries (count,) in thousands.

    The first years count most, school and work count for each other, a team is paid for in steps; two of the
    features say nothing, and a twentieth of a salary is luck.
    """
    years, school = rng.gamma(2.0, 6.0, count), rng.normal(14.0, 2.5, count)
    led = rng.poisson(np.clip(years / 8, 0, 4))
    rest = rng.standard_normal((2, count))
    salary = 28 + 14 * np.log1p(years) + 0.12 * years * (school - 12) + 9 * np.sqrt(led)
    features = np.stack([years / 8, (school - 14) / 2.5, led / 2, *rest], axis=1)
    return features, salary * (1 + 0.05 * rng.standard_normal(count))


def pooled(
    query: Array, key: Array, value: Array, scale: Array, mask: NDArray[np.bool_] | None = None
) -> Array:
    """Return a prediction (L,) for each query (L, 5) from keys (S, 5) and values (S,)."""
    out: Array = hw.attention(query * scale, key * scale, value[:, None], score="l2", attn_mask=mask)
    return out[:, 0]


def learned(features: Array, salary: Array, steps: int = 150) -> Array:
    """Return how much each feature counts, by Adam: each colleague is predicted from all the others."""
    state = {"scale": np.full(features.shape[1], 2.0)}
    optimizer = hw.optim.Adam(state, lr=0.05)
    others = ~np.eye(len(salary), dtype=bool)
    for _ in range(steps):
        rows = features * state["scale"]
        out, pullback = hw.vjp.attention(rows, rows, salary[:, None], score="l2", attn_mask=others)
        _, d_out = hw.losses.mean_squared_error(out[:, 0], salary)
        d_query, d_key, _ = pullback(d_out[:, None])
        optimizer.step({"scale": ((d_query + d_key) * features).sum(axis=0)})
    return state["scale"]


def nearest(query: Array, key: Array, value: Array, k: int, skip: int = 0) -> Array:
    """Return the mean value of the k nearest keys, the `skip` nearest left out."""
    distances = ((query[:, None] - key) ** 2).sum(axis=-1)
    order = np.argsort(distances, axis=1, kind="stable")[:, skip : skip + k]
    return np.asarray(value[order].mean(axis=1))


def error(predicted: Array, salary: Array) -> float:
    """Return the root of the mean squared error."""
    return float(np.sqrt(np.mean((predicted - salary) ** 2)))


def compare(seed: int) -> tuple[dict[str, float], Array]:
    """Return the error of each way on newcomers, and what was learned."""
    rng = np.random.default_rng(seed)
    (features, salary), (new, earned) = people(COLLEAGUES, rng), people(NEWCOMERS, rng)
    # The number of neighbours and the one width are chosen on the colleagues alone, as the scales are.
    ks, widths = range(1, 31), np.geomspace(0.5, 8, 25)
    k = min(ks, key=lambda k: error(nearest(features, features, salary, k, skip=1), salary))
    others = ~np.eye(len(salary), dtype=bool)
    one = np.ones(len(FEATURES))
    width = min(widths, key=lambda w: error(pooled(features, features, salary, w * one, others), salary))
    scale = learned(features, salary)
    found = {
        "mean": np.full(len(earned), salary.mean()),
        "k nearest neighbours": nearest(new, features, salary, k),
        "attention, one width": pooled(new, features, salary, width * one),
        "attention, a learned width for each feature": pooled(new, features, salary, scale),
    }
    return {name: error(predicted, earned) for name, predicted in found.items()}, scale


def main() -> None:
    """Print the errors of all seeds, mean and spread, and what was learned."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    seeds = parser.parse_args().seeds
    results, scales = zip(*(compare(seed) for seed in range(seeds)), strict=True)
    print(f"error on {NEWCOMERS} newcomers in thousands, mean and spread of {seeds} seeds")
    for name in results[0]:
        errors = [result[name] for result in results]
        print(f"{name:>44}  {np.mean(errors):5.2f} +- {np.std(errors):.2f}")
    print("what each feature counts, in the mean")
    for name, scale in zip(FEATURES, np.abs(scales).mean(axis=0), strict=True):
        print(f"{name:>44}  {scale:5.2f}")


if __name__ == "__main__":
    main()
