"""``headwise attend``: what each head links a word of a text to."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from headwise._cli._common import CommandError, add_json, add_model, check_text, load, print_json, threads

if TYPE_CHECKING:
    from headwise import AttentionLinks, AttentionMaps
    from headwise._cli._common import Commands


def add(commands: Commands[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Describe the arguments."""
    parser = commands.add_parser(
        "attend",
        help="show what each head links a word to",
        description="Print what each head of each layer links a word to, and with which weight; without "
        "--word, the strongest links between words in each layer (with --json, all weights between words).",
    )
    parser.add_argument("text", help="the text to look into")
    parser.add_argument("--pair", metavar="TEXT", help="a second text, read together with the first")
    parser.add_argument("--word", help="the word whose links to show")
    parser.add_argument(
        "--occurrence", type=int, metavar="N", help="which of several equal words, counted from 0"
    )
    parser.add_argument("--special", action="store_true", help="count links to special tokens such as [SEP]")
    parser.add_argument("--itself", action="store_true", help="count the link of the word to itself")
    add_model(parser)
    add_json(parser)
    return parser


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Compute the maps and print the links."""
    if options.word is None and (options.occurrence is not None or options.special or options.itself):
        parser.error("--occurrence, --special and --itself need --word")
    pair = None if options.pair is None else check_text("--pair", options.pair)
    text = check_text("text", options.text)
    with threads(options):
        maps = load(options.model).attentions(text, pair)
    if options.word is None:
        if options.json:
            weights = maps.to_words().round(6).tolist()
            print_json({"words": maps.words, "special": maps.special, "weights": weights})
        else:
            print(maps)
        return
    links = _links(maps, options)
    if options.json:
        print_json(
            {
                "words": maps.words,
                "word": links.word,
                "position": links.position,
                "links": [link._asdict() for link in links],
            }
        )
    else:
        print(links)


def _links(maps: AttentionMaps, options: argparse.Namespace) -> AttentionLinks:
    chosen = {"occurrence": options.occurrence, "special": options.special, "itself": options.itself}
    try:
        return maps.links(options.word, **chosen)
    except (ValueError, IndexError) as error:
        text = f"--{error}"  # the argument that the text begins with has the option's name
        for name in chosen:
            text = text.replace(f" {name}=True", f" --{name}").replace(f" {name}=", f" --{name}")
        raise CommandError(text) from error
