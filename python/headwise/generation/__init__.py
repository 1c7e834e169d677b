"""Generation of sequences, token by token, from any model that scores what may follow.

`generate` needs two methods of a model and two of its state, which `GenerativeModel` and
`GenerationState` describe; decoders with a cache and recurrent networks have both.
"""

from headwise.generation._generate import generate
from headwise.generation._protocol import GenerationState, GenerativeModel
from headwise.generation._result import Generated

__all__ = ["Generated", "GenerationState", "GenerativeModel", "generate"]

# Users know them by the package.
GenerationState.__module__ = GenerativeModel.__module__ = __name__
Generated.__module__ = generate.__module__ = "headwise"
