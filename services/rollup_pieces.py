"""Rollups put together into what stands in for samples that are gone.

What a function over a window is given of each bucket is decided by engine/promql/rollups.py. The
answers are approximate: where a bucket is wider than the window, its growth is spread evenly.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from engine.promql.blocks import Booleans, Floats, Indexes, Instants, cell_bits
from schemas.values import ABSENT, ABSENT_BITS, STALE_BITS
from services.frame_pieces import Piece

MAX_POINTS = 240
"""Points of one bucket: of an hour, four a minute."""

POINTS_OF_A_WINDOW = {"increases": 4, "trends": 2}
"""Points that a window is to have at least, if not one: a change takes two, and for a rate their
distance tells how far to extrapolate."""

_ARRAY_HEADER_BYTES = 20


class Tier(NamedTuple):
    """A table of rollups: a row is so many buckets of a layout."""

    name: str
    table: str
    bucket_us: int
    buckets: int

    @property
    def row_us(self) -> int:
        return self.bucket_us * self.buckets


FINE = Tier("5m", "rollups_5m", 300_000_000, 12)
COARSE = Tier("1h", "rollups_1h", 3_600_000_000, 24)

ARRAYS = {
    "lasts": ("lasts",),
    "trends": ("lasts",),
    "firsts": ("firsts",),
    "mins": ("mins", "firsts"),
    "maxs": ("maxs", "lasts"),
    "sums": ("sums",),
    "counts": (),
    "increases": ("firsts", "lasts", "resets"),
}
"""Which arrays of a row are read for each column, besides the counts. Where the least or greatest
is NaN, it is the first or last (schemas/migrations/0004_history.sql)."""


class Buckets(NamedTuple):
    """Buckets of some series, ascending. ends: (rows,) µs. counts and arrays: (rows, columns).

    until_us: where better knowledge begins; no point lies after it.
    """

    tier: Tier
    until_us: int
    ends: Instants
    counts: Floats
    arrays: tuple[Floats, ...]


def buckets_of(
    tier: Tier,
    until_us: int,
    starts: Sequence[int],
    rows: Sequence[Sequence[bytes]],
    width: int,
    columns: Indexes,
) -> Buckets:
    """Of a table's rows in any order, as array_send writes their arrays, the counts first.

    starts: of each row, µs. width: series in a row's arrays, of which `columns` are wanted.
    """
    order = np.argsort(np.array(starts, np.int64))
    ends = np.array(starts, np.int64)[order, np.newaxis]
    ends = ends + tier.bucket_us * np.arange(1, tier.buckets + 1)
    kinds = (">i4", *(">f8",) * (len(rows[0]) - 1))
    arrays = [
        _cells(b"".join(rows[place][number] for place in order), kind, width, tier.buckets)
        for number, kind in enumerate(kinds)
    ]
    wanted = [one[:, columns].swapaxes(1, 2).reshape(-1, len(columns)) for one in arrays]
    known = ends.reshape(-1) <= until_us
    wanted = [one[known] for one in wanted]
    return Buckets(tier, until_us, ends.reshape(-1)[known], wanted[0], tuple(wanted[1:]))


def _cells(data: bytes, kind: str, width: int, buckets: int) -> Floats:
    """(rows, width, buckets)."""
    cell = np.dtype([("length", ">i4"), ("value", kind)])
    row = np.dtype([("header", f"V{_ARRAY_HEADER_BYTES}"), ("cells", cell, (width * buckets,))])
    values = np.frombuffer(data, row)["cells"]["value"].astype(np.float64)
    return values.reshape(-1, width, buckets)


def stand_in(column: str, tiers: Sequence[Buckets], window_us: int) -> Piece:
    """What stands in for the samples of these tiers, the oldest first; windows are that wide."""
    if column == "increases":
        parts = _increases(tiers, window_us)
    else:
        parts = [_spread(column, one, window_us) for one in tiers]
    return Piece(
        np.concatenate([one.at for one in parts]), np.concatenate([one.values for one in parts])
    )


def points_of(tier: Tier, column: str, window_us: int) -> int:
    """How many points a bucket becomes, so that no window is left without."""
    if window_us <= 0:
        return 1
    least = POINTS_OF_A_WINDOW.get(column, 1)
    return min(max(1, -(-tier.bucket_us * least // window_us)), MAX_POINTS)


def _spread(column: str, buckets: Buckets, window_us: int) -> Piece:
    """Buckets as points, evenly: within themselves, or the last value of each up to the next."""
    count = points_of(buckets.tier, column, window_us)
    values = buckets.counts if column == "counts" else buckets.arrays[0]
    if column in ("mins", "maxs"):
        values = np.where(np.isnan(values), buckets.arrays[1], values)
    if column in ("counts", "sums"):
        values = values / count
    values = np.where(buckets.counts > 0, values, ABSENT)
    step_us = buckets.tier.bucket_us // count
    after = np.arange(count) if column in ("lasts", "trends") else np.arange(1 - count, 1)
    at = buckets.ends[:, np.newaxis] + step_us * after
    known = at.reshape(-1) <= buckets.until_us
    return Piece(at.reshape(-1)[known], np.repeat(values, count, axis=0)[known])


def _increases(tiers: Sequence[Buckets], window_us: int) -> list[Piece]:
    """A counter without resets that grew as much, and ends at the value that it had then.

    From one bucket to the next it grows by what lies between the one's last sample and the other's
    first.
    """
    there = np.concatenate([one.counts for one in tiers]) > 0
    firsts, lasts, resets = (
        np.concatenate([one.arrays[number] for one in tiers]) for number in range(3)
    )
    within = np.where(there, lasts - firsts + resets, 0.0)
    before = _before(there)
    reached = np.take_along_axis(lasts, np.maximum(before, 0), 0)
    between = np.where(firsts < reached, firsts, firsts - reached)
    grown = within + np.where(there & (before >= 0), between, 0.0)
    total = np.cumsum(grown, axis=0)
    newest = np.where(there, np.arange(len(there))[:, np.newaxis], 0).max(axis=0)[np.newaxis]
    total += np.take_along_axis(lasts, newest, 0) - total[-1:]
    adjacent = (before >= 0) & (before == np.arange(-1, len(there) - 1)[:, np.newaxis])
    pieces, low = [], 0
    for one in tiers:
        rows = slice(low, low + len(one.ends))
        low = rows.stop
        pieces.append(
            _interpolated(
                one, there[rows], total[rows], np.where(adjacent, grown, np.nan)[rows], window_us
            )
        )
    return pieces


def _before(there: Booleans) -> Indexes:
    """The row before each that is there, -1 where none is."""
    rows = np.where(there, np.arange(len(there))[:, np.newaxis], -1)
    before = np.full(rows.shape, -1, np.intp)
    np.maximum.accumulate(rows[:-1], axis=0, out=before[1:])
    return before


def _interpolated(
    buckets: Buckets, there: Booleans, total: Floats, rise: Floats, window_us: int
) -> Piece:
    """Points on the straight line by which each bucket rises to its total; of one that follows none
    only the end, since the series may have been in another layout up to then."""
    count = points_of(buckets.tier, "increases", window_us)
    back = np.arange(1 - count, 1)
    at = buckets.ends[:, np.newaxis] + buckets.tier.bucket_us // count * back
    values = total[:, np.newaxis] + rise[:, np.newaxis] * (back / count)[:, np.newaxis]
    values[:, -1] = total
    known = there[:, np.newaxis] & (~np.isnan(rise)[:, np.newaxis] | (back == 0)[:, np.newaxis])
    values = np.where(known, values, ABSENT)
    return Piece(at.reshape(-1), values.reshape(-1, total.shape[1]))


def numbers(values: Floats) -> Floats:
    """1 for each sample: what is summed up to count them."""
    bits = cell_bits(values)
    gone = (bits == ABSENT_BITS) | (bits == STALE_BITS)
    return np.where(gone, values, 1.0)
