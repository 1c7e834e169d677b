"""Arrays in one safetensors file: written whole or not at all, believed only after a check of the header.

The file is 8 bytes of length n, n bytes of JSON (name -> dtype, shape, byte range; and strings under
``__metadata__``), then the numbers, in little-endian C order. The header is parsed and checked by the
compiled part, as those of models are; here arrays are read from the ranges that it has checked.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headwise import _core
from headwise._errors import ModelFormatError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

_DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "F16": "float16",
    "U32": "uint32",
    "I32": "int32",
    "F32": "float32",
    "U64": "uint64",
    "I64": "int64",
    "F64": "float64",
    "BF16": "bfloat16",
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}

_MAX_HEADER = 4 << 20
"""Bytes of the longest header that is read again."""


def write(path: Path, arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> None:
    """Write a file that is there whole or not at all: beside its place first, then moved there."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    # Wide numbers first, so that every array begins at a multiple of its items' size.
    names = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    at = 0
    for name in names:
        array = arrays[name]
        if array.dtype.name not in _NAMES:
            msg = f"cannot write {name!r}: a checkpoint holds no arrays of dtype {array.dtype}"
            raise TypeError(msg)
        shape, end = list(array.shape), at + array.nbytes
        header[name] = {"dtype": _NAMES[array.dtype.name], "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > _MAX_HEADER:
        msg = f"names and plain values take {len(text)} bytes, more than {_MAX_HEADER}: use arrays"
        raise ValueError(msg)
    # What a link stands for is replaced, not the link.
    target = Path(os.path.realpath(path))
    beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name in names:
                file.write(_little_endian(arrays[name]).tobytes())
            file.flush()
            os.fsync(file.fileno())
        beside.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise


def read(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Read all arrays and the metadata of a file; what is damaged is a `ModelFormatError`."""
    metadata, tensors = _core._tensor_file(path)
    arrays = {}
    with path.open("rb") as file:
        for name, (kind, shape, start, end) in tensors.items():
            dtype = _dtype(path, name, kind)
            file.seek(start)
            data = file.read(end - start)
            if len(data) != end - start or len(data) != math.prod(shape) * dtype.itemsize:
                msg = f"{path}: cut at the array {name!r}"
                raise ModelFormatError(msg)
            try:
                # A copy may be written; its byte order is the machine's.
                array = np.frombuffer(data, dtype).reshape(shape)
            except ValueError as error:
                msg = f"{path}: array {name!r}: {error}"
                raise ModelFormatError(msg) from error
            arrays[name] = array.astype(dtype.newbyteorder("="))
    return arrays, metadata


def _little_endian(array: NDArray[Any]) -> NDArray[Any]:
    return array if array.dtype.kind == "V" else array.astype(array.dtype.newbyteorder("<"), copy=False)


def _dtype(path: Path, name: str, kind: str) -> np.dtype[Any]:
    if kind == "BF16":
        try:
            import ml_dtypes
        except ImportError:
            msg = f"{path}: array {name!r} is bfloat16, which NumPy knows with the package ml_dtypes only"
            raise ModelFormatError(msg) from None
        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    if kind not in _DTYPES:
        msg = f"{path}: array {name!r} is of dtype {kind}, which no checkpoint of a training holds"
        raise ModelFormatError(msg)
    return np.dtype(_DTYPES[kind]).newbyteorder("<")
