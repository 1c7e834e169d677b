from typing import Any, Literal, SupportsIndex, TypeAlias, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__: list[str]
__version__: str

_Integers: TypeAlias = SupportsIndex | ArrayLike
_Window: TypeAlias = tuple[SupportsIndex | None, SupportsIndex | None] | list[SupportsIndex | None]

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
