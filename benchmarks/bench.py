"""Measure headwise against the machine's own peak, and against PyTorch where it is installed.

Within one row everything alternates in the same process: the peak loop (independent fused multiply-adds in
registers), headwise, PyTorch; the medians are compared. So the ratios hold even where the clock does not. A
multiply-add counts as two operations; blocked pairs of a causal mask are not counted.

Run by ``make bench``; ``make bench BENCH_PYTHON=...`` names an interpreter that has PyTorch, and
``BENCH_OPTIONS="--threads 2 --only linear"`` passes options on.
"""

import argparse
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np

import headwise as hw
from headwise._core import _PackedLinear, _peak_gflops
from headwise._fetch import fetched

TORCH = importlib.util.find_spec("torch") is not None
TRANSFORMERS = TORCH and importlib.util.find_spec("transformers") is not None


@dataclass
class Row:
    """One kind of work: what it is called, how many operations it takes, and who does it."""

    name: str
    operations: float
    headwise: Callable[[], object]
    torch: Callable[[], object] | None = None


def numbers(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return normal numbers, the same in each run."""
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def linear_rows() -> Iterator[Row]:
    """Yield products with a weight matrix: packed once, as in layers, and by every call of `linear`."""
    for m, k, n in [
        (128, 384, 384),
        (128, 768, 3072),
        (1024, 384, 1536),
        (4096, 384, 384),
        (4096, 1536, 384),
    ]:
        x, weight, bias = numbers(m, k), numbers(n, k), numbers(n)
        packed = partial(_PackedLinear(weight, bias).multiply, x)
        for name, multiply in [("packed once", packed), ("one call", partial(hw.linear, x, weight, bias))]:
            row = Row(f"linear {m} x {k} -> {n}, {name}", 2 * m * k * n, multiply)
            if TORCH:
                import torch

                tensors = [torch.from_numpy(a) for a in (x, weight, bias)]
                row.torch = partial(torch.nn.functional.linear, *tensors)
            yield row


def attention_rows() -> Iterator[Row]:
    """Yield attention without weights: long, batched, causal, and one query against many keys."""
    for name, batch, heads, length, keys, width, causal in [
        ("attention L 2048, 8 heads of 64", 1, 8, 2048, 2048, 64, False),
        ("attention 32 x 128, 12 heads of 32", 32, 12, 128, 128, 32, False),
        ("attention causal L 4096, 8 heads of 64", 1, 8, 4096, 4096, 64, True),
        ("attention decode S 4096, 32 heads of 128", 1, 32, 1, 4096, 128, False),
    ]:
        query = numbers(batch, heads, length, width)
        key, value = numbers(2, batch, heads, keys, width)
        pairs = length * (length + 1) / 2 if causal else length * keys
        operations = 4 * batch * heads * pairs * width

        attend = partial(hw.scaled_dot_product_attention, query, key, value, is_causal=causal)
        row = Row(name, operations, attend)
        if TORCH:
            import torch

            tensors = [torch.from_numpy(np.ascontiguousarray(a)) for a in (query, key, value)]
            sdpa = torch.nn.functional.scaled_dot_product_attention
            row.torch = partial(sdpa, *tensors, is_causal=causal)
        yield row


def layer_rows() -> Iterator[Row]:
    """Yield one attention layer and a whole encoder."""
    batch, length, width, heads = 8, 256, 768, 12
    x = numbers(batch, length, width)
    layer = hw.MultiHeadAttention(width, heads, rng=0)
    operations = batch * (8 * length * width**2 + 4 * length**2 * width)
    row = Row("MultiHeadAttention 8 x 256, D 768, 12 heads", operations, partial(layer, x))
    if TORCH:
        import torch

        peer = torch.nn.MultiheadAttention(width, heads, batch_first=True).eval()
        tensor = torch.from_numpy(x)
        row.torch = partial(peer, tensor, tensor, tensor, need_weights=False)
    yield row

    layers, batch, length, width, heads, inner = 6, 32, 128, 512, 8, 2048
    y = numbers(batch, length, width)
    encoder = hw.Encoder(layers, width, heads, inner, rng=0)
    per_token = 8 * width**2 + 4 * length * width + 4 * width * inner
    row = Row(
        "Encoder 6 layers, D 512, F 2048, 32 x 128", layers * batch * length * per_token, lambda: encoder(y)
    )
    if TORCH:
        import torch

        block = torch.nn.TransformerEncoderLayer(width, heads, inner, batch_first=True)
        stack = torch.nn.TransformerEncoder(block, layers).eval()
        row.torch = partial(stack, torch.from_numpy(y))
    yield row


@cache
def minilm() -> tuple[Any, Any]:
    """Load MiniLM with headwise, and with transformers where that is installed."""
    folder = fetched("minilm")
    if folder is None:
        sys.exit("MiniLM is not here: run `headwise fetch minilm`")
    peer = None
    if TRANSFORMERS:
        from transformers import AutoModel

        peer = AutoModel.from_pretrained(folder).eval()
    return hw.TextEncoder.from_pretrained(folder), peer


def minilm_rows() -> Iterator[Row]:
    """Yield MiniLM's forward pass on full batches of ids."""
    for batch, length in [(1, 16), (1, 128), (32, 32), (32, 128), (8, 512)]:
        model, peer = minilm()
        ids = np.random.default_rng(0).integers(1000, 20000, (batch, length))
        layers, width, inner = 6, 384, 1536
        per_token = 8 * width**2 + 4 * length * width + 4 * width * inner
        row = Row(
            f"MiniLM {batch} x {length}",
            layers * batch * length * per_token,
            partial(model.forward, ids),
        )
        if peer is not None:
            import torch

            row.torch = partial(peer, torch.from_numpy(ids))
        yield row


GROUPS = {"linear": linear_rows, "attention": attention_rows, "layers": layer_rows, "minilm": minilm_rows}


def measure(row: Row, threads: int, seconds: float) -> tuple[float, float, float | None]:
    """Return the median GFLOP/s of the peak loop, of headwise and of PyTorch, taken in turn."""
    peaks: list[float] = []
    times: dict[Callable[[], object], list[float]] = {row.headwise: []}
    if row.torch is not None:
        times[row.torch] = []
    for work in times:
        work()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(peaks) < 5:
        peaks.append(_peak_gflops("float32", threads))
        for work, took in times.items():
            start = time.perf_counter()
            work()
            took.append(time.perf_counter() - start)
    ours, *others = [row.operations / statistics.median(took) / 1e9 for took in times.values()]
    return statistics.median(peaks), ours, others[0] if others else None


def main() -> None:
    """Measure every row and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0, help="how long to measure each row")
    parser.add_argument("--only", choices=GROUPS, action="append", help="a group of rows; may be repeated")
    options = parser.parse_args()
    hw.set_num_threads(options.threads)
    print(f"headwise {hw.__version__} on {hw.isa()}, float32, {options.threads} thread(s); GFLOP/s, medians")
    if TORCH:
        import torch

        torch.set_num_threads(options.threads)
        torch.set_grad_enabled(False)
        print(f"torch {torch.__version__}")
    else:
        print("torch is not installed here, so nothing is compared with it")
    print(f"\n{'':<44}{'peak':>8}{'headwise':>10}{'% of peak':>11}{'torch':>8}{'ratio':>8}")
    for group in options.only or GROUPS:
        for row in GROUPS[group]():
            peak, ours, theirs = measure(row, options.threads, options.seconds)
            line = f"{row.name:<44}{peak:8.0f}{ours:10.1f}{100 * ours / peak:10.0f}%"
            print(line + (f"{theirs:8.1f}{ours / theirs:8.2f}" if theirs is not None else ""), flush=True)


if __name__ == "__main__":
    main()
