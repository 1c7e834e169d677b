"""What several commands share: options, the encoder, texts from files, JSON."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from typing import BinaryIO

    from headwise import TextEncoder

Commands = argparse._SubParsersAction  # argparse has no public name for it
JSON_LINES = (".jsonl", ".ndjson")


class CommandError(Exception):
    """A failure that its text explains to the user."""


class Record(NamedTuple):
    """A text from a file, and where it stands."""

    file: str
    line: int
    text: str
    fields: dict[str, Any] | None
    """The object that it is part of, in files of JSON lines."""


def positive(text: str) -> int:
    """Read an option's number of at least 1."""
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        msg = f"expected a whole number of at least 1, got {text!r}"
        raise argparse.ArgumentTypeError(msg)
    return number


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose the encoder."""
    parser.add_argument(
        "--model", default="minilm", metavar="MODEL", help="name or folder of the model (default: minilm)"
    )
    parser.add_argument("--threads", type=positive, metavar="N", help="threads to compute with")


def add_texts(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the files to read and how."""
    parser.add_argument(
        "files", nargs="*", default=["-"], metavar="FILE", help=f"{what}; - is stdin (default)"
    )
    parser.add_argument(
        "--field", metavar="NAME", help="read JSON lines, and take the text from this field of each object"
    )
    parser.add_argument(
        "--batch-size", type=positive, default=32, metavar="N", help="texts computed at once (default: 32)"
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add the switch that every command which prints has."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def check_texts(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Refuse what is surely a slip: JSON lines read as plain ones, one stdin read twice."""
    for file in options.files:
        if options.field is None and file.lower().endswith(JSON_LINES):
            parser.error(f"{file} looks like JSON lines: name the field that holds the text with --field")
    if options.files.count("-") > 1:
        parser.error("stdin (-) can be read once only")


@contextlib.contextmanager
def threads(options: argparse.Namespace) -> Iterator[None]:
    """Compute with the number of threads that was asked for."""
    from headwise import num_threads

    if options.threads is None:
        yield
        return
    with num_threads(options.threads):
        yield


def load(name: str) -> TextEncoder:
    """Load an encoder; a model that is not there is an explained failure."""
    from headwise import TextEncoder

    try:
        return TextEncoder.from_pretrained(name)
    except FileNotFoundError as error:
        raise CommandError(str(error)) from error


def check_text(what: str, text: str) -> str:
    """Refuse an argument that is not UTF-8: Python keeps such bytes as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        msg = f"{what}: expected UTF-8, got {text!r}"
        raise CommandError(msg) from None
    return text


def read_texts(files: Sequence[str], field: str | None) -> Iterator[Record]:
    """Yield a record for each line; memory is that of the longest. Empty lines of JSON lines are none."""
    for name in files:
        with _opened(name) as file:
            shown = "stdin" if name == "-" else name
            for number, raw in enumerate(file, start=1):
                # Windows editors begin UTF-8 files with a byte order mark.
                bare = (raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw).rstrip(b"\r\n")
                if field is None or bare.strip():
                    yield _record(shown, number, bare, field)


def batches(records: Iterator[Record], size: int) -> Iterator[list[Record]]:
    """Cut a stream into lists of at most ``size``."""
    batch = []
    for record in records:
        batch.append(record)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def print_json(value: object) -> None:
    """Print a value as one line of JSON."""
    import json

    print(json.dumps(value, ensure_ascii=False))


def _opened(name: str) -> contextlib.AbstractContextManager[BinaryIO]:
    if name != "-":
        return open(name, "rb")
    if sys.stdin is None:  # the caller closed it
        msg = "stdin is closed; name a file"
        raise CommandError(msg)
    return contextlib.nullcontext(sys.stdin.buffer)


def _record(file: str, number: int, raw: bytes, field: str | None) -> Record:
    import json

    try:
        line = raw.decode()
    except UnicodeDecodeError as error:
        msg = f"{file}:{number}: expected UTF-8, byte {error.start + 1} of the line is none"
        raise CommandError(msg) from None
    if field is None:
        return Record(file, number, line, None)
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        msg = f"{file}:{number}: expected a JSON object, got {_clipped(line)} ({error})"
        raise CommandError(msg) from None
    if not isinstance(fields, dict) or not isinstance(fields.get(field), str):
        msg = f"{file}:{number}: expected a JSON object with a text in field {field!r}, got {_clipped(line)}"
        raise CommandError(msg)
    return Record(file, number, check_text(f"{file}:{number}", fields[field]), fields)


def _clipped(line: str) -> str:
    return repr(line if len(line) <= 60 else line[:60] + "...")
