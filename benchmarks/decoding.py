"""Decoding step by step: headwise's decoder and PyTorch's, both with a cache of keys and values.

PyTorch's decoder layer has no cache, so its modules are called one by one here: the same products from the
same parameters, `scaled_dot_product_attention` over the rows so far of an array that is made once, keys and
values of the memory computed once. Targets are given, so that only the decoder is timed.
"""

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np

import headwise as hw
from benchmarks.model_peers import Models
from benchmarks.peers import Setup
from benchmarks.results import OURS
from benchmarks.row import Array, Calls, Row, numbers

Tensor: TypeAlias = Any
"""PyTorch's, which not everybody has."""

LAYERS, WIDTH, HEADS, INNER = 6, 512, 8, 2048
"""The base model of Vaswani et al. (2017)."""

STEPS, SOURCE = 32, 32
"""Tokens that are decoded, and tokens of the source."""


def decoding_rows(models: Models) -> Iterator[Row]:
    """Yield steps of one sequence, which stream the weights from memory, and of a batch, which computes."""
    decoder = hw.Decoder(LAYERS, WIDTH, HEADS, INNER, rng=0)
    for batch in (1, 32):
        memory, target = numbers(batch, SOURCE, WIDTH), numbers(2, batch, STEPS, WIDTH)[1]

        def ours(memory: Array = memory, target: Array = target) -> Array:
            cache = decoder.new_cache(memory)
            steps = [decoder.step(target[:, i : i + 1], cache) for i in range(STEPS)]
            return np.concatenate(steps, axis=1)

        products = 2.0 * (6 * WIDTH**2 + 2 * WIDTH * INNER) * STEPS + 2.0 * 2 * WIDTH**2 * SOURCE
        attention = 4.0 * WIDTH * (STEPS * (STEPS + 1) / 2 + STEPS * SOURCE)
        yield Row(
            f"Decoder {LAYERS} layers, D {WIDTH}, F {INNER}, {STEPS} steps of {batch}, tokens/s",
            batch * LAYERS * (products + attention),
            {OURS: ours, **torch_steps(models.setup, decoder, memory, target)},
            bytes_read=STEPS * 4.0 * LAYERS * (6 * WIDTH**2 + 2 * WIDTH * INNER),
            items=batch * STEPS,
            unit="tokens/s",
        )


def torch_steps(setup: Setup, ours: hw.Decoder, memory: Array, target: Array) -> Calls:
    """Return PyTorch's decoder with the same parameters, stepped with a cache."""
    if "torch" not in setup.peers:
        return {}
    import torch
    from torch.nn.functional import linear, scaled_dot_product_attention

    block = torch.nn.TransformerDecoderLayer(WIDTH, HEADS, INNER, batch_first=True)
    peer = torch.nn.TransformerDecoder(block, LAYERS).eval()
    peer.load_state_dict({name: torch.from_numpy(array) for name, array in ours.state_dict().items()})
    source, tokens = torch.from_numpy(memory), torch.from_numpy(target)
    batch = len(memory)

    def heads(x: Tensor) -> Tensor:
        return x.view(batch, -1, HEADS, WIDTH // HEADS).transpose(1, 2)

    def projections(attention: Tensor) -> list[tuple[Tensor, Tensor]]:
        weights = attention.in_proj_weight.chunk(3)
        biases = attention.in_proj_bias.chunk(3)
        return list(zip(weights, biases, strict=True))

    def joined(attention: Tensor, result: Tensor) -> Tensor:
        return attention.out_proj(result.transpose(1, 2).reshape(batch, -1, WIDTH))

    def steps() -> Tensor:
        own = [torch.empty(2, batch, HEADS, STEPS, WIDTH // HEADS) for _ in peer.layers]
        of_memory = []
        for layer in peer.layers:
            _, key, value = projections(layer.multihead_attn)
            of_memory.append((heads(linear(source, *key)), heads(linear(source, *value))))
        outputs = []
        for i in range(STEPS):
            x = tokens[:, i : i + 1]
            for layer, (keys, values), memories in zip(peer.layers, own, of_memory, strict=True):
                attention = layer.self_attn
                qkv = linear(x, attention.in_proj_weight, attention.in_proj_bias)
                query, key, value = (heads(part) for part in qkv.chunk(3, dim=-1))
                keys[:, :, i : i + 1], values[:, :, i : i + 1] = key, value
                result = scaled_dot_product_attention(query, keys[:, :, : i + 1], values[:, :, : i + 1])
                x = layer.norm1(x + joined(attention, result))
                attention = layer.multihead_attn
                query = heads(linear(x, *projections(attention)[0]))
                x = layer.norm2(x + joined(attention, scaled_dot_product_attention(query, *memories)))
                x = layer.norm3(x + layer.linear2(torch.relu(layer.linear1(x))))
            outputs.append(x)
        return torch.cat(outputs, dim=1)

    return {"torch": torch.inference_mode()(steps)}
