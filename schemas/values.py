"""The two NaN payloads that mean something, told from ordinary NaN by their bits.

Arithmetic may change a payload, so a value is classified before it is computed with.
"""

import struct

STALE_BITS = 0x7FF0_0000_0000_0002
"""Prometheus' stale marker: the series has ended (prometheus/model/value, StaleNaN)."""

ABSENT_BITS = 0x7FF8_5645_5256_4554
"""No value in this frame for this series: a quiet NaN whose payload spells VERVET."""

STORED_ABSENT_BITS = 0xFFEF_5645_5256_4554
STORED_STALE_BITS = 0xFFEF_5645_5256_4555
"""What stands for them in the table `frames`: finite, about -1.764e308 (services/cells.py)."""


def _from_bits(bits: int) -> float:
    return float(struct.unpack("<d", struct.pack("<Q", bits))[0])


def bits(value: float) -> int:
    """The IEEE 754 bits of a float64 as an unsigned integer."""
    return int(struct.unpack("<Q", struct.pack("<d", value))[0])


STALE = _from_bits(STALE_BITS)
ABSENT = _from_bits(ABSENT_BITS)
