"""What examples/positions.py draws, from the formulas."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.once

PATH = Path(__file__).resolve().parent.parent / "examples" / "positions.py"


@pytest.fixture(scope="module")
def positions():
    """Return the example as a module."""
    spec = importlib.util.spec_from_file_location("positions", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_drawn(positions):
    places, half = np.arange(64), 16
    waves = places[:, None] * 10000.0 ** (-np.arange(half) / half)
    table = np.stack([np.sin(waves), np.cos(waves)], axis=-1).reshape(64, 32)
    np.testing.assert_allclose(positions.sinusoidal(), table, atol=1e-7)
    np.testing.assert_allclose(np.exp(1j * positions.rotary()), np.exp(1j * waves), atol=1e-12)
    distances, biases = positions.alibi()
    np.testing.assert_array_equal(biases, -(2.0 ** -np.arange(1, 9))[:, None] * abs(distances))
    buckets = positions.buckets()
    # All keys of one distance share a bucket; keys to the right have others than those to the left.
    for distance in range(-63, 64):
        assert len(np.unique(np.diagonal(buckets, distance))) == 1
    assert set(np.unique(np.tril(buckets))) == set(range(16))
    assert set(buckets[np.triu_indices(64, 1)]) == set(range(17, 32))
