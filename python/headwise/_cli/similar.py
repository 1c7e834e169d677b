"""``headwise similar``: rank the lines of files by how near their meaning is to a query's."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from headwise._cli._common import (
    Record,
    add_json,
    add_model,
    add_texts,
    batches,
    check_text,
    check_texts,
    load,
    positive,
    print_json,
    read_texts,
    threads,
)

if TYPE_CHECKING:
    from headwise import TextEncoder
    from headwise._cli._common import Commands

Match = tuple[float, int, Record]
"""Cosine, minus the number of the text in the stream, and the text: the best is the largest."""


def add(commands: Commands[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Describe the arguments."""
    parser = commands.add_parser(
        "similar",
        help="rank lines by similarity to a query",
        description="Print the lines whose embeddings have the largest cosine with that of a query, the "
        "most similar first: cosine, place, text. Empty lines are passed over.",
    )
    parser.add_argument("query", help="the text to compare with")
    add_texts(parser, "files of one text a line")
    parser.add_argument("-k", type=positive, default=10, metavar="N", help="lines to print (default: 10)")
    add_model(parser)
    add_json(parser)
    return parser


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Read, embed, keep the best, print them."""
    check_texts(options, parser)
    check_text("query", options.query)
    with threads(options):
        best = _best(load(options.model), options)
    places = [f"{match.file}:{match.line}" for _, _, match in best]
    width = max(map(len, places), default=0)
    for (cosine, _, match), place in zip(best, places, strict=True):
        if options.json:
            found = {"score": round(cosine, 6), "file": match.file, "line": match.line, "text": match.text}
            print_json(found)
        else:
            print(f"{cosine:7.4f}  {place:<{width}}  {match.text}")


def _best(encoder: TextEncoder, options: argparse.Namespace) -> list[Match]:
    """Return the k best matches, the best first; of equal ones, the earlier."""
    import heapq

    import numpy as np

    from headwise._cli._progress import count_lines, progress

    query = encoder.encode_query([options.query], normalize_embeddings=True)[0].astype(np.float64)
    best: list[Match] = []
    seen = 0
    texts = (record for record in read_texts(options.files, options.field) if record.text.strip())
    with progress(count_lines(options.files)) as advance:
        for batch in batches(texts, 32 * options.batch_size):
            embeddings = encoder.encode_document(
                [record.text for record in batch], batch_size=options.batch_size, normalize_embeddings=True
            )
            for cosine, record in zip((embeddings @ query).tolist(), batch, strict=True):
                seen += 1
                match = (cosine, -seen, record)
                if len(best) < options.k:
                    heapq.heappush(best, match)
                else:
                    heapq.heappushpop(best, match)
            advance(len(batch))
    return sorted(best, reverse=True)
