"""Threads: counts, fork, callers side by side, the interpreter's lock, Ctrl-C."""

import hashlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
from compare import assert_same_bits, qkv

import headwise as hw

pytestmark = pytest.mark.once


def python(code, timeout=120, **environment):
    """Run a script in a fresh interpreter with these variables and return the finished process."""
    clean = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


# --- how many -----------------------------------------------------------------------------------------------


def test_set_and_get(threads):
    for n in (1, 3, np.int64(2)):
        threads(n)
        assert hw.get_num_threads() == n


@pytest.mark.parametrize("n", [0, -1, 4097, 2**70])
def test_counts_that_are_refused(n):
    before = hw.get_num_threads()
    with pytest.raises(ValueError, match="n: expected 1 to 4096"):
        hw.set_num_threads(n)
    with pytest.raises(ValueError, match="n: expected 1 to 4096"), hw.num_threads(n):
        pass
    assert hw.get_num_threads() == before


@pytest.mark.parametrize("n", [1.0, "2", None, True])
def test_counts_of_the_wrong_kind(n):
    with pytest.raises(TypeError, match="n"):
        hw.set_num_threads(n)


def test_context_nests_and_is_put_back():
    before = hw.get_num_threads()
    with hw.num_threads(3):
        assert hw.get_num_threads() == 3
        with hw.num_threads(1):
            assert hw.get_num_threads() == 1
        assert hw.get_num_threads() == 3
        with pytest.raises(KeyError), hw.num_threads(5):
            raise KeyError
        assert hw.get_num_threads() == 3
    assert hw.get_num_threads() == before


def test_context_is_of_one_thread():
    seen = []
    with hw.num_threads(7):
        other = threading.Thread(target=lambda: seen.append(hw.get_num_threads()))
        other.start()
        other.join()
    assert seen == [hw.get_num_threads()]


def test_context_as_a_decorator():
    @hw.num_threads(5)
    def count():
        return hw.get_num_threads()

    assert count() == count() == 5
    assert hw.get_num_threads() != 5


SHOW = "import headwise; print(headwise.get_num_threads())"


@pytest.mark.parametrize(
    ("environment", "count"),
    [
        ({"HEADWISE_NUM_THREADS": "3", "OMP_NUM_THREADS": "5", "RAYON_NUM_THREADS": "6"}, 3),
        ({"HEADWISE_NUM_THREADS": "", "OMP_NUM_THREADS": "5", "RAYON_NUM_THREADS": "6"}, 5),
        ({"OMP_NUM_THREADS": "4,2"}, 4),
        ({"RAYON_NUM_THREADS": "6"}, 6),
        ({"RAYON_NUM_THREADS": "0"}, len(os.sched_getaffinity(0))),
        ({}, len(os.sched_getaffinity(0))),
    ],
)
def test_environment(environment, count):
    done = python(SHOW, **environment)
    assert done.returncode == 0, done.stderr
    # a cgroup's quota may allow fewer than the affinity
    assert int(done.stdout) == count or (int(done.stdout) < count and not environment)


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "100000"])
@pytest.mark.parametrize("name", ["HEADWISE_NUM_THREADS", "OMP_NUM_THREADS"])
def test_environment_that_is_no_count(name, value):
    code = """
        import headwise, numpy as np
        x = np.ones((8, 64, 64), dtype=np.float32)
        for call in (headwise.get_num_threads, lambda: headwise.scaled_dot_product_attention(x, x, x)):
            try:
                call()
            except ValueError as error:
                print(error)
    """
    done = python(code, **{name: value})
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all(name in line and value in line for line in lines)


def test_affinity_is_the_default():
    code = """
        import os
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        import headwise
        print(headwise.get_num_threads())
    """
    assert python(code).stdout.strip() == "1"


def test_results_do_not_depend_on_the_count(rng, threads):
    q, k, v = qkv(rng, 300, 300, 32, B=(2,), H=3)
    answers = []
    for n in (1, 2, 3, 16):
        threads(n)
        answers.append(hw.scaled_dot_product_attention(q, k, v))
    for other in answers[1:]:
        assert_same_bits(other, answers[0])


# --- fork ---------------------------------------------------------------------------------------------------

FORK = """
    import os, signal, sys, threading, warnings
    import numpy as np
    import headwise as hw

    # Python warns of a fork beside threads: that is the test
    warnings.simplefilter("ignore", DeprecationWarning)
    hw.set_num_threads(3)
    x = np.random.default_rng(0).standard_normal((4, 4, 100, 32)).astype(np.float32)
    want = hw.scaled_dot_product_attention(x, x, x)
    over = False

    def compute():
        n = 0
        while not over:
            n += 1
            with hw.num_threads(2 + n % 5):  # larger counts start new pools
                hw.scaled_dot_product_attention(x, x, x)

    busy = [threading.Thread(target=compute) for _ in range(int(sys.argv[1]))]
    for thread in busy:
        thread.start()
    bad = 0
    for _ in range(100):
        child = os.fork()
        if child == 0:
            signal.alarm(30)  # ends a child that hangs
            good = np.array_equal(hw.scaled_dot_product_attention(x, x, x), want)
            os._exit(0 if good else 1)
        bad += os.waitpid(child, 0)[1] != 0
    over = True
    for thread in busy:
        thread.join()
    assert np.array_equal(hw.scaled_dot_product_attention(x, x, x), want)  # the parent's pool lives
    print("children that failed:", bad)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("busy", [0, 2])
def test_fork(busy):
    code = FORK.replace("sys.argv[1]", str(busy))
    done = python(code, timeout=300)
    assert done.stdout.strip() == "children that failed: 0", done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_fork_of_a_fork():
    code = """
        import os, signal
        import numpy as np
        import headwise as hw
        hw.set_num_threads(2)
        x = np.ones((4, 4, 100, 32), dtype=np.float32)
        hw.scaled_dot_product_attention(x, x, x)
        for _ in range(3):
            child = os.fork()
            if child:
                os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            signal.alarm(30)
            hw.scaled_dot_product_attention(x, x, x)
        os._exit(7)
    """
    assert python(code).returncode == 7


# --- callers side by side -----------------------------------------------------------------------------------


def test_many_callers_get_the_same_bits(rng, threads):
    threads(2)
    arrays = [qkv(rng, 65, 130, 32, H=4) for _ in range(4)]
    want = [hw.scaled_dot_product_attention(*a) for a in arrays]
    start, faults = threading.Barrier(32), []

    def call(n):
        try:
            start.wait()
            for turn in range(10):
                i = (n + turn) % len(arrays)
                assert_same_bits(hw.scaled_dot_product_attention(*arrays[i]), want[i])
        except BaseException as error:
            faults.append(error)

    callers = [threading.Thread(target=call, args=(n,)) for n in range(32)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not faults


def longest_pause(call):
    """Return the longest time that a thread of pure Python had to wait for its turn while `call` ran."""
    running, pauses = threading.Event(), [0.0]

    def tick():
        last = time.perf_counter()
        while running.is_set():
            time.sleep(0.0002)  # gives the lock away and asks for it again
            now = time.perf_counter()
            pauses.append(now - last)
            last = now

    running.set()
    ticker = threading.Thread(target=tick)
    ticker.start()
    time.sleep(0.01)
    del pauses[1:]
    answer = call()
    running.clear()
    ticker.join()
    del answer  # it is the caller who gives a result's memory back, not the call
    return max(pauses)


def numbers(*shape):
    """Return float32 numbers, quickly made."""
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape) % 7


# Each step of a call (reading masks, converting, computing, rounding, writing) has millions of numbers.
RELEASED = {
    "attention": (lambda x: hw.scaled_dot_product_attention(x, x, x), lambda: numbers(8, 700, 64)),
    "weights": (
        lambda x: hw.scaled_dot_product_attention(x, x, x, return_weights=True),
        lambda: numbers(4, 1000, 8),
    ),
    "half": (hw.relu, lambda: numbers(100_000, 96).astype(np.float16)),
    "strided": (hw.relu, lambda: numbers(100_000, 192)[:, ::2]),
    "byte-swapped": (hw.relu, lambda: numbers(100_000, 96).astype(">f4")),
    "integers": (hw.relu, lambda: numbers(100_000, 96).astype(np.int32)),
    "boolean mask": (
        lambda m: hw.allowed_mask(3000, 3000, attn_mask=m),
        lambda: numbers(3000, 3000) > 2,
    ),
    "float64 mask": (
        lambda m: hw.allowed_mask(3000, 3000, attn_mask=m),
        lambda: numbers(3000, 3000).astype(np.float64),
    ),
    "softmax": (hw.softmax, lambda: numbers(100_000, 96)),
    "linear": (lambda x: hw.linear(x, x[:64]), lambda: numbers(50_000, 64)),
}


@pytest.mark.parametrize("name", RELEASED)
def test_the_interpreter_is_not_held(name):
    # The system's own scheduling pauses the ticker too where cores are few or busy. So the best of some runs
    # counts, and on a busy machine the bar is what a computation that surely holds no lock reaches.
    function, make = RELEASED[name]
    array, block = make(), bytes(1 << 26)
    tries = []
    with hw.num_threads(1):
        function(array)
        for _ in range(5):
            free = min(longest_pause(lambda: hashlib.sha256(block)) for _ in range(3))
            held = min(longest_pause(lambda: function(array)) for _ in range(5))
            tries.append(f"{held * 1e3:.1f} ms ({free * 1e3:.1f} ms beside a free thread)")
            if held < max(0.005, 1.5 * free):
                return
    pytest.fail(f"the lock was held: {tries}")


def test_the_measure_of_pauses_sees_a_held_lock():
    numbers = list(range(2_000_000))
    assert (
        longest_pause(lambda: numbers.sort(key=None) or sorted(numbers, reverse=True) or sum(numbers)) > 0.005
    )


# --- Ctrl-C -------------------------------------------------------------------------------------------------

INTERRUPT = """
    import os, signal, sys, threading, time
    import numpy as np
    import headwise as hw

    # A process started in the background of a shell is told to ignore SIGINT, and Python keeps to that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    hw.set_num_threads(THREADS)
    x = np.ones((1, 8, 20000, 64), dtype=np.float32)
    small = np.ones((4, 64, 64), dtype=np.float32)
    want = hw.scaled_dot_product_attention(small, small, small)
    sent = []

    def interrupt():
        time.sleep(0.3)
        sent.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    try:
        hw.scaled_dot_product_attention(x, x, x)
        print("not interrupted")
    except KeyboardInterrupt:
        print("interrupted", time.perf_counter() - sent[0])
    assert np.array_equal(hw.scaled_dot_product_attention(small, small, small), want)
    print("usable")
"""


@pytest.mark.parametrize("threads_used", [1, 2])
def test_interrupt(threads_used):
    done = python(INTERRUPT.replace("THREADS", str(threads_used)))
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stderr
    word, seconds = lines[0].split()
    assert word == "interrupted"
    # The bar is 0.1 s; an unoptimised build's tasks are many times longer, hence the second number.
    assert float(seconds) < (0.1 if hw.show_config("dicts")["build"] == "release" else 2.0)
    assert lines[1] == "usable"


def test_a_handler_that_raises_ends_the_call():
    class Alarm(Exception):
        pass

    def handler(*_):
        raise Alarm

    before = signal.signal(signal.SIGALRM, handler)
    x = np.ones((1, 8, 20000, 64), dtype=np.float32)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(Alarm):
            hw.scaled_dot_product_attention(x, x, x)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert hw.scaled_dot_product_attention(x[:, :, :8], x[:, :, :8], x[:, :, :8]).shape == (1, 8, 8, 64)


def test_a_handler_that_returns_changes_nothing(rng):
    q, k, v = qkv(rng, 8000, 8000, 32, H=2)
    want = hw.scaled_dot_product_attention(q, k, v)
    calls = []
    before = signal.signal(signal.SIGALRM, lambda *_: calls.append(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.005)
        out = hw.scaled_dot_product_attention(q, k, v)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert calls
    assert_same_bits(out, want)
