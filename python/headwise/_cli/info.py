"""``headwise info``: what is installed, and what it computes with."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from headwise._cli._common import CommandError, add_json, load, print_json

if TYPE_CHECKING:
    from headwise._cli._common import Commands

_CONFIG = ("model_type", "num_hidden_layers", "num_attention_heads", "hidden_size", "vocab_size")
"""What config.json says that is worth knowing."""


def add(commands: Commands[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Describe the arguments."""
    parser = commands.add_parser(
        "info",
        help="version, instruction set, threads, models",
        description="Print the version, the instruction set and threads that are used, and the fetched "
        "models; with --model, what a model is.",
    )
    parser.add_argument("--model", metavar="MODEL", help="name or folder of a model to load and describe")
    add_json(parser)
    return parser


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Collect the facts and print them."""
    facts = _model(options.model) if options.model is not None else _installation()
    if options.json:
        print_json(facts)
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        shown = ", ".join(map(str, value)) or "none" if isinstance(value, list) else value
        print(f"{name.replace('_', ' '):<{width}}  {shown}")


def _installation() -> dict[str, object]:
    import platform
    from importlib.metadata import version

    from headwise import __version__, get_num_threads, isa, show_config
    from headwise._fetch import MODELS, cache_folder, fetched

    return {
        "headwise": __version__,
        "numpy": version("numpy"),
        "python": platform.python_version(),
        "isa": isa(),
        "available_isas": [str(name) for name in show_config(mode="dicts")["available_isas"]],
        "threads": get_num_threads(),
        "cache": str(cache_folder()),
        "fetched_models": [name for name in MODELS if fetched(name)],
    }


def _model(name: str) -> dict[str, object]:
    import json
    from pathlib import Path

    from headwise._fetch import find

    encoder = load(name)
    folder = Path(name).expanduser()
    folder = (folder if folder.is_dir() else find(name)).absolute()
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        msg = f"{folder / 'config.json'}: expected JSON ({error})"
        raise CommandError(msg) from error
    files = folder.glob("*.safetensors")
    return {
        "folder": str(folder),
        **{key: config[key] for key in _CONFIG if key in config},
        "embedding_dimension": encoder.get_embedding_dimension(),
        "max_seq_length": encoder.max_seq_length,
        "weights_megabytes": round(sum(file.stat().st_size for file in files) / 1e6, 1),
    }
