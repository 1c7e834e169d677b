"""What is measured: one generator of rows for each group, so that a row's arrays live no longer than the row.

A multiply-add counts as two operations; pairs that a causal mask blocks and padding are not counted.
"""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

import headwise as hw
from benchmarks import array_peers
from benchmarks.decoding import decoding_rows
from benchmarks.model_peers import MAX_TOKENS, Models
from benchmarks.results import OURS
from benchmarks.row import Calls, Row, numbers
from headwise._core import _PackedLinear

CORPUS = Path(__file__).parent.parent / "tests" / "data" / "corpus.jsonl"
MINILM = {"layers": 6, "width": 384, "inner": 1536}
"""all-MiniLM-L6-v2; 12 heads of 32."""


def encoder_operations(tokens: int, length: int, layers: int, width: int, inner: int) -> float:
    """Return the operations of an encoder: four projections, scores and sums over keys, two linear layers."""
    return layers * tokens * (8.0 * width**2 + 4.0 * length * width + 4.0 * width * inner)


def linear_rows(models: Models) -> Iterator[Row]:
    """Yield products with a weight matrix: packed once, as in layers, and by every call of `linear`."""
    for m, k, n in [
        (128, 384, 384),
        (128, 768, 3072),
        (1024, 384, 1536),
        (4096, 384, 384),
        (4096, 1536, 384),
        (1024, 3072, 768),
    ]:
        x, weight, bias = numbers(m, k), numbers(n, k) / np.float32(np.sqrt(k)), numbers(n)
        packed = partial(_PackedLinear(weight, bias).multiply, x)
        peers = array_peers.linear(models.setup, x, weight, bias)
        for name, multiply in [("packed once", packed), ("one call", partial(hw.linear, x, weight, bias))]:
            yield Row(f"linear {m} x {k} -> {n}, {name}", 2.0 * m * k * n, {OURS: multiply, **peers})


def attention_rows(models: Models) -> Iterator[Row]:
    """Yield attention without weights: long, batched, causal, and one query against many keys."""
    for name, batch, heads, length, keys, width, causal in [
        ("attention L 2048, 8 heads of 64", 1, 8, 2048, 2048, 64, False),
        ("attention 32 x 128, 12 heads of 32", 32, 12, 128, 128, 32, False),
        ("attention causal L 4096, 8 heads of 64", 1, 8, 4096, 4096, 64, True),
        ("attention decode S 4096, 32 heads of 128", 1, 32, 1, 4096, 128, False),
    ]:
        query = numbers(batch, heads, length, width)
        key, value = (np.ascontiguousarray(a) for a in numbers(2, batch, heads, keys, width))
        pairs = length * (length + 1) / 2 if causal else length * keys
        attend = partial(hw.scaled_dot_product_attention, query, key, value, is_causal=causal)
        decode = length == 1
        yield Row(
            name,
            4.0 * batch * heads * pairs * width,
            {OURS: attend, **array_peers.attention(models.setup, query, key, value, causal=causal)},
            bytes_read=key.nbytes + value.nbytes if decode else 0.0,
        )


def layer_rows(models: Models) -> Iterator[Row]:
    """Yield one attention layer and a whole encoder."""
    batch, length, width, heads = 8, 256, 768, 12
    x = numbers(batch, length, width)
    layer = hw.MultiHeadAttention(width, heads, rng=0)
    yield Row(
        f"MultiHeadAttention {batch} x {length}, D {width}, {heads} heads",
        encoder_operations(batch * length, length, 1, width, 0),
        {OURS: partial(layer, x), **array_peers.multi_head_attention(models.setup, layer, x, heads)},
    )

    layers, batch, length, width, heads, inner = 6, 32, 128, 512, 8, 2048
    y = numbers(batch, length, width)
    encoder = hw.Encoder(layers, width, heads, inner, rng=0)
    calls: Calls = {
        OURS: lambda: encoder(y),
        **array_peers.encoder(models.setup, encoder, y, layers, heads, inner),
    }
    yield Row(
        f"Encoder {layers} layers, D {width}, F {inner}, {batch} x {length}",
        encoder_operations(batch * length, length, layers, width, inner),
        calls,
    )

    # GELU, since relu has a kink: gradients show a hidden number that is rounded to the other side of it.
    smooth = hw.Encoder(layers, width, heads, inner, activation="gelu", rng=0)
    d_out = numbers(2, batch, length, width)[1]

    def both() -> object:
        _, pullback = smooth.vjp(y)
        d_y, _ = pullback(d_out)
        return d_y

    yield Row(
        "the same with GELU, forward and backward",
        # Each product has two gradients of its own size.
        3 * encoder_operations(batch * length, length, layers, width, inner),
        {OURS: both, **array_peers.encoder_training(models.setup, smooth, y, d_out, layers, heads, inner)},
    )


def minilm_rows(models: Models) -> Iterator[Row]:
    """Yield MiniLM's forward pass on full batches of ids, to the last hidden state."""
    model = hw.TextEncoder.from_pretrained(models.setup.minilm)
    weights = 4 * MINILM["layers"] * (4 * MINILM["width"] ** 2 + 2 * MINILM["width"] * MINILM["inner"])
    for batch, length in [(1, 16), (1, 128), (32, 32), (32, 128), (8, 512)]:
        ids = np.random.default_rng(0).integers(1000, 20000, (batch, length))
        calls: Calls = {OURS: partial(model.forward, ids)}
        for name, forward in models.forwards().items():
            calls[name] = partial(forward, ids, np.ones_like(ids))
        yield Row(
            f"MiniLM {batch} x {length}",
            encoder_operations(batch * length, length, **MINILM),
            calls,
            bytes_read=weights,
        )


def sentence_rows(models: Models) -> Iterator[Row]:
    """Yield the whole way from texts to embeddings: tokens, forward pass, pooling, normalising."""
    texts = [json.loads(line)["text"] for line in CORPUS.read_text(encoding="utf-8").splitlines()]
    sentences = f"{len(texts):,} texts to embeddings, texts/s"
    paragraphs = f"{LONG_TEXTS} texts of 200 to 500 tokens, texts/s"
    for name, chosen, longest in [(sentences, texts, MAX_TOKENS), (paragraphs, long_texts(), 512)]:
        model = hw.TextEncoder.from_pretrained(models.setup.minilm, max_length=longest)
        lengths = [int(model.tokenize(text)["attention_mask"].sum()) for text in chosen]
        calls: Calls = {OURS: partial(model.encode, chosen, show_progress_bar=False)}
        for peer, embed in models.embedders(longest).items():
            calls[peer] = partial(embed, chosen)
        yield Row(
            name,
            sum(encoder_operations(length, length, **MINILM) for length in lengths),
            calls,
            items=len(chosen),
            unit="texts/s",
        )


LONG_TEXTS = 48


def long_texts() -> list[str]:
    """Return paragraphs of the corpus' English sentences: 180 to 430 words, which are 200 to 500 tokens."""
    lines = [json.loads(line) for line in CORPUS.read_text(encoding="utf-8").splitlines()]
    words = " ".join(line["text"] for line in lines if line["kind"] == "sentence").split()
    rng, start, texts = np.random.default_rng(0), 0, []
    for count in rng.integers(180, 430, LONG_TEXTS):
        texts.append(" ".join(words[(start + i) % len(words)] for i in range(count)))
        start += count
    return texts


GROUPS: dict[str, Callable[[Models], Iterator[Row]]] = {
    "minilm": minilm_rows,
    "sentences": sentence_rows,
    "linear": linear_rows,
    "attention": attention_rows,
    "layers": layer_rows,
    "decoding": decoding_rows,
}
