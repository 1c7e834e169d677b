"""Writers of embeddings that arrive in batches: .npy, JSON lines, Parquet.

A file appears under its name when it is whole: it is written beside it and renamed at the end.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from headwise._cli._common import CommandError, Record

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Embeddings = npt.NDArray[np.floating[Any]]  # (N, D)


class Writer(Protocol):
    """What takes embeddings. The file is whole after ``close``, which is called after a failure too."""

    def write(self, records: Sequence[Record], embeddings: Embeddings) -> None:
        """Take N texts and their embeddings."""

    def close(self) -> None:
        """Write what comes last."""


def writer(kind: str, file: BinaryIO, dimensions: int) -> Writer:
    """Make the writer of a format.

    Parameters
    ----------
    kind : str
        "npy", "jsonl" or "parquet".
    file : binary file
        Where to write; .npy is written to seekable files only.
    dimensions : int
        D, the width of the embeddings.

    Returns
    -------
    Writer
        It writes to the file, and leaves it open.
    """
    if kind == "parquet":
        return _Parquet(file, dimensions)
    return _Npy(file, dimensions) if kind == "npy" else _JsonLines(file)


@contextlib.contextmanager
def output(name: str, kind: str) -> Iterator[BinaryIO]:
    """Open what embeddings are written to; on a failure nothing is left behind.

    Parameters
    ----------
    name : str
        A path; ``-`` is stdout.
    kind : str
        "npy", "jsonl" or "parquet".

    Yields
    ------
    binary file
        A file; seekable unless the format is JSON lines.
    """
    if name == "-":
        sys.stdout.flush()
        with _seekable(sys.stdout.buffer, kind) as file:
            yield file
        sys.stdout.buffer.flush()
        return
    path = Path(os.path.realpath(name))  # a link stays a link
    if path.is_dir():
        msg = f"{name}: expected a file, this is a folder"
        raise CommandError(msg)
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        # A device or a pipe is written to, never replaced.
        with path.open("wb") as device, _seekable(device, kind) as file:
            yield file
        return
    if not path.parent.is_dir():
        msg = f"{name}: the folder {path.parent} does not exist"
        raise CommandError(msg)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def _seekable(sink: BinaryIO, kind: str) -> Iterator[BinaryIO]:
    """Collect what needs a seekable file in a temporary one, and copy that at the end."""
    if kind == "jsonl":
        yield sink
        return
    with tempfile.TemporaryFile() as file:
        yield file
        file.seek(0)
        shutil.copyfileobj(file, sink)


class _Npy:
    """One array (N, D): the header is written first for any N, and again at the end with the true one."""

    def __init__(self, file: BinaryIO, dimensions: int) -> None:
        self._file = file
        self._dimensions = dimensions
        self._rows = 0
        self._dtype = "<f4"
        self._start = 0

    def write(self, records: Sequence[Record], embeddings: Embeddings) -> None:
        if self._start == 0:
            self._dtype = embeddings.dtype.newbyteorder("<").str
            self._header(sys.maxsize)
            self._start = self._file.tell()
        self._rows += len(embeddings)
        self._file.write(embeddings.astype(self._dtype, order="C", copy=False).data)

    def close(self) -> None:
        self._file.seek(0)
        self._header(self._rows)
        if self._file.tell() != self._start and self._start != 0:
            msg = "the header of the .npy file has changed its length"
            raise AssertionError(msg)
        self._file.seek(0, os.SEEK_END)

    def _header(self, rows: int) -> None:
        import numpy as np

        facts = {"descr": self._dtype, "fortran_order": False, "shape": (rows, self._dimensions)}
        np.lib.format.write_array_header_1_0(self._file, facts)


class _JsonLines:
    """An object for each text: its own fields, or the text, and ``embedding``."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, records: Sequence[Record], embeddings: Embeddings) -> None:
        import numpy as np

        for record, embedding in zip(records, embeddings, strict=True):
            if not np.isfinite(embedding).all():
                msg = f"{record.file}:{record.line}: the embedding is not finite, which JSON cannot say"
                raise CommandError(msg)
            fields = {"text": record.text} if record.fields is None else record.fields
            fields = {name: value for name, value in fields.items() if name != "embedding"}
            # str of a NumPy float is the shortest text that gives the same float back.
            numbers = ", ".join(map(str, embedding))
            rest = json.dumps(fields, ensure_ascii=False)[1:-1]
            line = "{" + rest + (", " if rest else "") + f'"embedding": [{numbers}]' + "}\n"
            self._file.write(line.encode())
        self._file.flush()

    def close(self) -> None:
        pass


class _Parquet:
    """Columns ``text`` and ``embedding``, the latter a list of fixed length."""

    def __init__(self, file: BinaryIO, dimensions: int) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            msg = "Parquet needs pyarrow: pip install pyarrow, or choose .npy or .jsonl"
            raise CommandError(msg) from error
        self._arrow = pyarrow
        self._type = pyarrow.list_(pyarrow.float32(), dimensions)
        self._schema = pyarrow.schema([("text", pyarrow.string()), ("embedding", self._type)])
        self._writer = pyarrow.parquet.ParquetWriter(file, self._schema)

    def write(self, records: Sequence[Record], embeddings: Embeddings) -> None:
        texts = self._arrow.array([record.text for record in records], self._arrow.string())
        flat = self._arrow.array(embeddings.astype("float32", copy=False).ravel())
        rows = self._arrow.FixedSizeListArray.from_arrays(flat, type=self._type)
        self._writer.write_batch(self._arrow.record_batch([texts, rows], schema=self._schema))

    def close(self) -> None:
        self._writer.close()
