"""``headwise embed``: embeddings of texts, one a line, streamed in bounded memory."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from typing import TYPE_CHECKING

from headwise._cli._common import (
    add_json,
    add_model,
    add_texts,
    batches,
    check_texts,
    load,
    print_json,
    read_texts,
    threads,
)

if TYPE_CHECKING:
    from headwise._cli._common import Commands

SUFFIXES = {".npy": "npy", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
FORMATS = tuple(dict.fromkeys(SUFFIXES.values()))


def add(commands: Commands[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Describe the arguments."""
    parser = commands.add_parser(
        "embed",
        help="turn lines of text into embeddings",
        description="Embed texts, one a line, and write one row for each line, empty lines too. The file "
        "appears when it is whole. Texts are computed in portions of 32 batches.",
    )
    add_texts(parser, "files of one text a line")
    parser.add_argument(
        "-o",
        "--output",
        default="-",
        metavar="FILE",
        help="where to write: .npy, .jsonl or .parquet (with pyarrow); - is stdout (default), as JSON lines",
    )
    parser.add_argument("--format", choices=FORMATS, help="the format, where the name does not tell")
    parser.add_argument("--normalize", action="store_true", help="scale each embedding to length 1")
    add_model(parser)
    add_json(parser)
    return parser


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Read, embed, write."""
    from headwise._cli._progress import count_lines, progress
    from headwise._cli._writers import output, writer

    check_texts(options, parser)
    kind = _kind(options, parser)
    with threads(options):
        encoder = load(options.model)
        dimensions, rows = encoder.get_embedding_dimension(), 0
        with (
            output(options.output, kind) as file,
            contextlib.closing(writer(kind, file, dimensions)) as out,
            progress(count_lines(options.files)) as advance,
        ):
            for batch in batches(read_texts(options.files, options.field), 32 * options.batch_size):
                embeddings = encoder.encode(
                    [record.text for record in batch],
                    batch_size=options.batch_size,
                    normalize_embeddings=options.normalize,
                )
                out.write(batch, embeddings)
                rows += len(batch)
                advance(len(batch))
    if options.output == "-":
        return
    if options.json:
        print_json({"output": options.output, "format": kind, "texts": rows, "dimensions": dimensions})
    else:
        print(f"{options.output}: {rows} texts, {dimensions} dimensions")


def _kind(options: argparse.Namespace, parser: argparse.ArgumentParser) -> str:
    """Tell the format; refuse what cannot be meant."""
    to_stdout = options.output == "-"
    kind = options.format or SUFFIXES.get(os.path.splitext(options.output)[1].lower())
    if kind is None and to_stdout:
        kind = "jsonl"
    if kind is None:
        parser.error(f"--output: expected a name that ends in {', '.join(SUFFIXES)}, or --format")
    if any(_same_file(options.output, file) for file in options.files):
        parser.error(f"--output: {options.output} is one of the files to read, and would be replaced")
    if to_stdout and options.json:
        parser.error("--json describes a file that was written; the embeddings themselves go to stdout here")
    if to_stdout and kind != "jsonl" and sys.stdout.isatty():
        parser.error(f"{kind} is not for a terminal: name a file with --output")
    return str(kind)


def _same_file(output: str, file: str) -> bool:
    return (
        "-" not in (output, file)
        and all(map(os.path.isfile, (output, file)))
        and os.path.samefile(output, file)
    )
