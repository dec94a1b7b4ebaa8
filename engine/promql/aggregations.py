"""Aggregations over the series of a vector, step by step, as reductions of sorted columns."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from engine.promql.blocks import NAME, Booleans, Columns, Floats, Indexes, Labels
from engine.promql.tables import Table, empty_table


@dataclass(frozen=True, slots=True, eq=False)
class _Groups:
    """Columns sorted by group (`order`), where each group begins, and the groups' label sets."""

    order: Indexes | None
    starts: Indexes
    columns: Columns


def aggregate(op: str, table: Table, *, without: bool, labels: tuple[str, ...]) -> Table:
    """One series per group of equal labels; a group without a present series has no result."""
    if not len(table.columns):
        return empty_table(len(table.values))
    groups = table.columns.remember(
        ("group", without, labels), lambda: _group(table.columns, without, labels)
    )
    values, present = table.values, table.present
    if groups.order is not None:
        values, present = values[:, groups.order], present[:, groups.order]
    counts = np.add.reduceat(present, groups.starts, axis=1, dtype=np.intp)
    result = AGGREGATIONS[op](values, present, counts, groups.starts)
    return Table(groups.columns, result, counts > 0)


def _group(columns: Columns, without: bool, labels: tuple[str, ...]) -> _Groups:
    dropped = {*labels, NAME}
    places: dict[tuple[tuple[str, str], ...], list[int]] = {}
    kept: list[Labels] = []
    for position, one in enumerate(columns):
        if without:
            label_set = {name: value for name, value in one.items() if name not in dropped}
        else:
            label_set = {name: one[name] for name in labels if one.get(name)}
        members = places.setdefault(tuple(sorted(label_set.items())), [])
        if not members:
            kept.append(label_set)
        members.append(position)
    order = [position for members in places.values() for position in members]
    sizes = [len(members) for members in places.values()]
    return _Groups(
        None if order == sorted(order) else np.array(order, dtype=np.intp),
        np.cumsum([0, *sizes[:-1]], dtype=np.intp),
        Columns(kept),
    )


Reduction = Callable[[Floats, Booleans, Indexes, Indexes], Floats]


def _sum(values: Floats, present: Booleans, counts: Indexes, starts: Indexes) -> Floats:
    if not present.all():
        values = np.where(present, values, 0.0)
    return np.asarray(np.add.reduceat(values, starts, axis=1))


def _avg(values: Floats, present: Booleans, counts: Indexes, starts: Indexes) -> Floats:
    size = np.maximum(counts, 1)
    means = _sum(values, present, counts, starts) / size
    if np.isinf(means).any():
        sizes = np.diff(starts, append=values.shape[1])
        shares = _sum(values / np.repeat(size, sizes, axis=1), present, counts, starts)
        means = np.where(np.isinf(means), shares, means)
    return np.asarray(means)


def _min(values: Floats, present: Booleans, counts: Indexes, starts: Indexes) -> Floats:
    return np.asarray(np.fmin.reduceat(np.where(present, values, np.nan), starts, axis=1))


def _max(values: Floats, present: Booleans, counts: Indexes, starts: Indexes) -> Floats:
    return np.asarray(np.fmax.reduceat(np.where(present, values, np.nan), starts, axis=1))


def _count(values: Floats, present: Booleans, counts: Indexes, starts: Indexes) -> Floats:
    return counts.astype(np.float64)


AGGREGATIONS: dict[str, Reduction] = {
    "sum": _sum,
    "avg": _avg,
    "min": _min,
    "max": _max,
    "count": _count,
}
