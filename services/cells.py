"""Absent cells and ends of series as `frames` holds them: as numbers that no one measures.

PostgreSQL writes every NaN as `NaN` in text. A dump and logical replication would make one NaN of
those that mean something (schemas/values.py), so the table has none of these.
"""

import numpy as np
from numpy.typing import NDArray

from schemas.values import ABSENT_BITS, STALE_BITS, STORED_ABSENT_BITS, STORED_STALE_BITS

Bits = NDArray[np.uint64]


def to_stored(bits: Bits) -> Bits:
    """Bits of float64 as they are written to `frames`; changes and returns the array."""
    return _replaced(bits, (ABSENT_BITS, STORED_ABSENT_BITS), (STALE_BITS, STORED_STALE_BITS))


def from_stored(bits: Bits) -> Bits:
    """The inverse."""
    return _replaced(bits, (STORED_ABSENT_BITS, ABSENT_BITS), (STORED_STALE_BITS, STALE_BITS))


def _replaced(bits: Bits, *pairs: tuple[int, int]) -> Bits:
    for old, new in pairs:
        here = bits == old
        if here.any():
            bits[here] = new
    return bits
