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
    GRU,
    LSTM,
    RNN,
    Decoder,
    DecoderLayer,
    Embedding,
    Encoder,
    EncoderLayer,
    FeedForward,
    LayerNorm,
    Linear,
    MultiHeadAttention,
    Pullback,
    RMSNorm,
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
from headwise._layers import DecoderOutput, EncoderOutput
from headwise._loop import progress
from headwise._threads import num_threads

if TYPE_CHECKING:
    from headwise import generation, init, losses, optim, testing, vjp
    from headwise._cache import DecoderCache
    from headwise._gradcheck import gradcheck
    from headwise._pooling import attention
    from headwise._pooling_layers import Additive, Bilinear
    from headwise._pooling_local import PredictiveWindow
    from headwise._pooling_weights import TopK
    from headwise._recurrent_seq2seq import RecurrentSeq2Seq
    from headwise._seq2seq import Seq2Seq
    from headwise._sequential import Sequential
    from headwise._text_encoder import TextEncoder
    from headwise._training_checkpoint import TrainingCheckpoint, load_checkpoint, save_checkpoint
    from headwise._transformer import Transformer
    from headwise.generation import Generated, generate

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Additive",
    "AttentionLink",
    "AttentionLinks",
    "AttentionMaps",
    "Bilinear",
    "DTypeError",
    "Decoder",
    "DecoderCache",
    "DecoderLayer",
    "DecoderOutput",
    "Embedding",
    "EncodeInfo",
    "Encoder",
    "EncoderLayer",
    "EncoderOutput",
    "FeedForward",
    "Generated",
    "GradientError",
    "HeadwiseError",
    "InternalError",
    "LayerNorm",
    "Linear",
    "ModelFormatError",
    "MultiHeadAttention",
    "PredictiveWindow",
    "Pullback",
    "RMSNorm",
    "RecurrentSeq2Seq",
    "Seq2Seq",
    "Sequential",
    "ShapeError",
    "TextEncoder",
    "TokenizerError",
    "TopK",
    "TrainingCheckpoint",
    "Transformer",
    "TruncationWarning",
    "UnsupportedModelError",
    "__version__",
    "alibi_slopes",
    "allowed_mask",
    "attention",
    "attention_varlen",
    "gelu",
    "generate",
    "generation",
    "get_num_threads",
    "gradcheck",
    "init",
    "isa",
    "layer_norm",
    "linear",
    "load_checkpoint",
    "losses",
    "num_threads",
    "optim",
    "progress",
    "relative_position_buckets",
    "relu",
    "rms_norm",
    "rotary_embedding",
    "save_checkpoint",
    "scaled_dot_product_attention",
    "set_num_threads",
    "show_config",
    "silu",
    "sinusoidal_positions",
    "softmax",
    "testing",
    "vjp",
]


_MODULES = frozenset({"generation", "init", "losses", "optim", "testing", "vjp"})
_NAMES = {
    "RecurrentSeq2Seq": "_recurrent_seq2seq",
    "Additive": "_pooling_layers",
    "Bilinear": "_pooling_layers",
    "DecoderCache": "_cache",
    "Generated": "generation",
    "PredictiveWindow": "_pooling_local",
    "Seq2Seq": "_seq2seq",
    "Sequential": "_sequential",
    "TextEncoder": "_text_encoder",
    "TopK": "_pooling_weights",
    "TrainingCheckpoint": "_training_checkpoint",
    "Transformer": "_transformer",
    "attention": "_pooling",
    "generate": "generation",
    "gradcheck": "_gradcheck",
    "load_checkpoint": "_training_checkpoint",
    "save_checkpoint": "_training_checkpoint",
}


def __getattr__(name: str) -> object:
    """Import what needs NumPy when it is asked for: ``headwise --help`` does not load it."""
    import importlib

    if name in _MODULES:
        return importlib.import_module(f"headwise.{name}")
    if name in _NAMES:
        found = getattr(importlib.import_module(f"headwise.{_NAMES[name]}"), name)
        globals()[name] = found
        return found
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
