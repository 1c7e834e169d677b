"""Validate the docstrings of headwise's public names against numpydoc.

The names are those of ``headwise.__all__`` and of the public submodules listed there, and the public
methods and attributes of each class, as the built package has them: the docstrings of compiled objects
are Rust comments, which no source linter reads. Which checks apply stands in pyproject.toml,
``[tool.numpydoc_validation]``.

Run as a script; a fault is a line ``name: code text``, and the exit status is 1.
"""

import inspect
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from numpydoc.validate import ERROR_MSGS, validate

import headwise


def public_names(module: ModuleType) -> Iterator[str]:
    """Yield the dotted names whose docstrings users see, without the module's own (ruff reads that)."""
    for name in module.__all__:
        value = getattr(module, name)
        dotted = f"{module.__name__}.{name}"
        if isinstance(value, ModuleType):
            yield from public_names(value)
        elif inspect.isclass(value):
            yield dotted
            # A base class of the package is a part of the class, which users do not see under its own name.
            own = [base for base in reversed(value.__mro__) if base.__module__.startswith("headwise")]
            members = {member: what for base in own for member, what in vars(base).items()}
            yield from (
                f"{dotted}.{member}"
                # Sorted: PyO3 adds properties in another order in every process.
                for member, what in sorted(members.items())
                if is_public(member) and (callable(what) or inspect.isdatadescriptor(what))
            )
        elif callable(value):
            yield dotted


def is_public(member: str) -> bool:
    """Tell whether users call a member by its name, or by calling the object."""
    return member == "__call__" or not member.startswith("_")


def is_protocol(dotted: str) -> bool:
    """Tell whether a name is a protocol: nobody calls it, and typing gives it a signature of its own."""
    module, _, name = dotted.rpartition(".")
    found = getattr(sys.modules.get(module), name, None)
    return bool(getattr(found, "_is_protocol", False))


def chosen_checks() -> set[str]:
    """Return the codes that pyproject.toml turns on: "all" less the codes that follow it."""
    settings = Path(__file__).resolve().parent.parent / "pyproject.toml"
    checks = set(tomllib.loads(settings.read_text())["tool"]["numpydoc_validation"]["checks"])
    return set(ERROR_MSGS) - checks if "all" in checks else checks


def main() -> int:
    """Validate every public name; print the faults and return the exit status."""
    checks = chosen_checks()
    names = list(public_names(headwise))
    faults = [
        f"{name}: {code} {text}"
        for name in names
        for code, text in validate(name)["errors"]
        if code in checks and not (code == "PR01" and is_protocol(name))
    ]
    print("\n".join(faults) if faults else f"{len(names)} docstrings follow numpydoc")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
