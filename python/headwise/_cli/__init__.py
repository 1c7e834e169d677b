"""The command ``headwise``, also run by ``python -m headwise``.

One file per command; each has ``add``, which describes its arguments, and ``run``. Nothing heavy is imported
before a command runs: help and version answer without NumPy.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from types import FrameType

from headwise import HeadwiseError, __version__
from headwise._cli import attend, embed, fetch, info, similar
from headwise._cli._common import CommandError

FAILURE, INTERRUPTED, BROKEN_PIPE = 1, 130, 141
"""Exit codes beside 0; a wrong call is 2, given by argparse. The last two are 128 + SIGINT and SIGPIPE."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    arguments : sequence of str, optional
        What follows the command's name; those of the process by default.

    Returns
    -------
    int
        The exit code: 0 for success, 1 for a failure that was explained, 130 for Ctrl-C, 141 for a reader of
        the output that went away.

    Raises
    ------
    SystemExit
        For a wrong call (2), and after help and version (0).
    """
    # Python has None for streams that the caller closed.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - open until the process ends
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    # A terminal or pipe that is not UTF-8 gets escapes for what it cannot show.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with _ended_by_signals(), warnings.catch_warnings():
            warnings.showwarning = _show_warning
            parser = _parser()
            options = parser.parse_args(arguments)
            options.run(options, options.parser)
            sys.stdout.flush()
    except BrokenPipeError:
        _forget_stdout()
        return BROKEN_PIPE
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED
    except MemoryError:
        _say("not enough memory; a smaller --batch-size needs less")
        return FAILURE
    except (CommandError, HeadwiseError) as error:
        _say(str(error))
        return FAILURE
    except OSError as error:
        _say(f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error))
        return FAILURE
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="headwise", description="Transformer attention and encoders for NumPy.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"headwise {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (fetch, embed, similar, attend, info):
        added = command.add(commands)
        added.allow_abbrev = False  # a new option must not change what an old script means
        added.set_defaults(run=command.run, parser=added)
    return parser


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Print a warning of the library without the line of source that it came from."""
    _say(f"warning: {message}")


def _say(text: str) -> None:
    print(f"headwise: {text}", file=sys.stderr)


def _forget_stdout() -> None:
    """Keep the interpreter from failing again when it flushes at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the stack, so that unfinished files are removed."""

    def leave(number: int, _: FrameType | None) -> None:
        sys.exit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # One that is ignored stays so: that is how nohup works.
    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is signal.SIG_DFL]
    before = {number: signal.signal(number, leave) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
