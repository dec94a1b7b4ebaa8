"""Rows of binary COPY as arrays of numpy (PostgreSQL: COPY, array_send). Pure, without I/O."""

import numpy as np

COPY_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
COPY_TRAILER = b"\xff\xff"

INT4_OID, FLOAT8_OID = 23, 701

ARRAY_BYTES = 20
"""Bytes of an array before its cells: dimensions, whether it has nulls, oid, size, lower bound."""


def row_type(*arrays: tuple[str, str, int]) -> np.dtype[np.void]:
    """A row: int4, timestamptz, and arrays, each (name, type of a cell, cells)."""
    fields: list[tuple[object, ...]] = [
        ("fields", ">i2"),
        ("layout_bytes", ">i4"),
        ("layout", ">i4"),
        ("at_bytes", ">i4"),
        ("at", ">i8"),
    ]
    for name, cell, size in arrays:
        fields += [
            (f"{name}_bytes", ">i4"),
            (f"{name}_head", ">i4", (5,)),
            (name, np.dtype([("bytes", ">i4"), ("value", cell)]), (size,)),
        ]
    return np.dtype(fields)
