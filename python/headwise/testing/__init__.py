"""For people who test attention code of their own: a reference, tolerances, and comparisons by bits.

Everything is plain NumPy; no test framework is needed, and none of headwise's kernels are used.
"""

from headwise.testing._bits import assert_same_bits
from headwise.testing._reference import attention_reference
from headwise.testing._tolerances import assert_close, tolerance

__all__ = ["assert_close", "assert_same_bits", "attention_reference", "tolerance"]

# Users know the functions by the package.
for _function in (assert_close, assert_same_bits, attention_reference, tolerance):
    _function.__module__ = __name__
