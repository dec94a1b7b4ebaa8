"""Many groups of sealed columns read at once: what a group costs alone is shared by all.

The format is that of services/sealed.py.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np
import zstandard

from engine.promql.blocks import Indexes
from schemas.errors import Invalid
from services.sealed import (
    BITS,
    COLUMN,
    CONSTANT,
    EXCEPTION,
    GROUP,
    LEVEL,
    MAX_ROWS,
    SCALES,
    VERSION,
    Bytes,
    Floats,
    Integers,
)

CELLS_AT_ONCE = 1 << 16
"""Values that are restored at once: 512 kB, which stay in the processor's cache and come out of
memory that is in use already."""

_FACTORS = np.array([scale[1:] for scale in SCALES])
_WIDTHS = 9
_POSITIVE = 2**63 - 1
_SIGNED = np.array([folded >> 1 ^ -(folded & 1) for folded in range(256)])


class Group(NamedTuple):
    """A group as it is stored, of `columns` of `rows`; and which of its columns are wanted."""

    data: bytes
    rows: int
    columns: int
    only: Indexes


def unseal_groups(groups: Sequence[Group]) -> Iterator[tuple[int, Floats]]:
    """(position in `groups`, values (wanted columns, rows)) of each, in any order.

    Raises Invalid for what `seal` did not make.
    """
    if not groups:
        return
    decompressor = zstandard.ZstdDecompressor()
    alike: dict[tuple[int, int, int], list[int]] = {}
    for position, group in enumerate(groups):
        key = (group.rows, group.columns, len(group.only))
        alike.setdefault(key, []).append(position)
    for (rows, columns, wanted), positions in alike.items():
        if not 0 < rows <= MAX_ROWS or not 0 < columns <= GROUP:
            raise Invalid(f"sealed block: {rows} rows of {columns} columns")
        portion = max(1, CELLS_AT_ONCE // (rows * max(wanted, 1)))
        for begin in range(0, len(positions), portion):
            some = positions[begin : begin + portion]
            contents = [_content(groups[one].data, rows, columns, decompressor) for one in some]
            only = [groups[one].only for one in some]
            yield from zip(some, _restored(contents, rows, columns, only), strict=True)


def unseal_group(data: bytes, rows: int, columns: int) -> Floats:
    """All values (rows, columns) of one group, a column contiguous in memory. Raises Invalid."""
    ((_, values),) = unseal_groups([Group(data, rows, columns, np.arange(columns))])
    return values.T


def unseal_instants(at: bytes, rows: int) -> Integers:
    """The instants (rows,) of a block, µs. Raises Invalid."""
    instants: Integers = unseal_group(at, rows, 1).view(np.int64)[:, 0]
    return instants


def _content(
    data: bytes, rows: int, columns: int, decompressor: zstandard.ZstdDecompressor
) -> bytes:
    """What is in the zstd frame, of no more bytes than such a group can have."""
    if data[:1] != VERSION:
        raise Invalid(f"sealed block: version {data[:1].hex() or 'missing'}; expected 01")
    frame = data[1:]
    least = columns * COLUMN.itemsize
    most = least + columns * rows * (8 + EXCEPTION.itemsize)
    try:
        if not least <= zstandard.get_frame_parameters(frame).content_size <= most:
            raise Invalid("sealed block: more or fewer bytes than its cells can take")
        return decompressor.decompress(frame)
    except zstandard.ZstdError as error:
        raise Invalid(f"sealed block: {error}") from error


def _restored(
    contents: Sequence[bytes], rows: int, count: int, only: Sequence[Indexes]
) -> list[Floats]:
    """Of groups of `count` columns: the wanted ones (wanted, rows)."""
    size = count * COLUMN.itemsize
    every = _records([content[:size] for content in contents], COLUMN)
    widths = every["width"].astype(np.int64)
    if (widths >= _WIDTHS).any():
        raise Invalid("sealed block: a column that cannot be")
    ends = size + np.cumsum(widths * (rows - 1), axis=1)
    sizes = np.array([len(content) for content in contents])
    if (ends[:, -1] > sizes).any():
        raise Invalid("sealed block: cut short")
    of = np.repeat(np.arange(len(contents)), [len(wanted) for wanted in only])
    chosen = np.concatenate(only)
    values = np.empty((len(chosen), rows))
    _restore(contents, of, every[of, chosen], ends[of, chosen], values)
    bounds = list(accumulate((len(wanted) for wanted in only), initial=0))
    found = [values[low:high] for low, high in pairwise(bounds)]
    for place in np.flatnonzero(ends[:, -1] < sizes).tolist():
        rest = contents[place][int(ends[place, -1]) :]
        if len(rest) % EXCEPTION.itemsize:
            raise Invalid("sealed block: cut short")
        _put_exceptions(_records([rest], EXCEPTION)[0], count, only[place], found[place])
    return found


def _records(shuffled: Sequence[bytes], dtype: np.dtype[np.void]) -> Any:
    """Records (texts, count) out of equally long texts, each of them written byte by byte."""
    planes = np.frombuffer(b"".join(shuffled), np.uint8)
    planes = planes.reshape(len(shuffled), dtype.itemsize, -1)
    return np.ascontiguousarray(planes.swapaxes(1, 2)).view(dtype)[:, :, 0]


def _restore(
    contents: Sequence[bytes], of: Indexes, columns: Any, ends: Integers, values: Floats
) -> None:
    """Writes what columns and their planes stand for to `values`, exceptions aside.

    of: (columns,), whose content each is in. ends: (columns,), where its planes end there.
    """
    scales = columns["scale"]
    if ((scales >= len(SCALES)) & (scales < BITS)).any():
        raise Invalid("sealed block: a column that cannot be")
    integers = values.view(np.int64)
    size = values.shape[1] - 1
    integers[:] = columns["first"][:, np.newaxis]
    varying = scales != CONSTANT
    widths = columns["width"]
    for width in np.unique(widths[varying]).tolist():
        here = np.flatnonzero(varying & (widths == width))
        length = width * size
        planes = b"".join(
            contents[place][end - length : end]
            for place, end in zip(of[here].tolist(), ends[here].tolist(), strict=True)
        )
        some = columns[here]
        steps = _unfolded(np.frombuffer(planes, np.uint8).reshape(len(here), width, size))
        steps += some["base"][:, np.newaxis]
        stepping = some["prediction"] != LEVEL
        if stepping.all():
            np.cumsum(steps, axis=1, out=steps)
        else:
            steps[stepping] = np.cumsum(steps[stepping], axis=1)
        if (some["divisor"] != 1).any():
            steps *= some["divisor"][:, np.newaxis]
        whole = integers if len(here) == len(integers) else integers[here]
        whole[:, 1:] += steps
        _scale(whole, some["scale"])
        if whole is not integers:
            integers[here] = whole


def _unfolded(planes: Bytes) -> Integers:
    """Signed integers (columns, size) out of planes (columns, width, size), the lowest first."""
    columns, width, size = planes.shape
    if width == 1:
        return _SIGNED[planes[:, 0]]
    folded = np.zeros((columns, size), np.int64)
    for place in range(width):
        folded |= planes[:, place].astype(np.int64) << 8 * place
    signs = -(folded & 1)
    folded >>= 1
    folded &= _POSITIVE
    folded ^= signs
    return folded


def _scale(integers: Integers, scales: Bytes) -> None:
    """Replaces integers (columns, rows) by the bits of the values that they stand for.

    A factor of 1.0 changes no bit, so that all columns can take the same steps.
    """
    scaled = np.flatnonzero(scales != BITS)
    if not len(scaled):
        return
    every = len(scaled) == len(scales)
    values = (integers if every else integers[scaled]).astype(np.float64)
    times, by, again = _FACTORS[scales[scaled]].T[:, :, np.newaxis]
    for apply, factors in ((np.multiply, times), (np.divide, by), (np.divide, again)):
        if (factors != 1.0).any():
            apply(values, factors, out=values)
    integers[slice(None) if every else scaled] = values.view(np.int64)


def _put_exceptions(kept: Any, count: int, only: Indexes, values: Floats) -> None:
    """Writes the cells that keep their bits to values (wanted, rows) of a group of `count`."""
    rows = values.shape[1]
    places = np.cumsum(kept["gap"], dtype=np.int64)
    if places[-1] >= count * rows:
        raise Invalid("sealed block: cells that cannot be")
    index_of = np.full(count, -1)
    index_of[only] = np.arange(len(only))
    indexes = index_of[places // rows]
    here = indexes >= 0
    values.view(np.int64)[indexes[here], places[here] % rows] = kept["bits"][here]
