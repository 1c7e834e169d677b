"""The worked example of attention pooling: its people, its baselines, and that it learns what counts."""

import importlib.util
from pathlib import Path

import numpy as np

PATH = Path(__file__).parent.parent / "examples" / "salary.py"
SPEC = importlib.util.spec_from_file_location("salary", PATH)
salary = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(salary)


def test_people_repeat_with_their_seed():
    features, earned = salary.people(50, np.random.default_rng(3))
    again, _ = salary.people(50, np.random.default_rng(3))
    np.testing.assert_array_equal(features, again)
    assert features.shape == (50, len(salary.FEATURES))
    assert (earned > 0).all()


def test_neighbours_by_hand():
    key, value = np.array([[0.0], [1.0], [3.0]]), np.array([10.0, 20.0, 60.0])
    np.testing.assert_array_equal(salary.nearest(np.array([[0.2], [2.9]]), key, value, 2), [15.0, 40.0])
    np.testing.assert_array_equal(salary.nearest(key, key, value, 1, skip=1), [20.0, 10.0, 20.0])


def test_pooling_is_the_weighted_mean(rng):
    query, key, value = rng.standard_normal((4, 5)), rng.standard_normal((7, 5)), rng.standard_normal(7)
    scale = np.arange(1.0, 6.0)
    weights = np.exp(-0.5 * (((query[:, None] - key) * scale) ** 2).sum(axis=-1))
    want = weights @ value / weights.sum(axis=1)
    np.testing.assert_allclose(salary.pooled(query, key, value, scale), want, rtol=1e-12)


def test_what_counts_is_learned(monkeypatch):
    monkeypatch.setattr(salary, "COLLEAGUES", 150)
    errors, scale = salary.compare(0)
    *others, learned = errors.values()
    assert learned < min(others)
    assert np.abs(scale[3:]).max() < 0.5 * np.abs(scale[:3]).min()
