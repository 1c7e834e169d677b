"""Fixtures that all tests share: seeded generators, and thread counts put back after a test."""

import hypothesis
import numpy as np
import pytest

import headwise as hw

hypothesis.settings.register_profile("headwise", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("headwise")


@pytest.fixture
def rng():
    """Return a fresh generator with a fixed seed: a test sees the same numbers whatever ran before it."""
    return np.random.default_rng(20260101)


@pytest.fixture
def threads():
    """Return set_num_threads, and put the count back when the test ends."""
    before = hw.get_num_threads()
    yield hw.set_num_threads
    hw.set_num_threads(before)
