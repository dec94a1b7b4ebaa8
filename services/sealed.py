"""Sealed blocks: a layout's hour of frames compressed column by column, exact to the bit."""

from typing import NamedTuple

import numpy as np
import zstandard
from numpy.typing import NDArray

from schemas.errors import Invalid

GROUP = 32
"""Consecutive columns that are compressed as one: what a read of a single series decodes."""

MAX_ROWS = 1 << 20
"""Instants of one block; far above an hour of one a second."""

_VERSION = 1
_LEVEL = 3


class Sealed(NamedTuple):
    """What is stored of one block: `ends[g]` is where group g ends in `data`."""

    rows: int
    at: bytes
    data: bytes
    ends: list[int]


def seal(at: NDArray[np.int64], values: NDArray[np.float64]) -> Sealed:
    """Compresses `values` (rows, width) at the instants `at` (rows,), µs, strictly ascending."""
    rows, width = values.shape
    if at.shape != (rows,) or not 0 < rows <= MAX_ROWS:
        raise ValueError(f"cannot seal {rows} rows at {len(at)} instants")
    groups = [
        _compressed(_columns(values[:, first : first + GROUP])) for first in range(0, width, GROUP)
    ]
    ends = np.cumsum([len(group) for group in groups]).tolist()
    return Sealed(rows, _compressed(at[np.newaxis, :]), b"".join(groups), ends)


def unseal_instants(at: bytes, rows: int) -> NDArray[np.int64]:
    """The instants (rows,), µs. Raises Invalid for what `seal` did not make."""
    found: NDArray[np.int64] = _expanded(at, rows, 1)[0]
    return found


def unseal_group(data: bytes, rows: int, columns: int) -> NDArray[np.float64]:
    """The values (rows, columns) of one group. Raises Invalid for what `seal` did not make."""
    return _expanded(data, rows, columns).view(np.float64).T


def _columns(values: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.ascontiguousarray(values.T).view(np.int64)


def _compressed(columns: NDArray[np.int64]) -> bytes:
    """Columns (count, rows) of 64 bits as XOR to the value before, in planes of bytes."""
    bits = columns.astype("<i8")
    bits[:, 1:] ^= columns[:, :-1]
    planes = np.ascontiguousarray(bits.reshape(-1).view(np.uint8).reshape(-1, 8).T)
    return bytes([_VERSION]) + zstandard.ZstdCompressor(level=_LEVEL).compress(planes.tobytes())


def _expanded(data: bytes, rows: int, columns: int) -> NDArray[np.int64]:
    size = rows * columns * 8
    if not 0 < rows <= MAX_ROWS or not 0 < columns <= GROUP:
        raise Invalid(f"sealed block: {rows} rows of {columns} columns")
    if data[:1] != bytes([_VERSION]):
        raise Invalid(f"sealed block: version {data[:1].hex() or 'missing'}; expected {_VERSION}")
    frame = bytes(memoryview(data)[1:])
    try:
        if zstandard.get_frame_parameters(frame).content_size != size:
            raise Invalid("sealed block: its size does not fit its rows and columns")
        planes = zstandard.ZstdDecompressor().decompress(frame)
    except zstandard.ZstdError as error:
        raise Invalid(f"sealed block: {error}") from error
    bits = np.frombuffer(planes, np.uint8).reshape(8, -1).T
    columns_ = np.ascontiguousarray(bits).view("<i8").reshape(columns, rows)
    found: NDArray[np.int64] = np.bitwise_xor.accumulate(columns_, axis=1)
    return found
