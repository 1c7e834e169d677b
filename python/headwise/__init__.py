"""Transformer attention and encoders for NumPy arrays.

Every function and layer takes NumPy arrays (or anything ``np.asarray`` understands) and gives NumPy
arrays. The arithmetic runs in compiled kernels for the instruction set of the machine; the same input
gives the same bits on every one of them.

In masks, ``True`` means *may be attended*, everywhere.
"""

from typing import TYPE_CHECKING

from headwise._attention_links import AttentionLink, AttentionLinks
from headwise._attention_maps import AttentionMaps
from headwise._core import (
    Encoder,
    EncoderLayer,
    MultiHeadAttention,
    Pullback,
    __version__,
    alibi_slopes,
    allowed_mask,
    attention_varlen,
    gelu,
    get_num_threads,
    isa,
    layer_norm,
    linear,
    relative_position_buckets,
    relu,
    rms_norm,
    rotary_embedding,
    scaled_dot_product_attention,
    set_num_threads,
    show_config,
    silu,
    sinusoidal_positions,
    softmax,
)
from headwise._encode_info import EncodeInfo, TruncationWarning
from headwise._errors import (
    DTypeError,
    GradientError,
    HeadwiseError,
    InternalError,
    ModelFormatError,
    ShapeError,
    TokenizerError,
    UnsupportedModelError,
)
from headwise._layers import EncoderOutput
from headwise._threads import num_threads

if TYPE_CHECKING:
    from headwise import testing, vjp
    from headwise._gradcheck import gradcheck

if TYPE_CHECKING:
    from headwise._text_encoder import TextEncoder

__all__ = [
    "AttentionLink",
    "AttentionLinks",
    "AttentionMaps",
    "DTypeError",
    "EncodeInfo",
    "Encoder",
    "EncoderLayer",
    "EncoderOutput",
    "GradientError",
    "HeadwiseError",
    "InternalError",
    "ModelFormatError",
    "MultiHeadAttention",
    "Pullback",
    "ShapeError",
    "TextEncoder",
    "TokenizerError",
    "TruncationWarning",
    "UnsupportedModelError",
    "__version__",
    "alibi_slopes",
    "allowed_mask",
    "attention_varlen",
    "gelu",
    "get_num_threads",
    "gradcheck",
    "isa",
    "layer_norm",
    "linear",
    "num_threads",
    "relative_position_buckets",
    "relu",
    "rms_norm",
    "rotary_embedding",
    "scaled_dot_product_attention",
    "set_num_threads",
    "show_config",
    "silu",
    "sinusoidal_positions",
    "softmax",
    "testing",
    "vjp",
]


def __getattr__(name: str) -> object:
    """Import what needs NumPy when it is asked for: ``headwise --help`` does not load it."""
    if name in ("testing", "vjp"):
        import importlib

        return importlib.import_module(f"headwise.{name}")
    if name == "gradcheck":
        from headwise._gradcheck import gradcheck

        globals()[name] = gradcheck
        return gradcheck
    if name == "TextEncoder":
        from headwise._text_encoder import TextEncoder

        globals()[name] = TextEncoder
        return TextEncoder
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
