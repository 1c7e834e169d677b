"""TextEncoder among threads and processes: interrupted, called by many, in forked children, on huge texts."""

import os
import signal
import threading
import time

import numpy as np
import pytest
from minilm import minilm_folder

import headwise as hw

pytestmark = pytest.mark.once

TEXTS = [f"the dog number {n} ate the food" for n in range(40)]


@pytest.fixture(scope="module")
def encoder():
    return hw.TextEncoder.from_pretrained(minilm_folder())


class Alarm(Exception):
    """What the signal handler of these tests raises."""


@pytest.fixture
def alarm():
    """Return a function that raises `Alarm` in the main thread after so many seconds."""

    def handler(*_):
        raise Alarm

    before = signal.signal(signal.SIGALRM, handler)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("work", ["encode", "tokenize", "lengths"])
def test_a_signal_ends_the_work(encoder, threads, alarm, count, work):
    threads(count)
    want = encoder.encode(TEXTS)
    paragraph = "the dog ate the food because it was hungry " * 30
    calls = {
        "encode": lambda: encoder.encode([paragraph] * 1000, return_info=True),
        "tokenize": lambda: encoder.tokenize([paragraph] * 100_000),
        "lengths": lambda: encoder._core.lengths([paragraph] * 100_000),
    }
    alarm(0.3)
    started = time.perf_counter()
    with pytest.raises(Alarm):
        calls[work]()
    # The alarm comes at 0.3 s; what it stops would take far more than two.
    assert time.perf_counter() - started < 2
    assert np.array_equal(encoder.encode(TEXTS), want)


def test_many_callers_get_the_same_bits(encoder, threads):
    threads(2)
    want = encoder.encode(TEXTS)
    got = [None] * 8
    callers = [
        threading.Thread(target=lambda n=n: got.__setitem__(n, encoder.encode(TEXTS[n:]))) for n in range(8)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert all(np.array_equal(rows, want[n:]) for n, rows in enumerate(got))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_encodes(encoder, threads):
    threads(2)
    want = encoder.encode(TEXTS)
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        os._exit(0 if np.array_equal(encoder.encode(TEXTS), want) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("count", [1, 2])
def test_a_megabyte_in_one_text(encoder, threads, count):
    threads(count)
    # More texts than one task tokenizes, so that two threads have something to do.
    texts = ["dog " * 250_000, *TEXTS[:20], "x" * 1_000_000]
    rows, info = encoder.encode(texts, return_info=True)
    assert info.token_counts[[0, -1]].tolist() == [250_002, 3]
    assert info.used_counts[[0, -1]].tolist() == [256, 3]
    assert np.array_equal(rows[0], encoder.encode("dog " * 254))
    assert np.array_equal(rows[1:-1], encoder.encode(TEXTS[:20]))


def test_an_error_in_one_of_many_texts(encoder, threads):
    threads(2)
    with pytest.raises(ValueError, match="inputs"):
        encoder.encode([*TEXTS, "\ud800"])
    encoder = hw.TextEncoder.from_pretrained(minilm_folder(), max_length=2)
    with pytest.raises(ValueError, match="pair"):
        encoder.encode([*TEXTS * 10, ("a", "b")])
