"""Stepping through blocks: the newest sample at each step, and functions over a time window.

Each block is searched once for all its series; the functions work on whole windows of rows.
Windows are open on the left, (t - range, t], as in Prometheus 3.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from engine.promql.blocks import (
    Block,
    Booleans,
    Floats,
    Indexes,
    Instants,
    at_rows,
    cell_bits,
    dense_parts,
    distinct_blocks,
    may_have_nan,
)
from engine.promql.limits import DEFAULT_LIMITS, Limits
from engine.promql.tables import Table, join_tables
from schemas.values import ABSENT_BITS, STALE_BITS

SECOND_US = 1_000_000

GATHERED_CELLS = 1_000_000
"""Values that are copied at once for functions that need a window as a whole: 8 MB."""


def newest(
    blocks: Sequence[Block], steps: Instants, lookback_us: int, limits: Limits = DEFAULT_LIMITS
) -> Table:
    """Each series' newest sample at each step, unless it is older than the lookback or stale."""
    tables = []
    for block in _within(limits, blocks, steps):
        if len(steps) == 1 and block.at[-1] <= steps[0] and len(block.at) == 1:
            tables.append(_newest_of_row(block, steps, lookback_us))
            continue
        result = _Result(block, steps)
        for indexes, at, cells in dense_parts(block, keep_stale=True):
            row = at.searchsorted(steps, side="right") - 1
            fresh = (row >= 0) & (at[row] > steps - lookback_us)
            found = at_rows(cells, row)
            result.put(indexes, found, fresh)
            if may_have_nan(found):
                result.drop(indexes, cell_bits(found) == STALE_BITS)
        tables.append(result.table)
    return join_tables(tables, len(steps))


class _Result:
    """A block's table, which may be made of parts."""

    def __init__(self, block: Block, steps: Instants) -> None:
        self._block = block
        self._shape = (len(steps), len(block.labels))
        self._values: Floats | None = None
        self._present: Booleans | None = None

    def put(self, indexes: Indexes | None, values: Floats, present: Booleans) -> None:
        """Fill columns, all of them where `indexes` is None. present: (steps,), of each alike."""
        if indexes is None:
            self._values, self._present = values, np.empty_like(values, dtype=np.bool_)
            self._present[:] = present[:, None]
            return
        if self._values is None or self._present is None:
            self._values = np.empty(self._shape, order="F")
            self._present = np.zeros(self._shape, dtype=np.bool_, order="F")
        self._values[:, indexes], self._present[:, indexes] = values, present[:, None]

    def drop(self, indexes: Indexes | None, gone: Booleans) -> None:
        """Cells of columns that were put, and are not there."""
        assert self._present is not None
        if indexes is None:
            self._present &= ~gone
        else:
            self._present[:, indexes] &= ~gone

    @property
    def table(self) -> Table:
        if self._values is None or self._present is None:
            absent = np.zeros(self._shape, dtype=np.bool_)
            return Table(self._block.columns, np.empty(self._shape), absent)
        return Table(self._block.columns, self._values, self._present)


def _newest_of_row(block: Block, steps: Instants, lookback_us: int) -> Table:
    """`newest` for one step and a block of one row: what an evaluator asks most."""
    bits = cell_bits(block.values)
    if block.at[0] > steps[0] - lookback_us:
        present = (bits != STALE_BITS) & (bits != ABSENT_BITS)
    else:
        present = np.zeros(block.values.shape, dtype=np.bool_)
    return Table(block.columns, block.values, present)


def instants_of_newest(
    blocks: Sequence[Block], steps: Instants, lookback_us: int, limits: Limits = DEFAULT_LIMITS
) -> Table:
    """When each series' newest sample was taken, in seconds; present as in `newest`."""
    timed = []
    for block in distinct_blocks(blocks):
        bits = cell_bits(block.values)
        gone = (bits == ABSENT_BITS) | (bits == STALE_BITS)
        instants = np.broadcast_to(_seconds(block.at)[:, None], gone.shape)
        timed.append(Block(block.labels, block.at, np.where(gone, block.values, instants)))
    return newest(timed, steps, lookback_us, limits)


def _within(limits: Limits, blocks: Sequence[Block], steps: Instants) -> Iterator[Block]:
    """Blocks of different series, one by one, while the evaluation is to go on.

    Raises QueryError where a table of all of them at the steps would be too large.
    """
    distinct = distinct_blocks(blocks)
    limits.check_cells(sum(len(block.labels) for block in distinct), len(steps))
    for block in distinct:
        limits.check()
        yield block


class Windows(NamedTuple):
    """Samples without holes, and for each step the rows [low, high) that its window holds.

    at: (rows,); values: (rows, columns); low, high, ends: (steps,); range_us: width of a window.
    steps: the instants of evaluation, from which `ends` differ by an offset or `@`.
    """

    at: Instants
    values: Floats
    low: Indexes
    high: Indexes
    ends: Instants
    range_us: int
    steps: Instants
    limits: Limits = DEFAULT_LIMITS

    @property
    def counts(self) -> Indexes:
        return self.high - self.low

    @property
    def first(self) -> Indexes:
        """The first row of each window; any row where it is empty."""
        return np.minimum(self.low, len(self.at) - 1)

    @property
    def last(self) -> Indexes:
        """The last row of each window; any row where it is empty."""
        return np.maximum(self.high - 1, 0)

    def some(self, places: Indexes) -> "Windows":
        """The windows of these steps only."""
        return self._replace(
            low=self.low[places],
            high=self.high[places],
            ends=self.ends[places],
            steps=self.steps[places],
        )


WindowFunction = Callable[..., tuple[Floats, Booleans]]
"""Takes Windows and the function's other arguments, each (steps,); gives (values (steps, columns),
present (steps,)): a series has a result where present."""


def over_windows(
    blocks: Sequence[Block],
    ends: Instants,
    range_us: int,
    function: WindowFunction,
    steps: Instants,
    parameters: Sequence[Floats] = (),
    limits: Limits = DEFAULT_LIMITS,
) -> Table:
    """`function` of each series' window at each step. Metric names are kept; drop them after.

    ends: where each step's window ends. parameters: the function's other arguments.
    """
    tables = []
    for block in _within(limits, blocks, steps):
        result = _Result(block, steps)
        for indexes, at, cells in dense_parts(block, keep_stale=False):
            low = at.searchsorted(ends - range_us, side="right")
            high = at.searchsorted(ends, side="right")
            found, there = function(
                Windows(at, cells, low, high, ends, range_us, steps, limits), *parameters
            )
            result.put(indexes, found, there)
        tables.append(result.table)
    return join_tables(tables, len(steps))


def _seconds(instants: Instants) -> Floats:
    return instants / SECOND_US


Gathered = Callable[..., Floats]
"""Takes (cells (windows, columns, rows), at (windows, rows) in seconds after the window's step, and
the function's other arguments, each (windows,)); gives (windows, columns)."""


def check_work(windows: Windows) -> None:
    """Raises QueryError where all windows together hold too many samples to look at each."""
    windows.limits.check_work(int(windows.counts.sum()) * windows.values.shape[1])


def gathered(windows: Windows, function: Gathered, *parameters: Floats) -> Floats:
    """`function` of whole windows, of those that hold equally many rows at once."""
    check_work(windows)
    shape = (len(windows.ends), windows.values.shape[1])
    result = np.full(shape, np.nan)
    counts = windows.counts
    for count in np.unique(counts[counts > 0]):
        places = np.flatnonzero(counts == count)
        chunk = max(1, GATHERED_CELLS // (int(count) * max(shape[1], 1)))
        for begin in range(0, len(places), chunk):
            windows.limits.check()
            some = places[begin : begin + chunk]
            rows = windows.low[some][:, None] + np.arange(count)
            at = _seconds(windows.at[rows] - windows.steps[some][:, None])
            cells = np.swapaxes(windows.values[rows], 1, 2)
            result[some] = function(cells, at, *[one[some] for one in parameters])
    return result
