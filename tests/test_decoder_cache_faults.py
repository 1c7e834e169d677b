"""Steps that are refused, fail, are interrupted or meet in one cache: it stays whole."""

import os
import signal
import sys
import threading

import numpy as np
import pytest
from compare import assert_same_bits, normals
from layers import randomize
from test_decoder_cache import D, made, walk

import headwise as hw

pytestmark = pytest.mark.once


# --- what is refused ----------------------------------------------------------------------------------------

X, M = np.ones((2, 5, D), dtype=np.float32), np.ones((2, 3, D), dtype=np.float32)


REFUSED = {
    "width": (X[..., :31], {}, ValueError, r"^x: .*D.*32.*31"),
    "batch": (X[:1], {}, ValueError, "^x: .*2.*1"),
    "larger batch": (np.ones((3, 5, D)), {}, ValueError, "^x: .*2.*3"),
    "no batch": (X[0], {}, ValueError, "^x: .*2"),
    "list": (list(X), {}, TypeError, "^x: .*list"),
    "complex": (X.astype(complex), {}, TypeError, "^x: .*complex"),
    "lengths too large": (X, {"lengths": [5, 6]}, ValueError, "^lengths: .*5.*6"),
    "negative lengths": (X, {"lengths": [5, -1]}, ValueError, "^lengths: .*-1"),
    "lengths of another batch": (X, {"lengths": [5, 5, 5]}, ValueError, "^lengths: .*B"),
    "lengths of floats": (X, {"lengths": [5.0, 5.0]}, TypeError, "^lengths"),
    "weights of some heads": (X, {"need_weights": [(0, 1)]}, TypeError, "need_weights"),
    "training": (X, {"training": True}, TypeError, "training"),
    "too large": (np.broadcast_to(X[:, :1], (2, 10**12, D)), {}, MemoryError, "allocate"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_failing_step_leaves_the_cache_as_it_was(rng, name):
    x, keywords, error, text = REFUSED[name]
    decoder = made()
    history = normals(rng, 2, 8, D)
    cache = decoder.new_cache(M)
    decoder.step(history[:, :3], cache)
    before = [a.copy() for a in (*cache.keys, *cache.values)]
    with pytest.raises(error, match=text):
        decoder.step(x, cache, **keywords)
    assert cache.lengths.tolist() == [3, 3]
    for one, two in zip(before, (*cache.keys, *cache.values), strict=True):
        assert_same_bits(one, two)
    assert_same_bits(decoder.step(history[:, 3:], cache), decoder(history, M)[:, 3:])


def test_caches_of_other_decoders(rng):
    decoder = made()
    history = normals(rng, 2, 8, D)
    cache = decoder.new_cache(M)
    decoder.step(history[:, :3], cache)
    others = {
        "layers": hw.Decoder(3, D, 4, 48),
        "heads": hw.Decoder(2, D, 8, 48),
        "width": hw.Decoder(2, D, 4, 48, head_dim=10),
        "grouped": hw.Decoder(2, D, 4, 48, num_kv_heads=2),
    }
    for other in others.values():
        with pytest.raises(ValueError, match=r"^cache"):
            other.step(X, cache)
    with pytest.raises(TypeError, match=r"^cache.*float64.*float32|^cache.*float32.*float64"):
        decoder.to("float64").step(X.astype(np.float64), cache)
    for nothing in (None, {}, cache.keys, M):
        with pytest.raises(TypeError, match=r"^cache: .*DecoderCache"):
            decoder.step(X, nothing)
    assert_same_bits(decoder.step(history[:, 3:], cache), decoder(history, M)[:, 3:])


def test_a_cache_of_another_decoder_of_the_same_shape(rng):
    """Its arrays fit, but its keys are projections by other parameters."""
    decoder, other = made(), made(seed=8)
    cache = decoder.new_cache(M)
    decoder.step(X, cache)
    with pytest.raises(ValueError, match=r"^cache"):
        other.step(X, cache)


MEMORIES = {
    "width": (M[..., :31], {}, ValueError, "^memory: .*D.*32.*31"),
    "axes": (M[None], {}, ValueError, "^memory"),
    "lengths": (M, {"memory_lengths": [3, 4]}, ValueError, "^memory_lengths: .*3.*4"),
    "mask": (M, {"memory_key_mask": np.ones((2, 5), bool)}, ValueError, "^memory_key_mask: .*2, 5"),
    "mask of floats": (M, {"memory_key_mask": np.ones((2, 3))}, TypeError, "^memory_key_mask"),
    "lengths of a list": (list(M), {"memory_lengths": [3, 3]}, ValueError, "^memory_lengths"),
    "mask of a list": (list(M), {"memory_key_mask": np.ones((2, 3), bool)}, ValueError, "^memory_key_mask"),
    "torch's mask": (
        M, {"memory_key_padding_mask": np.zeros((2, 3), bool)}, TypeError, "pass memory_key_mask=",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MEMORIES)
def test_memories_that_are_refused(name):
    memory, keywords, error, text = MEMORIES[name]
    with pytest.raises(error, match=text):
        made().new_cache(memory, **keywords)


# --- threads, processes -------------------------------------------------------------------------------------


def together(*calls):
    """Run functions in threads that start together; return what they raised."""
    faults, start = [], threading.Barrier(len(calls))

    def run(call):
        start.wait()
        try:
            call()
        except BaseException as error:
            faults.append(error)

    callers = [threading.Thread(target=run, args=(call,)) for call in calls]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    return faults


@pytest.fixture
def often():
    """Let Python's threads take turns often, so that they meet at every place."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("often")
def test_threads_with_caches_of_their_own(rng, threads):
    threads(2)
    decoder = made("modern")
    x, memory = normals(rng, 8, 70, D), normals(rng, 8, 9, D)
    want, outs = decoder(x, memory), [None] * 8

    def call(b):
        outs[b] = walk(decoder, x[b : b + 1], decoder.new_cache(memory[b]), [1] * 60 + [10])

    assert not together(*[lambda b=b: call(b) for b in range(8)])
    assert_same_bits(np.concatenate(outs), want)


@pytest.mark.usefixtures("often")
def test_threads_on_one_cache(rng, threads):
    """One may be told that the cache is in use. What the others were given is in it, in some order."""
    threads(2)
    decoder = made()
    memory, token = normals(rng, 2, 4, D), np.ones((2, 1, D), dtype=np.float32)
    want = decoder(np.ones((2, 301, D), dtype=np.float32), memory)
    for _ in range(20):
        cache, done = decoder.new_cache(memory), []

        def call(cache=cache, done=done):
            for _ in range(100):
                try:
                    done.append(decoder.step(token, cache))
                except ValueError as error:
                    if not str(error).startswith("cache"):
                        raise

        assert not together(call, call, call)
        n = len(done)
        assert cache.lengths.tolist() == [n, n]
        assert {out.tobytes() for out in done} == {want[:, i : i + 1].tobytes() for i in range(n)}
        assert_same_bits(decoder.step(token, cache), want[:, n : n + 1])


CHANGES = {
    "reorder": lambda decoder, cache, token: cache.reorder([1, 0]),
    "copy": lambda decoder, cache, token: decoder.step(token, cache.copy()),
    "crop": lambda decoder, cache, token: cache.crop(0),
}


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("change", CHANGES)
def test_a_cache_that_is_changed_beside_steps(rng, threads, change):
    """Either comes first or is told that the cache is in use; afterwards the cache is whole."""
    threads(2)
    decoder = made()
    memory, token = normals(rng, 2, 4, D), np.ones((2, 1, D), dtype=np.float32)
    memory[1] = memory[0]  # so that rows may change places
    want = decoder(np.ones((2, 101, D), dtype=np.float32), memory)
    for _ in range(10):
        cache = decoder.new_cache(memory)

        def repeat(call, cache=cache):
            for _ in range(100):
                try:
                    call(decoder, cache, token)
                except ValueError as error:
                    if not str(error).startswith("cache"):
                        raise

        step = lambda decoder, cache, token: decoder.step(token, cache)  # noqa: E731
        assert not together(lambda r=repeat, s=step: r(s), lambda r=repeat: r(CHANGES[change]))
        n, m = cache.lengths
        assert n == m
        assert_same_bits(decoder.step(token, cache), want[:, n : n + 1])


def test_an_interrupted_step_leaves_the_cache_as_it_was(rng):
    class Alarm(Exception):
        pass

    def handler(*_):
        raise Alarm

    decoder = randomize(hw.Decoder(1, 16, 2, 8), rng)
    x, memory = normals(rng, 1, 80, 16), normals(rng, 1, 5, 16)
    cache = decoder.new_cache(memory)
    decoder.step(x[:, :30], cache)
    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(Alarm):
            decoder.step(np.ones((1, 60_000, 16), dtype=np.float32), cache)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert cache.lengths.tolist() == [30]
    assert_same_bits(walk(decoder, x[:, 30:], cache, [1, 49]), decoder(x, memory)[:, 30:])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_goes_on(rng, threads):
    threads(2)
    decoder = made()
    x, memory = normals(rng, 4, 70, D), normals(rng, 4, 9, D)
    want = decoder(x, memory)
    cache = decoder.new_cache(memory)
    decoder.step(x[:, :60], cache)
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        os._exit(0 if np.array_equal(walk(decoder, x[:, 60:], cache, [1, 9]), want[:, 60:]) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert_same_bits(walk(decoder, x[:, 60:], cache, [3, 7]), want[:, 60:])
