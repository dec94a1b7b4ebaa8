"""Rollups: what the samples of each span of time came to, per series. Pure, without I/O.

Spans are open on their left. A cell that is ABSENT or STALE is no sample. NaN is one, and counts as
in Prometheus' functions over a window: it makes a sum NaN; least and greatest are NaN only where
all samples are; it neither is nor follows a counter's reset.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from engine.promql.statistics import cancelled, compensated_sum
from schemas.values import ABSENT_BITS, STALE_BITS
from services.clock import DAY_US, HOUR_US

BUCKET_US = 300_000_000

BUCKETS = HOUR_US // BUCKET_US
"""Buckets of 5 minutes in an hour."""

HOURS = DAY_US // HOUR_US
"""Buckets of an hour in a day."""

Instants = NDArray[np.int64]
Floats = NDArray[np.float64]
Counts = NDArray[np.int32]
Indexes = NDArray[np.intp]
Booleans = NDArray[np.bool_]
T = TypeVar("T", bound=np.generic)


class Rollup(NamedTuple):
    """Spans in buckets: each array is (spans, width, buckets).

    A bucket without samples has count and resets 0, and NaN elsewhere. resets: the sum of what a
    counter had reached each time that it began anew within the bucket; so its increase from the
    first sample to the last is `lasts - firsts + resets`.
    """

    counts: Counts
    sums: Floats
    mins: Floats
    maxs: Floats
    firsts: Floats
    lasts: Floats
    resets: Floats


EMPTY = (0, np.nan, np.nan, np.nan, np.nan, np.nan, 0.0)
"""A bucket without samples."""


def of_hours(at: Instants, values: Floats, rows: Sequence[int], starts: Sequence[int]) -> Rollup:
    """Hours in buckets of 5 minutes, from the samples of hours that stand one after another.

    at: (rows,) µs since 1970, ascending within each hour. values: (rows, width). rows: how many
    each hour has, at least one. starts: of each hour, µs, exclusive.
    """
    bits = values.view(np.uint64)
    samples = (bits != ABSENT_BITS) & (bits != STALE_BITS)
    since = at - np.repeat(np.array(starts, np.int64), rows) - 1
    places = np.repeat(np.arange(len(rows)), rows) * BUCKETS + since // BUCKET_US
    counts = samples.astype(np.int32)
    parts = Rollup(counts, values, values, values, values, values, np.zeros((1, 1)))
    return _in_spans(_folded(parts, places, len(rows) * BUCKETS), len(rows))


def of_days(hours: Rollup) -> Rollup:
    """Days in buckets of an hour. hours: (days, width, 24 * 12), in buckets of 5 minutes."""
    days, width, buckets = hours.counts.shape
    parts = Rollup._make(
        np.ascontiguousarray(one.swapaxes(1, 2)).reshape(days * buckets, width) for one in hours
    )
    places = np.arange(days * buckets) // BUCKETS
    return _in_spans(_folded(parts, places, days * HOURS), days)


def _in_spans(buckets: Rollup, spans: int) -> Rollup:
    """(spans * buckets, width) as (spans, width, buckets)."""
    width = buckets.counts.shape[1]
    return Rollup._make(one.reshape(spans, -1, width).swapaxes(1, 2) for one in buckets)


def _folded(parts: Rollup, places: Indexes, buckets: int) -> Rollup:
    """`parts`, each (rows, width), folded into buckets. places: (rows,), ascending, of each row."""
    here = parts.counts > 0
    low = np.flatnonzero(np.diff(places, prepend=-1))
    edges = _edges(here, low)
    counts = np.add.reduceat(parts.counts, low, axis=0, dtype=np.int32)

    def put(found: NDArray[T], empty: float) -> NDArray[T]:
        whole = np.full((buckets, found.shape[1]), empty, found.dtype)
        whole[places[low]] = np.where(counts > 0, found, found.dtype.type(empty))
        return whole

    with np.errstate(invalid="ignore", over="ignore"):
        return Rollup(
            put(counts, 0),
            put(_sums(np.where(here, parts.sums, 0.0), low), np.nan),
            put(np.fmin.reduceat(np.where(here, parts.mins, np.nan), low, axis=0), np.nan),
            put(np.fmax.reduceat(np.where(here, parts.maxs, np.nan), low, axis=0), np.nan),
            put(np.take_along_axis(parts.firsts, edges.first, 0), np.nan),
            put(np.take_along_axis(parts.lasts, edges.last, 0), np.nan),
            put(np.add.reduceat(_resets(parts, here, edges.previous), low, axis=0), 0.0),
        )


class _Edges(NamedTuple):
    """Rows of samples: the first and last of each bucket, any row where it has none; and the one
    before each row within its bucket, -1 where there is none."""

    first: Indexes
    last: Indexes
    previous: Indexes


def _edges(here: Booleans, low: Indexes) -> _Edges:
    """The edges as indexes along axis 0: (…, width), or (…, 1) where all series have the same."""
    if here.all():
        here = here[:, :1]
    rows = np.arange(len(here))[:, None]
    row_or_none = np.where(here, rows, -1)
    first = np.minimum.reduceat(np.where(here, rows, len(here) - 1), low, axis=0)
    last = np.maximum.reduceat(row_or_none, low, axis=0)
    before = np.full(here.shape, -1)
    np.maximum.accumulate(row_or_none[:-1], axis=0, out=before[1:])
    begin = np.repeat(low, np.diff(low, append=len(here)))[:, None]
    return _Edges(first, np.maximum(last, 0), np.where(before < begin, -1, before))


def _resets(parts: Rollup, here: Booleans, previous: Indexes) -> Floats:
    """What each row adds to its bucket's resets."""
    reached = np.take_along_axis(parts.lasts, np.maximum(previous, 0), 0)
    fell = here & (previous >= 0) & (parts.firsts < reached)
    return np.where(here, parts.resets, 0.0) + np.where(fell, reached, 0.0)


def _sums(terms: Floats, low: Indexes) -> Floats:
    """Sums of rows from each of `low` to the next; exact enough where terms cancel each other."""
    sums: Floats = np.add.reduceat(terms, low, axis=0)
    if (terms < 0).any():
        lost = cancelled(sums, np.add.reduceat(np.abs(terms), low, axis=0))
        high = np.append(low[1:], len(terms))
        for place in np.flatnonzero(lost.any(axis=1)):
            sums[place] = compensated_sum(terms[low[place] : high[place]].T)
    return sums
