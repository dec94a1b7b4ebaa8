"""A layout's hour on its way from frames to a block: read, merged, written. Pure, without I/O.

What the database sends and takes is binary COPY (PostgreSQL: COPY, array_send). No Python object
per sample is made.
"""

import struct
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.values import ABSENT, ABSENT_BITS
from services.cells import from_stored
from services.clock import DAY_US, HOUR_US, POSTGRES_EPOCH_US
from services.ingest.copying import (
    ARRAY_BYTES,
    COPY_HEADER,
    COPY_TRAILER,
    FLOAT8_OID,
    INT4_OID,
    row_type,
)
from services.ingest.rollups import (
    BUCKETS,
    EMPTY,
    HOURS,
    Floats,
    Instants,
    Rollup,
)
from services.sealed import GROUP, Sealed
from services.unsealing import unseal_group, unseal_instants

_ROWS_AT_ONCE = 4096
"""Rows that are looked at as being of one layout; one that has more is put together again."""

Key = tuple[int, int]
"""Layout id, and the exclusive start of its hour or day in µs since 1970."""


class Hour(NamedTuple):
    """All frames of a layout's hour. at: (rows,) µs, ascending; values: (rows, width)."""

    layout_id: int
    start_us: int
    at: Instants
    values: Floats

    @property
    def key(self) -> Key:
        return self.layout_id, self.start_us

    @property
    def samples(self) -> int:
        """Cells that hold a sample or the end of a series."""
        return int(np.count_nonzero(self.values.view(np.uint64) != ABSENT_BITS))


def hour_of(at_us: int) -> int:
    """The exclusive start of the hour that an instant is in, both in µs."""
    return (at_us - 1) // HOUR_US * HOUR_US


def day_of(start_us: int) -> int:
    """The exclusive start of the day that an hour is in, both in µs."""
    return start_us // DAY_US * DAY_US


def decode_frames(data: bytearray, widths: Mapping[int, int]) -> list[Hour]:
    """Hours of a COPY of (layout_id, at, values) from `frames`, by key; layouts may be mixed.

    widths: by layout id. The rows of a layout are found fastest where they stand together.
    """
    pieces: defaultdict[int, list[tuple[Instants, Floats]]] = defaultdict(list)
    offset, end = len(COPY_HEADER), len(data) - len(COPY_TRAILER)
    while offset < end:
        (layout_id,) = struct.unpack_from(">i", data, offset + 6)
        row = row_type(("values", ">u8", widths[layout_id]))
        count = min((end - offset) // row.itemsize, _ROWS_AT_ONCE)
        rows = np.frombuffer(data, row, count, offset)
        others = np.flatnonzero(rows["layout"] != layout_id)
        rows = rows[: others[0]] if others.size else rows
        at = rows["at"].astype(np.int64) + POSTGRES_EPOCH_US
        bits = from_stored(rows["values"]["value"].astype("<u8"))
        pieces[layout_id].append((at, bits.view(np.float64)))
        offset += len(rows) * row.itemsize
    return [hour for layout_id in sorted(pieces) for hour in _hours(layout_id, pieces[layout_id])]


def _hours(layout_id: int, pieces: Sequence[tuple[Instants, Floats]]) -> Iterable[Hour]:
    at = np.concatenate([at for at, _ in pieces])
    values = np.concatenate([values for _, values in pieces])
    if (np.diff(at) < 0).any():
        order = np.argsort(at)
        at, values = at[order], values[order]
    starts = (at - 1) // HOUR_US * HOUR_US
    edges = np.flatnonzero(np.diff(starts, prepend=starts[0] - 1, append=starts[-1] + 1)).tolist()
    for low, high in pairwise(edges):
        yield Hour(layout_id, int(starts[low]), at[low:high], values[low:high])


def unsealed(layout_id: int, start_us: int, block: Sealed, width: int) -> Hour:
    """The hour that a block holds. Raises Invalid where it is damaged."""
    groups = [
        unseal_group(block.data[begin:end], block.rows, min(GROUP, width - GROUP * number))
        for number, (begin, end) in enumerate(pairwise([0, *block.ends]))
    ]
    at = unseal_instants(block.at, block.rows)
    return Hour(layout_id, start_us, at, np.ascontiguousarray(np.hstack(groups)))


def merged(sealed: Hour, late: Hour) -> Hour:
    """Both in one: what was sealed stays, cells that were absent are filled.

    The same object as `sealed` where the late frames add nothing.
    """
    at = np.union1d(sealed.at, late.at)
    values = np.full((len(at), sealed.values.shape[1]), ABSENT)
    values[np.searchsorted(at, late.at)] = late.values
    rows = np.searchsorted(at, sealed.at)
    here = sealed.values.view(np.uint64) != ABSENT_BITS
    filled = np.where(here, sealed.values, values[rows])
    same = filled.view(np.uint64) == sealed.values.view(np.uint64)
    if len(at) == len(sealed.at) and same.all():
        return sealed
    values[rows] = filled
    return Hour(*sealed.key, at, values)


def encode_blocks(blocks: Iterable[tuple[Key, Sealed]]) -> bytes:
    """COPY of rows of `blocks`."""
    parts = [COPY_HEADER]
    for (layout_id, start_us), block in blocks:
        count = len(block.ends)
        ends = np.empty((count, 2), ">i4")
        ends[:, 0], ends[:, 1] = 4, block.ends
        parts += [
            struct.pack(">hii", 6, 4, layout_id),
            struct.pack(">iqii", 8, start_us - POSTGRES_EPOCH_US, 4, block.rows),
            struct.pack(">i", len(block.at)),
            block.at,
            struct.pack(">i", len(block.data)),
            block.data,
            struct.pack(">6i", ARRAY_BYTES + 8 * count, 1, 0, INT4_OID, count, 1),
            ends.tobytes(),
        ]
    parts.append(COPY_TRAILER)
    return b"".join(parts)


def _rollup_type(width: int, buckets: int) -> np.dtype[np.void]:
    return row_type(
        *((name, ">i4" if name == "counts" else ">u8", width * buckets) for name in Rollup._fields)
    )


def encode_rollups(rollups: Iterable[tuple[Sequence[Key], Rollup]]) -> bytes:
    """COPY of rows of `rollups_5m` or `rollups_1h`: the keys of spans, and the spans."""
    parts = [COPY_HEADER]
    for keys, rollup in rollups:
        spans, width, buckets = rollup.counts.shape
        size = width * buckets
        rows = np.zeros(spans, _rollup_type(width, buckets))
        rows["fields"], rows["layout_bytes"], rows["at_bytes"] = 2 + len(rollup), 4, 8
        rows["layout"] = [layout_id for layout_id, _ in keys]
        rows["at"] = np.array([start_us for _, start_us in keys]) - POSTGRES_EPOCH_US
        for name, values in _as_stored(rollup)._asdict().items():
            cell = values.dtype.itemsize
            oid = INT4_OID if name == "counts" else FLOAT8_OID
            rows[f"{name}_bytes"] = ARRAY_BYTES + (4 + cell) * size
            rows[f"{name}_head"] = 1, 0, oid, size, 1
            cells = rows[name]
            cells["bytes"] = cell
            cells["value"] = values.reshape(spans, size).view(f"<u{cell}")
        parts.append(rows.tobytes())
    parts.append(COPY_TRAILER)
    return b"".join(parts)


def _as_stored(rollup: Rollup) -> Rollup:
    """With NaN where the first is the least, or the last the greatest: runs of it compress."""
    return rollup._replace(
        mins=np.where(rollup.mins == rollup.firsts, np.nan, rollup.mins),
        maxs=np.where(rollup.maxs == rollup.lasts, np.nan, rollup.maxs),
    )


def decode_days(data: bytearray, width: int) -> tuple[list[Key], Rollup]:
    """Days, and their buckets of 5 minutes, (days, width, 288), of a COPY from `rollups_5m`.

    The layouts are of one width. Hours without a row are hours without samples.
    """
    body = memoryview(data)[len(COPY_HEADER) : len(data) - len(COPY_TRAILER)]
    rows = np.frombuffer(body, _rollup_type(width, BUCKETS))
    starts = rows["at"].astype(np.int64) + POSTGRES_EPOCH_US
    layouts, days = rows["layout"].tolist(), (starts // DAY_US * DAY_US).tolist()
    keys = sorted(set(zip(layouts, days, strict=True)))
    place = {key: index for index, key in enumerate(keys)}
    span = np.array([place[key] for key in zip(layouts, days, strict=True)], np.intp)
    hour = starts % DAY_US // HOUR_US
    arrays: list[NDArray[np.generic]] = []
    for name, empty in zip(Rollup._fields, EMPTY, strict=True):
        found = _values(rows[name]["value"]).reshape(-1, width, BUCKETS)
        whole = np.full((len(keys), width, HOURS, BUCKETS), empty, found.dtype)
        whole[span, :, hour] = found
        arrays.append(whole.reshape(len(keys), width, HOURS * BUCKETS))
    return keys, _as_computed(Rollup._make(arrays))


def _values(cells: NDArray[np.generic]) -> NDArray[np.generic]:
    """Numbers from cells as they were sent: int32, or the bits of float64."""
    if cells.dtype == ">i4":
        return cells.astype(np.int32)
    return cells.astype("<u8").view(np.float64)


def _as_computed(rollup: Rollup) -> Rollup:
    """The inverse of `_as_stored`."""
    return rollup._replace(
        mins=np.where(np.isnan(rollup.mins), rollup.firsts, rollup.mins),
        maxs=np.where(np.isnan(rollup.maxs), rollup.lasts, rollup.maxs),
    )
