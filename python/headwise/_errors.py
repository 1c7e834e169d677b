"""The exceptions that headwise raises.

They are defined here, and not in the compiled module, because each derives from a builtin exception as
well: who catches ``ValueError`` catches a ``ShapeError``.
"""


class HeadwiseError(Exception):
    """Base of all exceptions that headwise defines."""


class ShapeError(HeadwiseError, ValueError):
    """Shapes that do not fit each other, or that no array can have."""


class DTypeError(HeadwiseError, TypeError):
    """An array of a dtype that headwise does not compute with."""


class ModelFormatError(HeadwiseError, ValueError):
    """A checkpoint that is damaged, or does not fit its own configuration."""


class TokenizerError(HeadwiseError, ValueError):
    """A tokenizer file that cannot be used, or a text that cannot be tokenized."""


class UnsupportedModelError(HeadwiseError):
    """A sound checkpoint of a family that headwise does not run."""


class GradientError(HeadwiseError, AssertionError):
    """A gradient that `gradcheck` finds to be wrong."""


class InternalError(HeadwiseError, RuntimeError):
    """A fault of headwise itself; please report it with the call that caused it."""


class ArgumentValueError(HeadwiseError, ValueError):
    """A value out of its range. Not public: catch ``ValueError`` or ``HeadwiseError``."""


class ArgumentTypeError(HeadwiseError, TypeError):
    """An argument of the wrong kind. Not public: catch ``TypeError`` or ``HeadwiseError``."""


# Users know the public ones by the package; tracebacks and pickles should too.
for _public in (
    HeadwiseError,
    ShapeError,
    DTypeError,
    ModelFormatError,
    TokenizerError,
    UnsupportedModelError,
    GradientError,
    InternalError,
):
    _public.__module__ = "headwise"
