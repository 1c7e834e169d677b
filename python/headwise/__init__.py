"""Transformer attention and encoders for NumPy arrays.

Every function and layer takes NumPy arrays (or anything ``np.asarray`` understands) and gives NumPy
arrays. The arithmetic runs in compiled kernels for the instruction set of the machine; the same input
gives the same bits on every one of them.

In masks, ``True`` means *may be attended*, everywhere.
"""

from headwise._core import __version__

__all__ = ["__version__"]
