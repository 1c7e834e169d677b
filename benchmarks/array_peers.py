"""What NumPy and PyTorch do with the arrays of a row, each under its name.

PyTorch runs eagerly in inference mode, in the layers that a user would take; its encoder uses its fused
inference path.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

import headwise as hw
from benchmarks.peers import Setup

Array: TypeAlias = np.ndarray[Any, np.dtype[np.float32]]
Calls: TypeAlias = dict[str, Callable[[], object]]


def linear(setup: Setup, x: Array, weight: Array, bias: Array) -> Calls:
    """Return those who compute ``x @ weight.T + bias``."""
    calls: Calls = {}
    if "numpy" in setup.peers:
        calls["numpy"] = lambda: x @ weight.T + bias
    if "torch" in setup.peers:
        import torch

        tensors = [torch.from_numpy(array) for array in (x, weight, bias)]
        calls["torch"] = torch.inference_mode()(lambda: torch.nn.functional.linear(*tensors))
    return calls


def attention(setup: Setup, query: Array, key: Array, value: Array, *, causal: bool) -> Calls:
    """Return those who attend; NumPy, which has no attention, only for one query (decoding)."""
    calls: Calls = {}
    if "numpy" in setup.peers and query.shape[-2] == 1:
        calls["numpy"] = lambda: numpy_decode(query, key, value)
    if "torch" in setup.peers:
        import torch

        tensors = [torch.from_numpy(array) for array in (query, key, value)]
        attend = torch.nn.functional.scaled_dot_product_attention
        calls["torch"] = torch.inference_mode()(lambda: attend(*tensors, is_causal=causal))
    return calls


def numpy_decode(query: Array, key: Array, value: Array) -> Array:
    """Return the attention of one query: (..., 1, E), (..., S, E), (..., S, E) -> (..., 1, E)."""
    scores = query @ key.swapaxes(-1, -2)  # (..., 1, S)
    scores *= np.float32(query.shape[-1] ** -0.5)
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    return np.asarray(scores @ value)


def multi_head_attention(setup: Setup, layer: hw.MultiHeadAttention, x: Array, heads: int) -> Calls:
    """Return PyTorch's layer with the same parameters."""
    if "torch" not in setup.peers:
        return {}
    import torch

    peer = torch.nn.MultiheadAttention(x.shape[-1], heads, batch_first=True).eval()
    peer.load_state_dict({name: torch.from_numpy(array) for name, array in layer.state_dict().items()})
    tensor = torch.from_numpy(x)
    return {"torch": torch.inference_mode()(lambda: peer(tensor, tensor, tensor, need_weights=False)[0])}


def encoder(setup: Setup, ours: hw.Encoder, x: Array, layers: int, heads: int, inner: int) -> Calls:
    """Return PyTorch's encoder with the same parameters."""
    if "torch" not in setup.peers:
        return {}
    import torch

    block = torch.nn.TransformerEncoderLayer(x.shape[-1], heads, inner, batch_first=True)
    peer = torch.nn.TransformerEncoder(block, layers).eval()
    peer.load_state_dict({name: torch.from_numpy(array) for name, array in ours.state_dict().items()})
    tensor = torch.from_numpy(x)
    return {"torch": torch.inference_mode()(lambda: peer(tensor))}


def encoder_training(
    setup: Setup, ours: hw.Encoder, x: Array, d_out: Array, layers: int, heads: int, inner: int
) -> Calls:
    """Return PyTorch's encoder forwards and backwards: gradients of the input and of all parameters."""
    if "torch" not in setup.peers:
        return {}
    import torch

    block = torch.nn.TransformerEncoderLayer(
        x.shape[-1], heads, inner, dropout=0.0, activation="gelu", batch_first=True
    )
    peer = torch.nn.TransformerEncoder(block, layers)
    peer.load_state_dict({name: torch.from_numpy(array) for name, array in ours.state_dict().items()})
    tensor, gradient = torch.from_numpy(x).requires_grad_(), torch.from_numpy(d_out)

    def both() -> object:
        peer.zero_grad()
        tensor.grad = None
        peer(tensor).backward(gradient)
        return tensor.grad

    return {"torch": both}
