"""Stepping through blocks: the newest sample at each step, and functions over a time window.

Each block is searched once for all its series; the functions work on whole windows of rows.
Windows are open on the left, (t - range, t], as in Prometheus 3.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from engine.promql.blocks import (
    Block,
    Booleans,
    Floats,
    Indexes,
    Instants,
    cell_bits,
    dense_parts,
    distinct_blocks,
)
from engine.promql.tables import Table, join_tables
from schemas.values import ABSENT_BITS, STALE_BITS

SECOND_US = 1_000_000


def newest(blocks: Sequence[Block], steps: Instants, lookback_us: int) -> Table:
    """Each series' newest sample at each step, unless it is older than the lookback or stale."""
    tables = []
    for block in distinct_blocks(blocks):
        if len(steps) == 1 and block.at[-1] <= steps[0] and len(block.at) == 1:
            tables.append(_newest_of_row(block, steps, lookback_us))
            continue
        values = np.full((len(steps), len(block.labels)), np.nan)
        present = np.zeros(values.shape, dtype=np.bool_)
        for indexes, at, cells in dense_parts(block, keep_stale=True):
            row = np.searchsorted(at, steps, side="right") - 1
            fresh = (row >= 0) & (at[row] > steps - lookback_us)
            found = cells[row]
            alive = fresh[:, None] & (cell_bits(found) != STALE_BITS)
            if indexes is None:
                values, present = found, alive
            else:
                values[:, indexes], present[:, indexes] = found, alive
        tables.append(Table(block.columns, values, present))
    return join_tables(tables, len(steps))


def _newest_of_row(block: Block, steps: Instants, lookback_us: int) -> Table:
    """`newest` for one step and a block of one row: what an evaluator asks most."""
    bits = cell_bits(block.values)
    if block.at[0] > steps[0] - lookback_us:
        present = (bits != STALE_BITS) & (bits != ABSENT_BITS)
    else:
        present = np.zeros(block.values.shape, dtype=np.bool_)
    return Table(block.columns, block.values, present)


class Windows(NamedTuple):
    """Samples without holes, and for each step the rows [low, high) that its window holds.

    at: (rows,); values: (rows, columns); low, high, ends: (steps,); range_us: width of a window.
    """

    at: Instants
    values: Floats
    low: Indexes
    high: Indexes
    ends: Instants
    range_us: int

    @property
    def counts(self) -> Indexes:
        return self.high - self.low


WindowFunction = Callable[..., tuple[Floats, Booleans]]
"""Takes Windows and the function's other arguments, each (steps,); gives (values (steps, columns),
present (steps,)): a series has a result where present."""


def over_windows(
    blocks: Sequence[Block],
    steps: Instants,
    range_us: int,
    function: WindowFunction,
    parameters: Sequence[Floats] = (),
) -> Table:
    """`function` of each series' window at each step. Metric names are kept; drop them after."""
    tables = []
    for block in distinct_blocks(blocks):
        shape = (len(steps), len(block.labels))
        values, present = np.empty(shape), np.zeros(shape, dtype=np.bool_)
        for indexes, at, cells in dense_parts(block, keep_stale=False):
            low = at.searchsorted(steps - range_us, side="right")
            high = at.searchsorted(steps, side="right")
            found, there = function(Windows(at, cells, low, high, steps, range_us), *parameters)
            if indexes is None:
                values = found
                present[:] = there[:, None]
            else:
                values[:, indexes] = found
                present[:, indexes] = there[:, None]
        tables.append(Table(block.columns, values, present))
    return join_tables(tables, len(steps))


def _first_row(windows: Windows) -> Indexes:
    return np.minimum(windows.low, len(windows.at) - 1)


def _last_row(windows: Windows) -> Indexes:
    return np.maximum(windows.high - 1, 0)


def _seconds(span_us: Instants) -> Floats:
    return span_us / SECOND_US


def extrapolated(windows: Windows, *, counter: bool, per_second: bool) -> tuple[Floats, Booleans]:
    """rate, increase (counter) and delta: the change over the window, extrapolated to its ends.

    Prometheus 3, promql/functions.go, extrapolatedRate.
    """
    first, last = _first_row(windows), _last_row(windows)
    counts = windows.counts
    start = windows.values[first]
    change = windows.values[last] - start
    if counter:
        change = _with_resets(windows, first, last, change)
    covered, before, after = _reach(windows, first, last, counts)
    if counter:
        to_zero = covered * (start / change)
        limited = (change > 0) & (start >= 0) & (to_zero < before)
        before = np.where(limited, to_zero, before)
    factor = (covered + before + after) / covered
    if per_second:
        factor = factor / (windows.range_us / SECOND_US)
    return change * factor, counts >= 2


def _reach(
    windows: Windows, first: Indexes, last: Indexes, counts: Indexes
) -> tuple[Floats, Floats, Floats]:
    """Seconds between a window's samples, and how far before and after them it is extrapolated.

    Each (steps, 1): to the window's end, or by half an interval where that is too far away.
    """
    begin, end = windows.at[first], windows.at[last]
    covered = _seconds(end - begin)
    before = _seconds(begin - (windows.ends - windows.range_us))
    after = _seconds(windows.ends - end)
    gap = covered / np.maximum(counts - 1, 1)
    far, half = gap * 1.1, gap / 2
    before = np.where(before >= far, half, before)
    after = np.where(after >= far, half, after)
    return covered[:, None], before[:, None], after[:, None]


def _with_resets(windows: Windows, first: Indexes, last: Indexes, change: Floats) -> Floats:
    """The change plus what counters had reached when they began anew within each window."""
    values = windows.values
    fell = values[1:] < values[:-1]
    if not fell.any():
        return change
    sums = np.zeros(values.shape)
    np.cumsum(np.where(fell, values[:-1], 0.0), axis=0, out=sums[1:])
    return np.asarray(change + (sums[last] - sums[first]))


def between_last_two(windows: Windows, *, counter: bool) -> tuple[Floats, Booleans]:
    """irate (counter: per second, resets heeded) and idelta (plain difference)."""
    last = _last_row(windows)
    previous = np.maximum(last - 1, 0)
    enough = windows.counts >= 2
    end, start = windows.values[last], windows.values[previous]
    if not counter:
        return end - start, enough
    change = np.where(end < start, end, end - start)
    return change / _seconds(windows.at[last] - windows.at[previous])[:, None], enough


def _reduced(windows: Windows, ufunc: np.ufunc) -> Floats:
    """`ufunc` over the rows of each window; windows may overlap. An empty one gives any row."""
    padded = np.vstack([windows.values, windows.values[-1:]])
    bounds = np.stack([windows.low, windows.high], axis=1).ravel()
    return np.asarray(ufunc.reduceat(padded, bounds, axis=0)[::2])


def _some(windows: Windows) -> Booleans:
    return windows.counts > 0


def sum_over_time(windows: Windows) -> tuple[Floats, Booleans]:
    """Sum of the window's samples."""
    return _reduced(windows, np.add), _some(windows)


def avg_over_time(windows: Windows) -> tuple[Floats, Booleans]:
    """Mean of the window's samples; where their sum overflows, the sum of their shares."""
    counts = np.maximum(windows.counts, 1)[:, None]
    means = _reduced(windows, np.add) / counts
    for step in np.flatnonzero(np.isinf(means).any(axis=1) & _some(windows)):
        rows = windows.values[windows.low[step] : windows.high[step]]
        means[step] = np.where(np.isinf(means[step]), (rows / len(rows)).sum(axis=0), means[step])
    return means, _some(windows)


def min_over_time(windows: Windows) -> tuple[Floats, Booleans]:
    """Least sample of the window; NaN only where all are."""
    return _reduced(windows, np.fmin), _some(windows)


def max_over_time(windows: Windows) -> tuple[Floats, Booleans]:
    """Greatest sample of the window; NaN only where all are."""
    return _reduced(windows, np.fmax), _some(windows)


def count_over_time(windows: Windows) -> tuple[Floats, Booleans]:
    """Number of samples in the window."""
    shape = (len(windows.ends), windows.values.shape[1])
    return np.broadcast_to(windows.counts[:, None].astype(np.float64), shape), _some(windows)


def last_over_time(windows: Windows) -> tuple[Floats, Booleans]:
    """Newest sample of the window."""
    return windows.values[_last_row(windows)], _some(windows)


FUNCTIONS: dict[str, WindowFunction] = {
    "rate": lambda windows: extrapolated(windows, counter=True, per_second=True),
    "increase": lambda windows: extrapolated(windows, counter=True, per_second=False),
    "delta": lambda windows: extrapolated(windows, counter=False, per_second=False),
    "irate": lambda windows: between_last_two(windows, counter=True),
    "idelta": lambda windows: between_last_two(windows, counter=False),
    "sum_over_time": sum_over_time,
    "avg_over_time": avg_over_time,
    "min_over_time": min_over_time,
    "max_over_time": max_over_time,
    "count_over_time": count_over_time,
    "last_over_time": last_over_time,
}

KEEPS_NAME = frozenset({"last_over_time"})
"""Functions over a window whose result keeps the metric name."""
