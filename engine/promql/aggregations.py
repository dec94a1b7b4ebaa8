"""Aggregations that make one series of each group, as reductions of sorted columns.

Those that select among the group's series stand in selections.py.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from engine.promql import statistics
from engine.promql.blocks import Booleans, Columns, Floats, Indexes, Labels
from engine.promql.errors import QueryError
from engine.promql.formatting import format_value
from engine.promql.grouping import grouped
from engine.promql.relabeling import is_label
from engine.promql.tables import Table, empty_table, join_tables, united

MAX_COUNTS = 10_000_000
"""Results of count_values: of so many values at so many steps that they take 80 MB."""


class Sorted(NamedTuple):
    """Columns sorted by group. counts: (steps, groups), present series; starts: (groups,)."""

    values: Floats
    present: Booleans
    counts: Indexes
    starts: Indexes

    def spread(self, cells: Floats) -> Floats:
        """A value of each group at each of its columns."""
        sizes = np.diff(self.starts, append=self.values.shape[1])
        # Not np.repeat of the cells: no other thread would run meanwhile.
        return cells.take(np.repeat(np.arange(len(sizes)), sizes), axis=1)


def aggregate(op: str, table: Table, *, without: bool, labels: tuple[str, ...]) -> Table:
    """One series per group of equal labels; a group without a present series has no result."""
    if not len(table.columns):
        return empty_table(len(table.values))
    groups = grouped(table.columns, without, labels)
    values, present = groups.sorted(table)
    if len(present) > 1 and present.all():
        sizes = np.diff(groups.starts, append=present.shape[1])
        counts = np.broadcast_to(sizes, (len(present), len(sizes)))
    else:
        counts = np.add.reduceat(present, groups.starts, axis=1, dtype=np.intp)
    result = REDUCTIONS[op](Sorted(values, present, counts, groups.starts))
    return Table(groups.columns, result, counts > 0)


def quantile(ratio: Floats, table: Table, *, without: bool, labels: tuple[str, ...]) -> Table:
    """The quantile of each group at each step. ratio: (steps,)."""
    if not len(table.columns):
        return empty_table(len(table.values))
    groups = grouped(table.columns, without, labels)
    values = np.empty((len(ratio), len(groups.columns)))
    present = np.zeros(values.shape, dtype=np.bool_)
    for place, members in enumerate(groups.members(len(table.columns))):
        here = table.present[:, members]
        values[:, place] = statistics.quantile(table.values[:, members], here, ratio)
        present[:, place] = here.any(axis=1)
    return Table(groups.columns, values, present)


def count_values(label: str, table: Table, *, without: bool, labels: tuple[str, ...]) -> Table:
    """How many series of each group have each value, which becomes the label's."""
    if not is_label(label):
        raise QueryError(f"invalid label name {label}")
    labels = (*labels, label) if without else tuple(name for name in labels if name != label)
    if not len(table.columns):
        return empty_table(len(table.values))
    groups = grouped(table.columns, without, labels)
    tables, left = [], MAX_COUNTS
    for members, group in zip(groups.members(len(table.columns)), groups.columns, strict=True):
        tables.append(_counted(label, table, members, group, left))
        left -= tables[-1].values.size
    return united(join_tables(tables, len(table.values)))


def _counted(label: str, table: Table, members: Indexes, group: Labels, left: int) -> Table:
    """The counts of one group. Raises QueryError where they are more than what is left of all."""
    present = table.present[:, members]
    steps, _ = present.nonzero()
    found, which = np.unique(table.values[:, members][present], return_inverse=True)
    if len(found) * len(present) > left:
        raise QueryError(
            f"count_values of {len(found)} different values at {len(present)} steps;"
            f" at most {MAX_COUNTS} in all"
        )
    shape = (len(present), len(found))
    cells = np.bincount(steps * len(found) + which, minlength=shape[0] * shape[1]).reshape(shape)
    columns = Columns([{**group, label: format_value(value)} for value in found.tolist()])
    return Table(columns, cells.astype(np.float64), cells > 0)


def _sum(group: Sorted) -> Floats:
    values = group.values if group.present.all() else np.where(group.present, group.values, 0.0)
    sums = np.asarray(np.add.reduceat(values, group.starts, axis=1))
    if (values < 0).any():
        sizes = np.add.reduceat(np.abs(values), group.starts, axis=1)
        ends = np.append(group.starts[1:], values.shape[1])
        for place in np.flatnonzero((lost := statistics.cancelled(sums, sizes)).any(axis=0)):
            steps = lost[:, place]
            terms = values[steps, group.starts[place] : ends[place]]
            sums[steps, place] = statistics.compensated_sum(terms)
    return sums


def _avg(group: Sorted) -> Floats:
    size = np.maximum(group.counts, 1)
    means = _sum(group) / size
    if np.isinf(means).any():
        shares = _sum(group._replace(values=group.values / group.spread(size)))
        means = np.where(np.isinf(means), shares, means)
    return means


def _min(group: Sorted) -> Floats:
    values = np.where(group.present, group.values, np.nan)
    return np.asarray(np.fmin.reduceat(values, group.starts, axis=1))


def _max(group: Sorted) -> Floats:
    values = np.where(group.present, group.values, np.nan)
    return np.asarray(np.fmax.reduceat(values, group.starts, axis=1))


def _count(group: Sorted) -> Floats:
    return group.counts.astype(np.float64)


def _group(group: Sorted) -> Floats:
    return np.ones(group.counts.shape)


def _stdvar(group: Sorted) -> Floats:
    # Counted from one of them, values that are all the same vary by exactly 0.
    group = group._replace(values=group.values - group.spread(_min(group)))
    distances = group.values - group.spread(_avg(group))
    squares = np.where(group.present, distances * distances, 0.0)
    sums = np.add.reduceat(squares, group.starts, axis=1)
    return np.asarray(sums / np.maximum(group.counts, 1))


def _stddev(group: Sorted) -> Floats:
    return np.sqrt(_stdvar(group))


REDUCTIONS: dict[str, Callable[[Sorted], Floats]] = {
    "sum": _sum,
    "avg": _avg,
    "min": _min,
    "max": _max,
    "count": _count,
    "group": _group,
    "stddev": _stddev,
    "stdvar": _stdvar,
}
