"""bf16 without a bf16 dtype: the upper half of a float32, carried as uint16 (docs/design.md, §10).

Invariants
- Encoding rounds to nearest, ties to even, as torch does; decoding is exact.
- NaN stays NaN; a value too large for bf16 becomes infinite, which the wire schema then refuses.

>>> import numpy as np
>>> decode(encode(np.array([1.0, -2.5], np.float32))).tolist()
[1.0, -2.5]
"""

import numpy as np
from numpy.typing import NDArray


def encode(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return the bf16 bits of float32 values as uint16, of the same shape.

    Args:
        values: float32 values of any shape; a value above the range of bf16 becomes infinite.
    """
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16
    # Rounding up the highest NaN payloads would wrap around to zero.
    return np.where(np.isnan(values), np.uint32(0x7FC0), rounded).astype(np.uint16)


def decode(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return the float32 values of bf16 bits in uint16; equal values, same shape.

    Args:
        bits: bf16 bits, uint16 of any shape.
    """
    return (np.ascontiguousarray(bits).astype(np.uint32) << 16).view(np.float32)
