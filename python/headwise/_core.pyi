import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, SupportsIndex, TypeAlias, final, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headwise._attention_maps import AttentionMaps
from headwise._cache import DecoderCache
from headwise._layers import DecoderOutput, EncoderOutput

__version__: str

_Integers: TypeAlias = SupportsIndex | ArrayLike
_Window: TypeAlias = tuple[SupportsIndex | None, SupportsIndex | None] | list[SupportsIndex | None]
_Rng: TypeAlias = SupportsIndex | np.random.Generator | None
_LayerDType: TypeAlias = (
    Literal["float32", "float64"] | type[np.float32 | np.float64] | np.dtype[np.float32 | np.float64]
)
_Heads: TypeAlias = Sequence[tuple[SupportsIndex, SupportsIndex]]

def allowed_mask(
    L: SupportsIndex,
    S: SupportsIndex,
    *,
    attn_mask: ArrayLike | None = None,
    key_mask: ArrayLike | None = None,
    key_lengths: ArrayLike | None = None,
    is_causal: bool = False,
    causal_offset: _Integers | Literal["bottom_right"] = 0,
    window: _Window | None = None,
) -> NDArray[np.bool_]: ...
@overload
def scaled_dot_product_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    attn_mask: ArrayLike | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool | None = None,
    key_mask: ArrayLike | None = None,
    key_lengths: ArrayLike | None = None,
    causal_offset: _Integers | Literal["bottom_right"] = 0,
    window: _Window | None = None,
    softcap: float | None = None,
    return_weights: Literal[False] = False,
    return_lse: Literal[False] = False,
    rng: _Rng = None,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]: ...
@overload
def scaled_dot_product_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    attn_mask: ArrayLike | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool | None = None,
    key_mask: ArrayLike | None = None,
    key_lengths: ArrayLike | None = None,
    causal_offset: _Integers | Literal["bottom_right"] = 0,
    window: _Window | None = None,
    softcap: float | None = None,
    return_weights: Literal[True, "raw", "capped", "masked"],
    return_lse: Literal[False] = False,
    rng: _Rng = None,
    out: NDArray[Any] | None = None,
) -> tuple[NDArray[Any], NDArray[Any]]: ...
@overload
def scaled_dot_product_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    attn_mask: ArrayLike | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool | None = None,
    key_mask: ArrayLike | None = None,
    key_lengths: ArrayLike | None = None,
    causal_offset: _Integers | Literal["bottom_right"] = 0,
    window: _Window | None = None,
    softcap: float | None = None,
    return_weights: Literal[False] = False,
    return_lse: Literal[True],
    rng: _Rng = None,
    out: NDArray[Any] | None = None,
) -> tuple[NDArray[Any], NDArray[Any]]: ...
@overload
def scaled_dot_product_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    attn_mask: ArrayLike | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool | None = None,
    key_mask: ArrayLike | None = None,
    key_lengths: ArrayLike | None = None,
    causal_offset: _Integers | Literal["bottom_right"] = 0,
    window: _Window | None = None,
    softcap: float | None = None,
    return_weights: Literal[True, "raw", "capped", "masked"],
    return_lse: Literal[True],
    rng: _Rng = None,
    out: NDArray[Any] | None = None,
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]: ...
@overload
def attention_varlen(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    cu_seqlens_q: ArrayLike,
    cu_seqlens_k: ArrayLike | None = None,
    *,
    is_causal: bool = False,
    causal_offset: _Integers | Literal["bottom_right"] = 0,
    window: _Window | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    return_lse: Literal[False] = False,
) -> NDArray[Any]: ...
@overload
def attention_varlen(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    cu_seqlens_q: ArrayLike,
    cu_seqlens_k: ArrayLike | None = None,
    *,
    is_causal: bool = False,
    causal_offset: _Integers | Literal["bottom_right"] = 0,
    window: _Window | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    return_lse: Literal[True],
) -> tuple[NDArray[Any], NDArray[Any]]: ...
def linear(
    x: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    activation: Literal["relu", "gelu", "gelu_tanh", "silu"] | None = None,
) -> NDArray[Any]: ...
def softmax(x: ArrayLike, axis: int = -1) -> NDArray[Any]: ...
def layer_norm(
    x: ArrayLike, weight: ArrayLike | None = None, bias: ArrayLike | None = None, *, eps: float = 1e-5
) -> NDArray[Any]: ...
def rms_norm(x: ArrayLike, weight: ArrayLike | None = None, *, eps: float = 1e-5) -> NDArray[Any]: ...
def relu(x: ArrayLike) -> NDArray[Any]: ...
def gelu(x: ArrayLike, approximate: Literal["none", "tanh"] = "none") -> NDArray[Any]: ...
def silu(x: ArrayLike) -> NDArray[Any]: ...
def sinusoidal_positions(
    n: SupportsIndex, d: SupportsIndex, *, layout: Literal["interleaved", "concat"] = "interleaved"
) -> NDArray[np.float32]: ...
def rotary_embedding(
    x: ArrayLike,
    positions: ArrayLike | None = None,
    *,
    theta: float = 10000.0,
    interleaved: bool = False,
    rotary_dim: SupportsIndex | None = None,
) -> NDArray[Any]: ...
def alibi_slopes(num_heads: SupportsIndex) -> NDArray[np.float32]: ...
def relative_position_buckets(
    L: SupportsIndex,
    S: SupportsIndex,
    *,
    bidirectional: bool = True,
    num_buckets: SupportsIndex = 32,
    max_distance: SupportsIndex = 128,
) -> NDArray[np.int64]: ...
def vjp_attention_varlen(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    cu_seqlens_q: ArrayLike,
    cu_seqlens_k: ArrayLike | None = None,
    *,
    is_causal: bool = False,
    causal_offset: _Integers | Literal["bottom_right"] = 0,
    window: _Window | None = None,
    softcap: float | None = None,
    scale: float | None = None,
) -> tuple[NDArray[Any], Pullback]: ...
def vjp_gelu(
    x: ArrayLike, approximate: Literal["none", "tanh"] = "none"
) -> tuple[NDArray[Any], Pullback]: ...
def vjp_layer_norm(
    x: ArrayLike, weight: ArrayLike | None = None, bias: ArrayLike | None = None, *, eps: float = 1e-5
) -> tuple[NDArray[Any], Pullback]: ...
def vjp_linear(
    x: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    activation: Literal["relu", "gelu", "gelu_tanh", "silu"] | None = None,
) -> tuple[NDArray[Any], Pullback]: ...
def vjp_relu(x: ArrayLike) -> tuple[NDArray[Any], Pullback]: ...
def vjp_rms_norm(
    x: ArrayLike, weight: ArrayLike | None = None, *, eps: float = 1e-5
) -> tuple[NDArray[Any], Pullback]: ...
def vjp_rotary_embedding(
    x: ArrayLike,
    positions: ArrayLike | None = None,
    *,
    theta: float = 10000.0,
    interleaved: bool = False,
    rotary_dim: SupportsIndex | None = None,
) -> tuple[NDArray[Any], Pullback]: ...
def vjp_scaled_dot_product_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    attn_mask: ArrayLike | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool | None = None,
    key_mask: ArrayLike | None = None,
    key_lengths: ArrayLike | None = None,
    causal_offset: _Integers | Literal["bottom_right"] = 0,
    window: _Window | None = None,
    softcap: float | None = None,
    rng: _Rng = None,
    mask_grad: bool = False,
) -> tuple[NDArray[Any], Pullback]: ...
def vjp_silu(x: ArrayLike) -> tuple[NDArray[Any], Pullback]: ...
def vjp_softmax(x: ArrayLike, axis: int = -1) -> tuple[NDArray[Any], Pullback]: ...
def isa() -> str: ...
@overload
def show_config(mode: Literal["stdout"] = "stdout") -> None: ...
@overload
def show_config(mode: Literal["dicts"]) -> dict[str, Any]: ...
def set_num_threads(n: SupportsIndex) -> None: ...
def get_num_threads() -> int: ...
def _override_num_threads(n: SupportsIndex | None) -> int | None: ...
def _after_fork() -> None: ...
def _panic_for_test(here: bool = False) -> None: ...
def _peak_gflops(dtype: Literal["float32", "float64"], threads: int) -> float: ...
def _cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    class_weight: ArrayLike | None,
    counted: NDArray[np.bool_] | None,
    label_smoothing: float,
    mean: bool,
) -> tuple[float, NDArray[Any]]: ...
def _squared_error(
    prediction: ArrayLike, target: ArrayLike, *, counted: NDArray[np.bool_] | None, mean: bool
) -> tuple[float, NDArray[Any]]: ...
def _contrastive(
    queries: ArrayLike, documents: ArrayLike, *, temperature: float, symmetric: bool
) -> tuple[float, NDArray[Any], NDArray[Any]]: ...
def _pooling_draw(p: NDArray[Any], keep: NDArray[np.bool_], rng: _Rng) -> NDArray[Any]: ...
def _pooling_map(kind: Literal["tanh", "sigmoid", "exp"], x: NDArray[Any]) -> NDArray[Any]: ...
def _pooling_scores(
    kind: Literal["dot", "l2", "additive"],
    query: NDArray[Any],
    key: NDArray[Any],
    v: NDArray[Any] | None = None,
) -> NDArray[Any]: ...
def _pooling_sums(
    kind: Literal["other", "difference", "tanh", "slope"],
    over: Literal["keys", "queries"],
    a: NDArray[Any],
    keep: NDArray[np.bool_],
    others: NDArray[Any],
    own: NDArray[Any] | None = None,
    v: NDArray[Any] | None = None,
) -> NDArray[Any]: ...
def _pooling_unit(x: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]: ...
def _pooling_unit_backward(unit: NDArray[Any], lengths: NDArray[Any], d: NDArray[Any]) -> NDArray[Any]: ...
def _pooling_weights(
    kind: str, scores: NDArray[Any], keep: NDArray[np.bool_], k: int = 0
) -> NDArray[Any]: ...
def _pooling_weights_backward(
    kind: str, weights: NDArray[Any], keep: NDArray[np.bool_], d: NDArray[Any], k: int
) -> NDArray[Any]: ...
def _adam_step(
    parameter: NDArray[Any],
    gradient: ArrayLike,
    exp_avg: NDArray[Any],
    exp_avg_sq: NDArray[Any],
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> None: ...
def _sgd_step(
    parameter: NDArray[Any],
    gradient: ArrayLike,
    velocity: NDArray[Any] | None,
    *,
    lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
) -> None: ...
def _sum_of_squares(x: ArrayLike) -> float: ...
def _cosine_decay(t: float) -> float: ...
def _draw(
    kind: Literal["uniform", "normal"],
    shape: SupportsIndex | Sequence[SupportsIndex],
    a: float,
    b: float,
    *,
    bounds: tuple[float, float] | None = None,
    rng: _Rng = None,
    dtype: str = "float32",
) -> NDArray[Any]: ...
def _tensor_file(
    path: str | os.PathLike[str],
) -> tuple[dict[str, str], dict[str, tuple[str, tuple[int, ...], int, int]]]: ...

@final
class Pullback:
    def __call__(self, d_out: Any) -> Any: ...

@final
class Linear:
    def __new__(
        cls,
        in_features: SupportsIndex,
        out_features: SupportsIndex,
        *,
        bias: bool = True,
        dtype: _LayerDType = "float32",
        rng: _Rng = None,
    ) -> Self: ...
    @overload
    def __call__(self, x: list[NDArray[Any]]) -> list[NDArray[Any]]: ...
    @overload
    def __call__(self, x: ArrayLike) -> NDArray[Any]: ...
    @overload
    def vjp(self, x: list[NDArray[Any]]) -> tuple[list[NDArray[Any]], Pullback]: ...
    @overload
    def vjp(self, x: ArrayLike) -> tuple[NDArray[Any], Pullback]: ...
    @property
    def in_features(self) -> int: ...
    @property
    def out_features(self) -> int: ...
    def state_dict(self) -> dict[str, NDArray[Any]]: ...
    def load_state_dict(self, state: Mapping[str, ArrayLike], strict: bool = True) -> None: ...
    def to(self, dtype: _LayerDType) -> Self: ...
    @property
    def num_parameters(self) -> int: ...
    @property
    def dtype(self) -> Literal["float32", "float64"]: ...
    def __reduce__(self) -> tuple[Callable[..., Linear], tuple[Any, ...]]: ...

@final
class Embedding:
    def __new__(
        cls,
        num_embeddings: SupportsIndex,
        embedding_dim: SupportsIndex,
        *,
        padding_idx: SupportsIndex | None = None,
        dtype: _LayerDType = "float32",
        rng: _Rng = None,
    ) -> Self: ...
    @overload
    def __call__(self, ids: list[NDArray[Any]]) -> list[NDArray[Any]]: ...
    @overload
    def __call__(self, ids: ArrayLike) -> NDArray[Any]: ...
    @overload
    def vjp(self, ids: list[NDArray[Any]]) -> tuple[list[NDArray[Any]], Pullback]: ...
    @overload
    def vjp(self, ids: ArrayLike) -> tuple[NDArray[Any], Pullback]: ...
    @property
    def num_embeddings(self) -> int: ...
    @property
    def embedding_dim(self) -> int: ...
    @property
    def padding_idx(self) -> int | None: ...
    def state_dict(self) -> dict[str, NDArray[Any]]: ...
    def load_state_dict(self, state: Mapping[str, ArrayLike], strict: bool = True) -> None: ...
    def to(self, dtype: _LayerDType) -> Self: ...
    @property
    def num_parameters(self) -> int: ...
    @property
    def dtype(self) -> Literal["float32", "float64"]: ...
    def __reduce__(self) -> tuple[Callable[..., Embedding], tuple[Any, ...]]: ...

@final
class LayerNorm:
    def __new__(
        cls, d_model: SupportsIndex, *, eps: float = 1e-5, bias: bool = True, dtype: _LayerDType = "float32"
    ) -> Self: ...
    @overload
    def __call__(self, x: list[NDArray[Any]]) -> list[NDArray[Any]]: ...
    @overload
    def __call__(self, x: ArrayLike) -> NDArray[Any]: ...
    @overload
    def vjp(self, x: list[NDArray[Any]]) -> tuple[list[NDArray[Any]], Pullback]: ...
    @overload
    def vjp(self, x: ArrayLike) -> tuple[NDArray[Any], Pullback]: ...
    @property
    def d_model(self) -> int: ...
    @property
    def eps(self) -> float: ...
    def state_dict(self) -> dict[str, NDArray[Any]]: ...
    def load_state_dict(self, state: Mapping[str, ArrayLike], strict: bool = True) -> None: ...
    def to(self, dtype: _LayerDType) -> Self: ...
    @property
    def num_parameters(self) -> int: ...
    @property
    def dtype(self) -> Literal["float32", "float64"]: ...
    def __reduce__(self) -> tuple[Callable[..., LayerNorm], tuple[Any, ...]]: ...

@final
class RMSNorm:
    def __new__(
        cls, d_model: SupportsIndex, *, eps: float | None = None, dtype: _LayerDType = "float32"
    ) -> Self: ...
    @overload
    def __call__(self, x: list[NDArray[Any]]) -> list[NDArray[Any]]: ...
    @overload
    def __call__(self, x: ArrayLike) -> NDArray[Any]: ...
    @overload
    def vjp(self, x: list[NDArray[Any]]) -> tuple[list[NDArray[Any]], Pullback]: ...
    @overload
    def vjp(self, x: ArrayLike) -> tuple[NDArray[Any], Pullback]: ...
    @property
    def d_model(self) -> int: ...
    @property
    def eps(self) -> float | None: ...
    def state_dict(self) -> dict[str, NDArray[Any]]: ...
    def load_state_dict(self, state: Mapping[str, ArrayLike], strict: bool = True) -> None: ...
    def to(self, dtype: _LayerDType) -> Self: ...
    @property
    def num_parameters(self) -> int: ...
    @property
    def dtype(self) -> Literal["float32", "float64"]: ...
    def __reduce__(self) -> tuple[Callable[..., RMSNorm], tuple[Any, ...]]: ...

@final
class FeedForward:
    def __new__(
        cls,
        d_model: SupportsIndex,
        d_ff: SupportsIndex = 2048,
        *,
        activation: Literal["relu", "gelu", "gelu_tanh", "silu"] = "relu",
        ffn: Literal["mlp", "glu"] = "mlp",
        bias: bool = True,
        dropout: float = 0.0,
        dtype: _LayerDType = "float32",
        rng: _Rng = None,
    ) -> Self: ...
    @overload
    def __call__(
        self, x: list[NDArray[Any]], *, training: bool = False, rng: _Rng = None
    ) -> list[NDArray[Any]]: ...
    @overload
    def __call__(self, x: ArrayLike, *, training: bool = False, rng: _Rng = None) -> NDArray[Any]: ...
    @overload
    def vjp(
        self, x: list[NDArray[Any]], *, training: bool = False, rng: _Rng = None
    ) -> tuple[list[NDArray[Any]], Pullback]: ...
    @overload
    def vjp(
        self, x: ArrayLike, *, training: bool = False, rng: _Rng = None
    ) -> tuple[NDArray[Any], Pullback]: ...
    @property
    def d_model(self) -> int: ...
    @property
    def d_ff(self) -> int: ...
    def state_dict(self) -> dict[str, NDArray[Any]]: ...
    def load_state_dict(self, state: Mapping[str, ArrayLike], strict: bool = True) -> None: ...
    def to(self, dtype: _LayerDType) -> Self: ...
    @property
    def num_parameters(self) -> int: ...
    @property
    def dtype(self) -> Literal["float32", "float64"]: ...
    def __reduce__(self) -> tuple[Callable[..., FeedForward], tuple[Any, ...]]: ...

@final
class RNN:
    def __new__(
        cls,
        input_size: SupportsIndex,
        hidden_size: SupportsIndex,
        num_layers: SupportsIndex = 1,
        *,
        nonlinearity: Literal["tanh", "relu"] = "tanh",
        bias: bool = True,
        dropout: float = 0.0,
        bidirectional: bool = False,
        dtype: _LayerDType = "float32",
        rng: _Rng = None,
    ) -> Self: ...
    @overload
    def __call__(
        self,
        x: list[NDArray[Any]],
        state: ArrayLike | None = None,
        *,
        lengths: ArrayLike | None = None,
        training: bool = False,
        rng: _Rng = None,
    ) -> tuple[list[NDArray[Any]], NDArray[Any]]: ...
    @overload
    def __call__(
        self,
        x: ArrayLike,
        state: ArrayLike | None = None,
        *,
        lengths: ArrayLike | None = None,
        training: bool = False,
        rng: _Rng = None,
    ) -> tuple[NDArray[Any], NDArray[Any]]: ...
    @overload
    def vjp(
        self,
        x: list[NDArray[Any]],
        state: ArrayLike | None = None,
        *,
        lengths: ArrayLike | None = None,
        training: bool = False,
        rng: _Rng = None,
    ) -> tuple[tuple[list[NDArray[Any]], NDArray[Any]], Pullback]: ...
    @overload
    def vjp(
        self,
        x: ArrayLike,
        state: ArrayLike | None = None,
        *,
        lengths: ArrayLike | None = None,
        training: bool = False,
        rng: _Rng = None,
    ) -> tuple[tuple[NDArray[Any], NDArray[Any]], Pullback]: ...
    @property
    def input_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def nonlinearity(self) -> Literal["tanh", "relu"]: ...
    @property
    def bidirectional(self) -> bool: ...
    def state_dict(self) -> dict[str, NDArray[Any]]: ...
    def load_state_dict(self, state: Mapping[str, ArrayLike], strict: bool = True) -> None: ...
    def to(self, dtype: _LayerDType) -> Self: ...
    @property
    def num_parameters(self) -> int: ...
    @property
    def dtype(self) -> Literal["float32", "float64"]: ...
    def __reduce__(self) -> tuple[Callable[..., RNN], tuple[Any, ...]]: ...

@final
class LSTM:
    def __new__(
        cls,
        input_size: SupportsIndex,
        hidden_size: SupportsIndex,
        num_layers: SupportsIndex = 1,
        *,
        bias: bool = True,
        dropout: float = 0.0,
        bidirectional: bool = False,
        dtype: _LayerDType = "float32",
        rng: _Rng = None,
    ) -> Self: ...
    @overload
    def __call__(
        self,
        x: list[NDArray[Any]],
        state: tuple[ArrayLike, ArrayLike] | None = None,
        *,
        lengths: ArrayLike | None = None,
        training: bool = False,
        rng: _Rng = None,
    ) -> tuple[list[NDArray[Any]], tuple[NDArray[Any], NDArray[Any]]]: ...
    @overload
    def __call__(
        self,
        x: ArrayLike,
        state: tuple[ArrayLike, ArrayLike] | None = None,
        *,
        lengths: ArrayLike | None = None,
        training: bool = False,
        rng: _Rng = None,
    ) -> tuple[NDArray[Any], tuple[NDArray[Any], NDArray[Any]]]: ...
    @overload
    def vjp(
        self,
        x: list[NDArray[Any]],
        state: tuple[ArrayLike, ArrayLike] | None = None,
        *,
        lengths: ArrayLike | None = None,
        training: bool = False,
        rng: _Rng = None,
    ) -> tuple[tuple[list[NDArray[Any]], tuple[NDArray[Any], NDArray[Any]]], Pullback]: ...
    @overload
    def vjp(
        self,
        x: ArrayLike,
        state: tuple[ArrayLike, ArrayLike] | None = None,
        *,
        lengths: ArrayLike | None = None,
        training: bool = False,
        rng: _Rng = None,
    ) -> tuple[tuple[NDArray[Any], tuple[NDArray[Any], NDArray[Any]]], Pullback]: ...
    @property
    def input_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def bidirectional(self) -> bool: ...
    def state_dict(self) -> dict[str, NDArray[Any]]: ...
    def load_state_dict(self, state: Mapping[str, ArrayLike], strict: bool = True) -> None: ...
    def to(self, dtype: _LayerDType) -> Self: ...
    @property
    def num_parameters(self) -> int: ...
    @property
    def dtype(self) -> Literal["float32", "float64"]: ...
    def __reduce__(self) -> tuple[Callable[..., LSTM], tuple[Any, ...]]: ...

@final
class GRU:
    def __new__(
        cls,
        input_size: SupportsIndex,
        hidden_size: SupportsIndex,
        num_layers: SupportsIndex = 1,
        *,
        bias: bool = True,
        dropout: float = 0.0,
        bidirectional: bool = False,
        dtype: _LayerDType = "float32",
        rng: _Rng = None,
    ) -> Self: ...
    @overload
    def __call__(
        self,
        x: list[NDArray[Any]],
        state: ArrayLike | None = None,
        *,
        lengths: ArrayLike | None = None,
        training: bool = False,
        rng: _Rng = None,
    ) -> tuple[list[NDArray[Any]], NDArray[Any]]: ...
    @overload
    def __call__(
        self,
        x: ArrayLike,
        state: ArrayLike | None = None,
        *,
        lengths: ArrayLike | None = None,
        training: bool = False,
        rng: _Rng = None,
    ) -> tuple[NDArray[Any], NDArray[Any]]: ...
    @overload
    def vjp(
        self,
        x: list[NDArray[Any]],
        state: ArrayLike | None = None,
        *,
        lengths: ArrayLike | None = None,
        training: bool = False,
        rng: _Rng = None,
    ) -> tuple[tuple[list[NDArray[Any]], NDArray[Any]], Pullback]: ...
    @overload
    def vjp(
        self,
        x: ArrayLike,
        state: ArrayLike | None = None,
        *,
        lengths: ArrayLike | None = None,
        training: bool = False,
        rng: _Rng = None,
    ) -> tuple[tuple[NDArray[Any], NDArray[Any]], Pullback]: ...
    @property
    def input_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def bidirectional(self) -> bool: ...
    def state_dict(self) -> dict[str, NDArray[Any]]: ...
    def load_state_dict(self, state: Mapping[str, ArrayLike], strict: bool = True) -> None: ...
    def to(self, dtype: _LayerDType) -> Self: ...
    @property
    def num_parameters(self) -> int: ...
    @property
    def dtype(self) -> Literal["float32", "float64"]: ...
    def __reduce__(self) -> tuple[Callable[..., GRU], tuple[Any, ...]]: ...

@final
class MultiHeadAttention:
    def __new__(
        cls,
        d_model: SupportsIndex,
        num_heads: SupportsIndex,
        *,
        num_kv_heads: SupportsIndex | None = None,
        head_dim: SupportsIndex | None = None,
        key_dim: SupportsIndex | None = None,
        value_dim: SupportsIndex | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        dtype: _LayerDType = "float32",
        rng: _Rng = None,
    ) -> Self: ...
    @overload
    def __call__(
        self,
        query: list[NDArray[Any]],
        key: list[NDArray[Any]] | None = None,
        value: list[NDArray[Any]] | None = None,
        *,
        attn_mask: ArrayLike | None = None,
        key_mask: ArrayLike | None = None,
        key_lengths: ArrayLike | None = None,
        is_causal: bool = False,
        causal_offset: _Integers | Literal["bottom_right"] = 0,
        window: _Window | None = None,
        softcap: float | None = None,
        scale: float | None = None,
        head_mask: ArrayLike | None = None,
        need_weights: Literal[False] = False,
        average_weights: bool = False,
        training: bool = False,
        rng: _Rng = None,
    ) -> list[NDArray[Any]]: ...
    @overload
    def __call__(
        self,
        query: list[NDArray[Any]],
        key: list[NDArray[Any]] | None = None,
        value: list[NDArray[Any]] | None = None,
        *,
        attn_mask: ArrayLike | None = None,
        key_mask: ArrayLike | None = None,
        key_lengths: ArrayLike | None = None,
        is_causal: bool = False,
        causal_offset: _Integers | Literal["bottom_right"] = 0,
        window: _Window | None = None,
        softcap: float | None = None,
        scale: float | None = None,
        head_mask: ArrayLike | None = None,
        need_weights: Literal[True],
        average_weights: bool = False,
        training: bool = False,
        rng: _Rng = None,
    ) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]: ...
    @overload
    def __call__(
        self,
        query: ArrayLike,
        key: ArrayLike | None = None,
        value: ArrayLike | None = None,
        *,
        attn_mask: ArrayLike | None = None,
        key_mask: ArrayLike | None = None,
        key_lengths: ArrayLike | None = None,
        is_causal: bool = False,
        causal_offset: _Integers | Literal["bottom_right"] = 0,
        window: _Window | None = None,
        softcap: float | None = None,
        scale: float | None = None,
        head_mask: ArrayLike | None = None,
        need_weights: Literal[False] = False,
        average_weights: bool = False,
        training: bool = False,
        rng: _Rng = None,
    ) -> NDArray[Any]: ...
    @overload
    def __call__(
        self,
        query: ArrayLike,
        key: ArrayLike | None = None,
        value: ArrayLike | None = None,
        *,
        attn_mask: ArrayLike | None = None,
        key_mask: ArrayLike | None = None,
        key_lengths: ArrayLike | None = None,
        is_causal: bool = False,
        causal_offset: _Integers | Literal["bottom_right"] = 0,
        window: _Window | None = None,
        softcap: float | None = None,
        scale: float | None = None,
        head_mask: ArrayLike | None = None,
        need_weights: Literal[True],
        average_weights: bool = False,
        training: bool = False,
        rng: _Rng = None,
    ) -> tuple[NDArray[Any], NDArray[Any]]: ...
    @overload
    def __call__(
        self,
        query: ArrayLike,
        key: ArrayLike | None = None,
        value: ArrayLike | None = None,
        *,
        attn_mask: ArrayLike | None = None,
        key_mask: ArrayLike | None = None,
        key_lengths: ArrayLike | None = None,
        is_causal: bool = False,
        causal_offset: _Integers | Literal["bottom_right"] = 0,
        window: _Window | None = None,
        softcap: float | None = None,
        scale: float | None = None,
        head_mask: ArrayLike | None = None,
        need_weights: bool = False,
        average_weights: bool = False,
        training: bool = False,
        rng: _Rng = None,
    ) -> Any: ...
    def vjp(
        self,
        query: ArrayLike | list[ArrayLike],
        key: ArrayLike | list[ArrayLike] | None = None,
        value: ArrayLike | list[ArrayLike] | None = None,
        *,
        attn_mask: ArrayLike | None = None,
        key_mask: ArrayLike | None = None,
        key_lengths: ArrayLike | None = None,
        is_causal: bool = False,
        causal_offset: _Integers | Literal["bottom_right"] = 0,
        window: _Window | None = None,
        softcap: float | None = None,
        scale: float | None = None,
        head_mask: ArrayLike | None = None,
        training: bool = False,
        rng: _Rng = None,
    ) -> tuple[Any, Pullback]: ...
    def state_dict(self) -> dict[str, NDArray[Any]]: ...
    def load_state_dict(self, state: Mapping[str, ArrayLike], strict: bool = True) -> None: ...
    def to(self, dtype: _LayerDType) -> Self: ...
    def prune_heads(self, heads: Iterable[SupportsIndex]) -> Self: ...
    @property
    def num_parameters(self) -> int: ...
    @property
    def d_model(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def dtype(self) -> Literal["float32", "float64"]: ...
    def __reduce__(self) -> tuple[Callable[..., MultiHeadAttention], tuple[Any, ...]]: ...

@final
class EncoderLayer:
    def __new__(
        cls,
        d_model: SupportsIndex,
        num_heads: SupportsIndex,
        d_ff: SupportsIndex = 2048,
        *,
        num_kv_heads: SupportsIndex | None = None,
        head_dim: SupportsIndex | None = None,
        activation: Literal["relu", "gelu", "gelu_tanh", "silu"] = "relu",
        norm: Literal["layer", "rms"] = "layer",
        norm_first: bool = False,
        layer_norm_eps: float = 1e-5,
        ffn: Literal["mlp", "glu"] = "mlp",
        bias: bool = True,
        dropout: float = 0.0,
        dtype: _LayerDType = "float32",
        rng: _Rng = None,
    ) -> Self: ...
    @overload
    def __call__(
        self,
        x: list[NDArray[Any]],
        *,
        attn_mask: ArrayLike | None = None,
        key_mask: ArrayLike | None = None,
        lengths: ArrayLike | None = None,
        is_causal: bool = False,
        window: _Window | None = None,
        head_mask: ArrayLike | None = None,
        need_weights: Literal[False] = False,
        training: bool = False,
        rng: _Rng = None,
    ) -> list[NDArray[Any]]: ...
    @overload
    def __call__(
        self,
        x: list[NDArray[Any]],
        *,
        attn_mask: ArrayLike | None = None,
        key_mask: ArrayLike | None = None,
        lengths: ArrayLike | None = None,
        is_causal: bool = False,
        window: _Window | None = None,
        head_mask: ArrayLike | None = None,
        need_weights: Literal[True],
        training: bool = False,
        rng: _Rng = None,
    ) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]: ...
    @overload
    def __call__(
        self,
        x: ArrayLike,
        *,
        attn_mask: ArrayLike | None = None,
        key_mask: ArrayLike | None = None,
        lengths: ArrayLike | None = None,
        is_causal: bool = False,
        window: _Window | None = None,
        head_mask: ArrayLike | None = None,
        need_weights: Literal[False] = False,
        training: bool = False,
        rng: _Rng = None,
    ) -> NDArray[Any]: ...
    @overload
    def __call__(
        self,
        x: ArrayLike,
        *,
        attn_mask: ArrayLike | None = None,
        key_mask: ArrayLike | None = None,
        lengths: ArrayLike | None = None,
        is_causal: bool = False,
        window: _Window | None = None,
        head_mask: ArrayLike | None = None,
        need_weights: Literal[True],
        training: bool = False,
        rng: _Rng = None,
    ) -> tuple[NDArray[Any], NDArray[Any]]: ...
    @overload
    def __call__(
        self,
        x: ArrayLike,
        *,
        attn_mask: ArrayLike | None = None,
        key_mask: ArrayLike | None = None,
        lengths: ArrayLike | None = None,
        is_causal: bool = False,
        window: _Window | None = None,
        head_mask: ArrayLike | None = None,
        need_weights: bool = False,
        training: bool = False,
        rng: _Rng = None,
    ) -> Any: ...
    def vjp(
        self,
        x: ArrayLike | list[ArrayLike],
        *,
        attn_mask: ArrayLike | None = None,
        key_mask: ArrayLike | None = None,
        lengths: ArrayLike | None = None,
        is_causal: bool = False,
        window: _Window | None = None,
        head_mask: ArrayLike | None = None,
        training: bool = False,
        rng: _Rng = None,
    ) -> tuple[Any, Pullback]: ...
    def state_dict(self) -> dict[str, NDArray[Any]]: ...
    def load_state_dict(self, state: Mapping[str, ArrayLike], strict: bool = True) -> None: ...
    def to(self, dtype: _LayerDType) -> Self: ...
    def prune_heads(self, heads: Iterable[SupportsIndex]) -> Self: ...
    @property
    def num_parameters(self) -> int: ...
    @property
    def d_model(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def dtype(self) -> Literal["float32", "float64"]: ...
    def __reduce__(self) -> tuple[Callable[..., EncoderLayer], tuple[Any, ...]]: ...

@final
class Encoder:
    def __new__(
        cls,
        num_layers: SupportsIndex,
        d_model: SupportsIndex,
        num_heads: SupportsIndex,
        d_ff: SupportsIndex = 2048,
        *,
        final_norm: bool = False,
        positions: Literal["sinusoidal", "rotary", "alibi"] | None = None,
        num_kv_heads: SupportsIndex | None = None,
        head_dim: SupportsIndex | None = None,
        activation: Literal["relu", "gelu", "gelu_tanh", "silu"] = "relu",
        norm: Literal["layer", "rms"] = "layer",
        norm_first: bool = False,
        layer_norm_eps: float = 1e-5,
        ffn: Literal["mlp", "glu"] = "mlp",
        bias: bool = True,
        dropout: float = 0.0,
        dtype: _LayerDType = "float32",
        rng: _Rng = None,
    ) -> Self: ...
    @overload
    def __call__(
        self,
        x: list[NDArray[Any]],
        *,
        attn_mask: ArrayLike | None = None,
        key_mask: ArrayLike | None = None,
        lengths: ArrayLike | None = None,
        is_causal: bool = False,
        window: _Window | None = None,
        head_mask: ArrayLike | None = None,
        output_hidden_states: Literal[False] = False,
        need_weights: Literal[False] = False,
        training: bool = False,
        rng: _Rng = None,
    ) -> list[NDArray[Any]]: ...
    @overload
    def __call__(
        self,
        x: ArrayLike,
        *,
        attn_mask: ArrayLike | None = None,
        key_mask: ArrayLike | None = None,
        lengths: ArrayLike | None = None,
        is_causal: bool = False,
        window: _Window | None = None,
        head_mask: ArrayLike | None = None,
        output_hidden_states: Literal[False] = False,
        need_weights: Literal[False] = False,
        training: bool = False,
        rng: _Rng = None,
    ) -> NDArray[Any]: ...
    @overload
    def __call__(
        self,
        x: ArrayLike,
        *,
        attn_mask: ArrayLike | None = None,
        key_mask: ArrayLike | None = None,
        lengths: ArrayLike | None = None,
        is_causal: bool = False,
        window: _Window | None = None,
        head_mask: ArrayLike | None = None,
        output_hidden_states: Literal[True],
        need_weights: bool | _Heads = False,
        training: bool = False,
        rng: _Rng = None,
    ) -> EncoderOutput: ...
    @overload
    def __call__(
        self,
        x: ArrayLike,
        *,
        attn_mask: ArrayLike | None = None,
        key_mask: ArrayLike | None = None,
        lengths: ArrayLike | None = None,
        is_causal: bool = False,
        window: _Window | None = None,
        head_mask: ArrayLike | None = None,
        output_hidden_states: bool = False,
        need_weights: Literal[True] | _Heads,
        training: bool = False,
        rng: _Rng = None,
    ) -> EncoderOutput: ...
    @overload
    def __call__(
        self,
        x: ArrayLike,
        *,
        attn_mask: ArrayLike | None = None,
        key_mask: ArrayLike | None = None,
        lengths: ArrayLike | None = None,
        is_causal: bool = False,
        window: _Window | None = None,
        head_mask: ArrayLike | None = None,
        output_hidden_states: bool = False,
        need_weights: bool | _Heads = False,
        training: bool = False,
        rng: _Rng = None,
    ) -> Any: ...
    def vjp(
        self,
        x: ArrayLike | list[ArrayLike],
        *,
        attn_mask: ArrayLike | None = None,
        key_mask: ArrayLike | None = None,
        lengths: ArrayLike | None = None,
        is_causal: bool = False,
        window: _Window | None = None,
        head_mask: ArrayLike | None = None,
        training: bool = False,
        rng: _Rng = None,
    ) -> tuple[Any, Pullback]: ...
    def state_dict(self) -> dict[str, NDArray[Any]]: ...
    def load_state_dict(self, state: Mapping[str, ArrayLike], strict: bool = True) -> None: ...
    def to(self, dtype: _LayerDType) -> Self: ...
    def prune_heads(self, heads: Mapping[int, Iterable[SupportsIndex]]) -> Self: ...
    def to_deep_single_head(self, *, rng: _Rng = None) -> Encoder: ...
    @property
    def num_parameters(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def d_model(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def dtype(self) -> Literal["float32", "float64"]: ...
    def __reduce__(self) -> tuple[Callable[..., Encoder], tuple[Any, ...]]: ...

@final
class DecoderLayer:
    def __new__(
        cls,
        d_model: SupportsIndex,
        num_heads: SupportsIndex,
        d_ff: SupportsIndex = 2048,
        *,
        num_kv_heads: SupportsIndex | None = None,
        head_dim: SupportsIndex | None = None,
        activation: Literal["relu", "gelu", "gelu_tanh", "silu"] = "relu",
        norm: Literal["layer", "rms"] = "layer",
        norm_first: bool = False,
        layer_norm_eps: float = 1e-5,
        ffn: Literal["mlp", "glu"] = "mlp",
        bias: bool = True,
        dropout: float = 0.0,
        dtype: _LayerDType = "float32",
        rng: _Rng = None,
    ) -> Self: ...
    @overload
    def __call__(
        self,
        x: list[NDArray[Any]],
        memory: list[NDArray[Any]],
        *,
        attn_mask: ArrayLike | None = None,
        key_mask: ArrayLike | None = None,
        lengths: ArrayLike | None = None,
        is_causal: bool = True,
        window: _Window | None = None,
        memory_mask: ArrayLike | None = None,
        memory_key_mask: ArrayLike | None = None,
        memory_lengths: ArrayLike | None = None,
        head_mask: ArrayLike | None = None,
        cross_head_mask: ArrayLike | None = None,
        need_weights: Literal[False] = False,
        training: bool = False,
        rng: _Rng = None,
    ) -> list[NDArray[Any]]: ...
    @overload
    def __call__(
        self,
        x: list[NDArray[Any]],
        memory: list[NDArray[Any]],
        *,
        attn_mask: ArrayLike | None = None,
        key_mask: ArrayLike | None = None,
        lengths: ArrayLike | None = None,
        is_causal: bool = True,
        window: _Window | None = None,
        memory_mask: ArrayLike | None = None,
        memory_key_mask: ArrayLike | None = None,
        memory_lengths: ArrayLike | None = None,
        head_mask: ArrayLike | None = None,
        cross_head_mask: ArrayLike | None = None,
        need_weights: Literal[True],
        training: bool = False,
        rng: _Rng = None,
    ) -> tuple[list[NDArray[Any]], list[NDArray[Any]], list[NDArray[Any]]]: ...
    @overload
    def __call__(
        self,
        x: ArrayLike,
        memory: ArrayLike,
        *,
        attn_mask: ArrayLike | None = None,
        key_mask: ArrayLike | None = None,
        lengths: ArrayLike | None = None,
        is_causal: bool = True,
        window: _Window | None = None,
        memory_mask: ArrayLike | None = None,
        memory_key_mask: ArrayLike | None = None,
        memory_lengths: ArrayLike | None = None,
        head_mask: ArrayLike | None = None,
        cross_head_mask: ArrayLike | None = None,
        need_weights: Literal[False] = False,
        training: bool = False,
        rng: _Rng = None,
    ) -> NDArray[Any]: ...
    @overload
    def __call__(
        self,
        x: ArrayLike,
        memory: ArrayLike,
        *,
        attn_mask: ArrayLike | None = None,
        key_mask: ArrayLike | None = None,
        lengths: ArrayLike | None = None,
        is_causal: bool = True,
        window: _Window | None = None,
        memory_mask: ArrayLike | None = None,
        memory_key_mask: ArrayLike | None = None,
        memory_lengths: ArrayLike | None = None,
        head_mask: ArrayLike | None = None,
        cross_head_mask: ArrayLike | None = None,
        need_weights: Literal[True],
        training: bool = False,
        rng: _Rng = None,
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]: ...
    @overload
    def __call__(
        self,
        x: ArrayLike,
        memory: ArrayLike,
        *,
        attn_mask: ArrayLike | None = None,
        key_mask: ArrayLike | None = None,
        lengths: ArrayLike | None = None,
        is_causal: bool = True,
        window: _Window | None = None,
        memory_mask: ArrayLike | None = None,
        memory_key_mask: ArrayLike | None = None,
        memory_lengths: ArrayLike | None = None,
        head_mask: ArrayLike | None = None,
        cross_head_mask: ArrayLike | None = None,
        need_weights: bool = False,
        training: bool = False,
        rng: _Rng = None,
    ) -> Any: ...
    def vjp(
        self,
        x: ArrayLike | list[ArrayLike],
        memory: ArrayLike | list[ArrayLike],
        *,
        attn_mask: ArrayLike | None = None,
        key_mask: ArrayLike | None = None,
        lengths: ArrayLike | None = None,
        is_causal: bool = True,
        window: _Window | None = None,
        memory_mask: ArrayLike | None = None,
        memory_key_mask: ArrayLike | None = None,
        memory_lengths: ArrayLike | None = None,
        head_mask: ArrayLike | None = None,
        cross_head_mask: ArrayLike | None = None,
        training: bool = False,
        rng: _Rng = None,
    ) -> tuple[Any, Pullback]: ...
    def state_dict(self) -> dict[str, NDArray[Any]]: ...
    def load_state_dict(self, state: Mapping[str, ArrayLike], strict: bool = True) -> None: ...
    def to(self, dtype: _LayerDType) -> Self: ...
    def prune_heads(
        self,
        heads: Iterable[SupportsIndex],
        cross_heads: Iterable[SupportsIndex] | None = None,
    ) -> Self: ...
    @property
    def num_parameters(self) -> int: ...
    @property
    def d_model(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def dtype(self) -> Literal["float32", "float64"]: ...
    def __reduce__(self) -> tuple[Callable[..., DecoderLayer], tuple[Any, ...]]: ...

@final
class Decoder:
    def __new__(
        cls,
        num_layers: SupportsIndex,
        d_model: SupportsIndex,
        num_heads: SupportsIndex,
        d_ff: SupportsIndex = 2048,
        *,
        final_norm: bool = False,
        positions: Literal["sinusoidal", "rotary", "alibi"] | None = None,
        num_kv_heads: SupportsIndex | None = None,
        head_dim: SupportsIndex | None = None,
        activation: Literal["relu", "gelu", "gelu_tanh", "silu"] = "relu",
        norm: Literal["layer", "rms"] = "layer",
        norm_first: bool = False,
        layer_norm_eps: float = 1e-5,
        ffn: Literal["mlp", "glu"] = "mlp",
        bias: bool = True,
        dropout: float = 0.0,
        dtype: _LayerDType = "float32",
        rng: _Rng = None,
    ) -> Self: ...
    @overload
    def __call__(
        self,
        x: list[NDArray[Any]],
        memory: list[NDArray[Any]],
        *,
        attn_mask: ArrayLike | None = None,
        key_mask: ArrayLike | None = None,
        lengths: ArrayLike | None = None,
        is_causal: bool = True,
        window: _Window | None = None,
        memory_mask: ArrayLike | None = None,
        memory_key_mask: ArrayLike | None = None,
        memory_lengths: ArrayLike | None = None,
        head_mask: ArrayLike | None = None,
        cross_head_mask: ArrayLike | None = None,
        output_hidden_states: Literal[False] = False,
        need_weights: Literal[False] = False,
        training: bool = False,
        rng: _Rng = None,
    ) -> list[NDArray[Any]]: ...
    @overload
    def __call__(
        self,
        x: ArrayLike,
        memory: ArrayLike,
        *,
        attn_mask: ArrayLike | None = None,
        key_mask: ArrayLike | None = None,
        lengths: ArrayLike | None = None,
        is_causal: bool = True,
        window: _Window | None = None,
        memory_mask: ArrayLike | None = None,
        memory_key_mask: ArrayLike | None = None,
        memory_lengths: ArrayLike | None = None,
        head_mask: ArrayLike | None = None,
        cross_head_mask: ArrayLike | None = None,
        output_hidden_states: Literal[False] = False,
        need_weights: Literal[False] = False,
        training: bool = False,
        rng: _Rng = None,
    ) -> NDArray[Any]: ...
    @overload
    def __call__(
        self,
        x: ArrayLike,
        memory: ArrayLike,
        *,
        attn_mask: ArrayLike | None = None,
        key_mask: ArrayLike | None = None,
        lengths: ArrayLike | None = None,
        is_causal: bool = True,
        window: _Window | None = None,
        memory_mask: ArrayLike | None = None,
        memory_key_mask: ArrayLike | None = None,
        memory_lengths: ArrayLike | None = None,
        head_mask: ArrayLike | None = None,
        cross_head_mask: ArrayLike | None = None,
        output_hidden_states: Literal[True],
        need_weights: bool | _Heads = False,
        training: bool = False,
        rng: _Rng = None,
    ) -> DecoderOutput: ...
    @overload
    def __call__(
        self,
        x: ArrayLike,
        memory: ArrayLike,
        *,
        attn_mask: ArrayLike | None = None,
        key_mask: ArrayLike | None = None,
        lengths: ArrayLike | None = None,
        is_causal: bool = True,
        window: _Window | None = None,
        memory_mask: ArrayLike | None = None,
        memory_key_mask: ArrayLike | None = None,
        memory_lengths: ArrayLike | None = None,
        head_mask: ArrayLike | None = None,
        cross_head_mask: ArrayLike | None = None,
        output_hidden_states: bool = False,
        need_weights: Literal[True] | _Heads,
        training: bool = False,
        rng: _Rng = None,
    ) -> DecoderOutput: ...
    @overload
    def __call__(
        self,
        x: ArrayLike,
        memory: ArrayLike,
        *,
        attn_mask: ArrayLike | None = None,
        key_mask: ArrayLike | None = None,
        lengths: ArrayLike | None = None,
        is_causal: bool = True,
        window: _Window | None = None,
        memory_mask: ArrayLike | None = None,
        memory_key_mask: ArrayLike | None = None,
        memory_lengths: ArrayLike | None = None,
        head_mask: ArrayLike | None = None,
        cross_head_mask: ArrayLike | None = None,
        output_hidden_states: bool = False,
        need_weights: bool | _Heads = False,
        training: bool = False,
        rng: _Rng = None,
    ) -> Any: ...
    def vjp(
        self,
        x: ArrayLike | list[ArrayLike],
        memory: ArrayLike | list[ArrayLike],
        *,
        attn_mask: ArrayLike | None = None,
        key_mask: ArrayLike | None = None,
        lengths: ArrayLike | None = None,
        is_causal: bool = True,
        window: _Window | None = None,
        memory_mask: ArrayLike | None = None,
        memory_key_mask: ArrayLike | None = None,
        memory_lengths: ArrayLike | None = None,
        head_mask: ArrayLike | None = None,
        cross_head_mask: ArrayLike | None = None,
        training: bool = False,
        rng: _Rng = None,
    ) -> tuple[Any, Pullback]: ...
    def new_cache(
        self,
        memory: ArrayLike | list[ArrayLike],
        *,
        memory_key_mask: ArrayLike | None = None,
        memory_lengths: ArrayLike | None = None,
        window: _Window | None = None,
    ) -> DecoderCache: ...
    @overload
    def step(
        self,
        x: ArrayLike,
        cache: DecoderCache,
        *,
        lengths: ArrayLike | None = None,
        need_weights: Literal[False] = False,
    ) -> NDArray[Any]: ...
    @overload
    def step(
        self,
        x: ArrayLike,
        cache: DecoderCache,
        *,
        lengths: ArrayLike | None = None,
        need_weights: Literal[True],
    ) -> tuple[NDArray[Any], list[NDArray[Any]]]: ...
    @overload
    def step(
        self,
        x: ArrayLike,
        cache: DecoderCache,
        *,
        lengths: ArrayLike | None = None,
        need_weights: bool = False,
    ) -> Any: ...
    def state_dict(self) -> dict[str, NDArray[Any]]: ...
    def load_state_dict(self, state: Mapping[str, ArrayLike], strict: bool = True) -> None: ...
    def to(self, dtype: _LayerDType) -> Self: ...
    def prune_heads(
        self,
        heads: Mapping[int, Iterable[SupportsIndex]],
        cross_heads: Mapping[int, Iterable[SupportsIndex]] | None = None,
    ) -> Self: ...
    @property
    def num_parameters(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def d_model(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def dtype(self) -> Literal["float32", "float64"]: ...
    def __reduce__(self) -> tuple[Callable[..., Decoder], tuple[Any, ...]]: ...

@final
class TextEncoder:
    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike[str],
        *,
        dtype: str = "float32",
        max_length: int | None = None,
        pooling: str | None = None,
        mmap: bool = False,
    ) -> Self: ...
    def with_max_length(self, max_length: int) -> Self: ...
    def encode(
        self,
        inputs: list[Any],
        skip: int = 0,
        truncate_dim: int | None = None,
        normalize: bool = False,
    ) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[np.bool_]]: ...
    def states(
        self, inputs: list[Any], skip: int = 0
    ) -> tuple[
        list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[Any], NDArray[Any]]],
        NDArray[np.int64],
        NDArray[np.bool_],
    ]: ...
    def lengths(self, inputs: list[Any]) -> NDArray[np.int64]: ...
    def features(self, inputs: list[Any]) -> dict[str, NDArray[np.int64]]: ...
    def vjp(
        self, inputs: list[Any], skip: int = 0, first_layer: int = 0
    ) -> tuple[NDArray[Any], Pullback]: ...
    def state_dict(self) -> dict[str, NDArray[Any]]: ...
    def with_state(self, state: Mapping[str, ArrayLike], strict: bool = True) -> Self: ...
    def prompt_length(self, prompt: str) -> int: ...
    def forward(
        self,
        input_ids: ArrayLike,
        attention_mask: ArrayLike | None = None,
        token_type_ids: ArrayLike | None = None,
    ) -> NDArray[Any]: ...
    def attentions(self, text: str, text_pair: str | None = None) -> AttentionMaps: ...
    @property
    def folder(self) -> Path: ...
    @property
    def trained(self) -> bool: ...
    @property
    def dtype(self) -> str: ...
    @property
    def width(self) -> int: ...
    @property
    def max_length(self) -> int: ...
    @property
    def pooling(self) -> str: ...
    @property
    def settings(self) -> dict[str, Any]: ...
    def __deepcopy__(self, _memo: dict[int, Any]) -> Self: ...
    def __reduce__(self) -> tuple[Callable[..., TextEncoder], tuple[Any, ...]]: ...

def _unit_rows(x: ArrayLike) -> NDArray[Any]: ...

@final
class _PackedLinear:
    def __new__(cls, weight: ArrayLike, bias: ArrayLike) -> _PackedLinear: ...
    def multiply(self, x: ArrayLike) -> NDArray[np.float32]: ...
