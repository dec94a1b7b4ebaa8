"""Sealed blocks: a layout's hour of frames compressed column by column, exact to the bit.

A column becomes integers (what the exporter counted, where the decimals give that away), then what
a simple prediction leaves of them, then planes of bytes; the columns of a group share a zstd frame.
services/unsealing.py reads it; docs/adr/0007-sealed-blocks.md says why it is so.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import zstandard
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Bytes = NDArray[np.uint8]
Booleans = NDArray[np.bool_]

GROUP = 32
"""Consecutive columns in one zstd frame: what a read of a single series has to decompress."""

MAX_ROWS = 1 << 20
"""Instants in one block: 291 a second for an hour."""

VERSION = b"\1"
"""The first byte of every group, and of the instants."""

ZSTD_LEVEL = 6
"""The ADR has the figures of others."""

BATCH_CELLS = 1 << 20
"""Cells that are sealed at once: bounds memory, to about 100 bytes a cell."""

SAMPLED_ROWS = 16
"""Rows on which a scale is tried before it is on all."""

MAX_INTEGER = 2.0**62
"""Scaled integers stay below, well inside of 64 bits."""

MISFITS = 1 / 64
"""A scale is taken if it fails for at most so much of a column; these cells are kept apart."""


class Scale(NamedTuple):
    """How integers become values: `integer * times / by / again`; 1.0 is `units` of them."""

    units: float
    times: float = 1.0
    by: float = 1.0
    again: float = 1.0


SCALES = (
    *(Scale(10.0**digits, by=10.0**digits) for digits in range(10)),
    *(Scale(10.0**digits, times=float(f"1e-{digits}")) for digits in (3, 6, 9)),
    Scale(1e6, by=1e3, again=1e3),
)
"""A block names its scales by their place in here: append only. Exporters turn ticks into seconds
by division, by multiplication or in two steps, and these differ in the last bit."""

BITS = 254
"""Instead of a scale: the integers are the bits of the values."""

CONSTANT = 255
"""Instead of a scale: `first` is the bits of every value."""

STEP, LEVEL = range(2)
"""What is predicted: `base` as the step from the value before, or as that from the first."""

COLUMN = np.dtype(
    [
        ("scale", "u1"),
        ("prediction", "u1"),
        ("width", "u1"),  # planes of bytes that follow, of rows - 1 each, the lowest first
        ("first", "<i8"),
        ("divisor", "<i8"),  # of all differences
        ("base", "<i8"),
    ]
)
EXCEPTION = np.dtype([("gap", "<u4"), ("bits", "<i8")])
"""A cell that keeps its bits; gap: cells since the last such one, column after column."""


class Sealed(NamedTuple):
    """What is stored of one block: `ends[g]` is where group g ends in `data`."""

    rows: int
    at: bytes
    data: bytes
    ends: list[int]


class _Modelled(NamedTuple):
    """Columns on their way into groups. columns: `COLUMN` (count,); residuals: (count, rows - 1);
    exceptions: where cells (count, rows) keep their bits."""

    columns: NDArray[np.void]
    residuals: NDArray[np.uint64]
    exceptions: Booleans


def seal(at: Integers, values: Floats) -> Sealed:
    """Compresses `values` (rows, width) at the instants `at` (rows,), µs, strictly ascending."""
    rows, width = values.shape
    if at.shape != (rows,) or not 0 < rows <= MAX_ROWS:
        raise ValueError(f"{rows} rows at {at.shape} instants; expected 1 to {MAX_ROWS}")
    groups: list[bytes] = []
    batch = max(1, BATCH_CELLS // (rows * GROUP)) * GROUP
    for first in range(0, width, batch):
        columns = np.ascontiguousarray(values[:, first : first + batch].T)
        groups += _packed(columns.view(np.int64), _model(columns))
    instants = at[np.newaxis, :]
    scales = np.full(1, BITS, np.uint8)
    nothing = np.zeros(instants.shape, np.bool_)
    (packed,) = _packed(instants, _predict(instants, scales, nothing))
    return Sealed(rows, packed, b"".join(groups), np.cumsum([len(g) for g in groups]).tolist())


def _model(values: Floats) -> _Modelled:
    """What to write of columns (count, rows)."""
    bits = values.view(np.int64)
    varying = np.flatnonzero((bits != bits[:, :1]).any(axis=1))
    count, rows = values.shape
    columns = np.zeros(count, COLUMN)
    columns["scale"] = CONSTANT
    columns["first"] = bits[:, 0]
    residuals = np.zeros((count, rows - 1), np.uint64)
    exceptions = np.zeros(values.shape, np.bool_)
    if varying.size:
        modelled = _predict(*_scale(values[varying]))
        columns[varying] = modelled.columns
        residuals[varying] = modelled.residuals
        exceptions[varying] = modelled.exceptions
    return _Modelled(columns, residuals, exceptions)


def _scale(values: Floats) -> tuple[Integers, Bytes, Booleans]:
    """Integers of columns (count, rows), the scale of each column, and where they are not exact."""
    exceptions = ~np.isfinite(values)
    values = _filled(values, exceptions)
    integers = values.view(np.int64).copy()
    scales = np.full(len(values), BITS, np.uint8)
    sample = values[:, :: max(1, values.shape[1] // SAMPLED_ROWS)]
    left = np.arange(len(values))
    for number, scale in enumerate(SCALES):
        _, misfits = _scaled(sample[left], scale)
        likely = left[_few(misfits)]
        if not likely.size:
            continue
        scaled, misfits = _scaled(values[likely], scale)
        few = _few(misfits)
        fitting = likely[few]
        integers[fitting] = _filled(scaled[few], misfits[few]).astype(np.int64)
        exceptions[fitting] |= misfits[few]
        scales[fitting] = number
        left = np.setdiff1d(left, fitting, assume_unique=True)
    return integers, scales, exceptions


def _scaled(values: Floats, scale: Scale) -> tuple[Floats, Booleans]:
    """Whole numbers for values, and where they don't give the value again."""
    with np.errstate(over="ignore", invalid="ignore"):
        whole = np.rint(values * scale.units) + 0.0  # -0.0 is no integer
        again = whole * scale.times / scale.by / scale.again
    fits = (np.abs(whole) < MAX_INTEGER) & (again.view(np.int64) == values.view(np.int64))
    return whole, ~fits


def _few(misfits: Booleans) -> Booleans:
    few: Booleans = misfits.sum(axis=1) <= misfits.shape[1] * MISFITS
    return few


def _filled(values: Floats, holes: Booleans) -> Floats:
    """Columns whose holes hold the value before, or the first that there is, or 0."""
    if not holes.any():
        return values
    rows = np.where(holes, np.argmin(holes, axis=1)[:, np.newaxis], np.arange(values.shape[1]))
    filled = np.take_along_axis(values, np.maximum.accumulate(rows, axis=1), axis=1)
    filled[holes.all(axis=1)] = 0.0
    return filled


def _predict(integers: Integers, scales: Bytes, exceptions: Booleans) -> _Modelled:
    """What the best prediction leaves of columns (count, rows). Differences are modulo 2**64."""
    columns = np.zeros(len(integers), COLUMN)
    columns["scale"] = scales
    columns["first"] = integers[:, 0]
    steps = np.diff(integers, axis=1)
    if not steps.size:
        return _Modelled(columns, steps.view(np.uint64), exceptions)
    columns["divisor"] = divisor = np.maximum(np.gcd.reduce(steps, axis=1), 1)
    steps //= divisor[:, np.newaxis]
    levels = np.cumsum(steps, axis=1)
    none = np.zeros(len(steps), np.int64)
    best = np.full(len(steps), np.inf)
    residuals = np.empty(steps.shape, np.uint64)
    for prediction, found, base in (
        (STEP, steps, none),
        (STEP, steps, _median(steps)),
        (LEVEL, levels, _median(levels)),
    ):
        rest = found - base[:, np.newaxis]
        folded = ((rest << 1) ^ (rest >> 63)).view(np.uint64)
        cost = np.log2(folded + 1.0).sum(axis=1)
        better = cost < best
        best[better] = cost[better]
        residuals[better] = folded[better]
        columns["prediction"][better] = prediction
        columns["base"][better] = base[better]
    columns["width"] = _widths(residuals)
    return _Modelled(columns, residuals, exceptions)


def _median(columns: Integers) -> Integers:
    middle = columns.shape[1] // 2
    median: Integers = np.partition(columns, middle, axis=1)[:, middle]
    return median


def _widths(residuals: NDArray[np.uint64]) -> Bytes:
    """Bytes that the greatest of each column takes."""
    least = np.left_shift(np.uint64(1), np.arange(0, 64, 8, dtype=np.uint64))
    widths: Bytes = (residuals.max(axis=1)[:, np.newaxis] >= least).sum(axis=1, dtype=np.uint8)
    return widths


def _packed(bits: Integers, modelled: _Modelled) -> Iterator[bytes]:
    """The groups of columns (count, rows): version, then columns, planes and exceptions in zstd."""
    compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=True)
    count, rows = bits.shape
    for first in range(0, count, GROUP):
        group = slice(first, first + GROUP)
        columns, residuals = modelled.columns[group], modelled.residuals[group]
        written = np.arange(8) < columns["width"][:, np.newaxis]
        planes = residuals.view(np.uint8).reshape(len(columns), rows - 1, 8).swapaxes(1, 2)
        places = np.flatnonzero(modelled.exceptions[group])
        kept = np.empty(len(places), EXCEPTION)
        kept["gap"] = np.diff(places, prepend=0)
        kept["bits"] = bits[group].reshape(-1)[places]
        parts = (_shuffled(columns), planes[written].tobytes(), _shuffled(kept))
        yield VERSION + compressor.compress(b"".join(parts))


def _shuffled(records: NDArray[np.void]) -> bytes:
    return records.view(np.uint8).reshape(len(records), records.itemsize).T.tobytes()
