"""Check that the crate's imports point down only, and that each layer keeps to its means.

``python -> models -> nn -> ops -> kernels -> simd``: a file may name its own layer and those below.
``account``, ``error``, ``threads`` and ``philox`` serve all layers and may themselves use only one
another and ``simd``. Beyond the order:

- intrinsics (``std::arch``) are named in ``src/simd`` alone; ``threads`` may set the floating-point mode by
  ``asm!``;
- ``pyo3`` and ``numpy`` are named in ``src/python`` alone;
- ``simd`` and ``kernels`` do not know of threads (``rayon``, ``crate::threads``).

A path is found wherever it stands (``use`` lists, full paths in code, ``super::`` chains); comments and
strings are not code. Run as a script; a fault is a line ``file:line: what``, and the exit status is 1.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

LAYERS = ["simd", "kernels", "ops", "nn", "models", "python"]
SERVANTS = ["account", "error", "threads", "philox"]

# What a servant may use; a layer may use what is at or below it, and the servants.
ALLOWED = {name: {*LAYERS[: height + 1], *SERVANTS} for height, name in enumerate(LAYERS)}
ALLOWED |= {name: {*SERVANTS, "simd"} for name in SERVANTS}
for threadless in ("simd", "kernels"):
    ALLOWED[threadless] -= {"threads"}

# Names of other crates and where they may stand.
OUTSIDE = {
    "std::arch": {"simd"},
    "std::arch::asm": {"simd", "threads"},
    "core::arch": {"simd"},
    "is_x86_feature_detected": {"simd"},
    "std::is_x86_feature_detected": {"simd"},
    "pyo3": {"python"},
    "numpy": {"python"},
    "rayon": {"threads", *LAYERS[2:]},
}

NOT_CODE = re.compile(
    r"//[^\n]*|/\*.*?\*/|r(#*)\".*?\"\1|b?\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])'",
    re.DOTALL,
)
TOKEN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|::|[{},;]|\S")

Token = tuple[str, int]
"""A word or sign of the source, and its line."""


def tokens(source: str) -> list[Token]:
    """Split Rust source into words and signs with their lines, leaving out comments and literals."""
    code = NOT_CODE.sub(lambda found: " " + "\n" * found.group().count("\n"), source)
    lines = enumerate(code.split("\n"), start=1)
    return [(found.group(), number) for number, line in lines for found in TOKEN.finditer(line)]


def module_of(path: Path) -> list[str]:
    """Return the module path of a file below ``src``: ``ops/linear.rs`` is ``ops, linear``."""
    parts = list(path.with_suffix("").parts)
    return parts[:-1] if parts[-1] in {"mod", "lib"} else parts


def crate_paths(words: list[Token], module: list[str]) -> Iterator[Token]:
    """Yield the top-level module that each ``crate::`` or ``super::`` path names, with its line."""
    inline: list[tuple[str, int]] = []  # the modules opened in this file, with the depth of their brace
    depth = 0
    for at, (word, line) in enumerate(words):
        before = words[at - 1][0] if at else ""
        if word == "{":
            depth += 1
            if at >= 2 and words[at - 2][0] == "mod":
                inline.append((before, depth))
        elif word == "}":
            if inline and inline[-1][1] == depth:
                inline.pop()
            depth -= 1
        elif word in {"crate", "super"} and before != "::" and _is(words, at + 1, "::"):
            here = [*module, *(name for name, _ in inline)]
            after = at
            if word == "crate":
                here = []
                after += 2
            while _is(words, after, "super"):
                here = here[:-1]
                after += 2
            if here:
                yield here[0], line
            else:
                yield from _heads(words, after)


def _is(words: list[Token], at: int, word: str) -> bool:
    return at < len(words) and words[at][0] == word


def _heads(words: list[Token], at: int) -> Iterator[Token]:
    """Yield the first name of a path, or of each member of the group ``{a::b, c}`` in its place."""
    if not _is(words, at, "{"):
        if at < len(words):
            yield words[at]
        return
    depth = 0
    while at < len(words):
        word = words[at][0]
        depth += (word == "{") - (word == "}")
        if depth == 0:
            return
        if depth == 1 and word in {"{", ","} and not _is(words, at + 1, "}"):
            yield words[at + 1]
        at += 1


def outside_names(words: list[Token]) -> Iterator[Token]:
    """Yield each name of OUTSIDE that the words hold, the longest that fits, with its line."""
    for at, (word, line) in enumerate(words):
        if at and words[at - 1][0] == "::":
            continue
        path, end = word, at + 1
        fits = word if word in OUTSIDE and (_is(words, end, "::") or _is(words, end, "!")) else ""
        while _is(words, end, "::") and end + 1 < len(words):
            path += f"::{words[end + 1][0]}"
            end += 2
            fits = path if path in OUTSIDE else fits
        if fits:
            yield fits, line


def faults(path: Path, source: str) -> list[str]:
    """Return the faults of one file; ``path`` is relative to ``src``."""
    module = module_of(path)
    if not module:
        return []  # lib.rs names all layers
    layer = module[0]
    if layer not in ALLOWED:
        return [f"src/{path}:1: {layer} is neither a layer nor one of {', '.join(SERVANTS)}"]
    words = tokens(source)
    found = [
        (line, f"{layer} may not use crate::{name}")
        for name, line in crate_paths(words, module)
        if name in ALLOWED and name not in ALLOWED[layer]
    ]
    found += [
        (line, f"{name} stands in {', '.join(sorted(OUTSIDE[name]))} only")
        for name, line in outside_names(words)
        if layer not in OUTSIDE[name]
    ]
    return [f"src/{path}:{line}: {what}" for line, what in sorted(found)]


def main() -> int:
    """Check every file of the crate; print the faults and return the exit status."""
    root = Path(__file__).resolve().parent.parent / "src"
    files = sorted(root.rglob("*.rs"))
    found = [fault for file in files for fault in faults(file.relative_to(root), file.read_text())]
    print("\n".join(found) if found else f"{len(files)} files keep the order of the layers")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
