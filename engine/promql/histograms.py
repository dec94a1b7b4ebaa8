"""Classic histograms: series of cumulative counts, one per upper bound in the label `le`."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from engine.promql.blocks import Booleans, Columns, Floats, Indexes, Labels
from engine.promql.tables import Table, empty_table, relabelled

ROUNDING = 1e-12
"""Counts that differ by less than this, relative to their sum, are taken as equal."""

Estimate = Callable[..., Floats]
"""Takes bounds (buckets,), counts (cells, buckets), other numbers (cells,) each; gives (cells,)."""


@dataclass(frozen=True, slots=True, eq=False)
class _Family:
    """Histograms of the same bounds. members: (histograms, buckets), positions of their columns."""

    bounds: Floats
    members: Indexes
    columns: Columns


def estimated(table: Table, estimate: Estimate, *numbers: Floats) -> Table:
    """`estimate` of each histogram at each step, under its labels without `le` and the name.

    numbers: (steps,) each. A histogram is present where any of its buckets is.
    """
    steps = len(table.values)
    families = table.columns.remember("histograms", lambda: _families(table.columns))
    columns: list[Labels] = []
    values: list[Floats] = []
    present: list[Booleans] = []
    for family in families:
        shape = (steps, *family.members.shape)
        here = table.present[:, family.members]
        given = [np.repeat(one, shape[1]) for one in numbers]
        cells = table.values[:, family.members].reshape(-1, shape[2])
        found = _by_presence(family.bounds, cells, here.reshape(cells.shape), estimate, given)
        values.append(found.reshape(shape[:2]))
        present.append(np.asarray(here.any(axis=2)))
        columns += family.columns
    if not columns:
        return empty_table(steps)
    named = table.columns.remember("histogram columns", lambda: Columns(columns))
    return Table(named, np.hstack(values), np.hstack(present)).without_name()


def _by_presence(
    bounds: Floats, cells: Floats, here: Booleans, estimate: Estimate, numbers: list[Floats]
) -> Floats:
    """The estimate of cells of which not all have all buckets."""
    if here.all():
        return _whole(bounds, cells, estimate, numbers)
    result = np.full(len(cells), np.nan)
    patterns, which = np.unique(here, axis=0, return_inverse=True)
    for place, pattern in enumerate(patterns):
        rows = np.flatnonzero(which.ravel() == place)
        if pattern.any():
            some = cells[np.ix_(rows, np.flatnonzero(pattern))]
            result[rows] = _whole(bounds[pattern], some, estimate, [one[rows] for one in numbers])
    return result


def _whole(bounds: Floats, counts: Floats, estimate: Estimate, numbers: list[Floats]) -> Floats:
    starts = np.flatnonzero(np.diff(bounds, prepend=np.nan) != 0)
    return estimate(bounds[starts], np.add.reduceat(counts, starts, axis=1), *numbers)


def _families(columns: Columns) -> list[_Family]:
    histograms: dict[frozenset[tuple[str, str]], list[tuple[float, int]]] = {}
    labels: dict[frozenset[tuple[str, str]], Labels] = {}
    for position, one in enumerate(columns):
        bound = _bound(one.get("le", ""))
        if bound is not None:
            rest = {name: value for name, value in one.items() if name != "le"}
            key = frozenset(rest.items())
            labels[key] = relabelled(one, rest)
            histograms.setdefault(key, []).append((bound, position))
    families: dict[tuple[float, ...], list[frozenset[tuple[str, str]]]] = {}
    for key, buckets in histograms.items():
        buckets.sort()
        families.setdefault(tuple(bound for bound, _ in buckets), []).append(key)
    return [
        _Family(
            np.array(bounds),
            np.array([[place for _, place in histograms[key]] for key in keys], dtype=np.intp),
            Columns([labels[key] for key in keys]),
        )
        for bounds, keys in families.items()
    ]


def _bound(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def quantile(bounds: Floats, counts: Floats, ratio: Floats) -> Floats:
    """The quantile, linear within its bucket. Prometheus 3, promql/quantile.go, BucketQuantile.

    The lowest bucket begins at 0 if its bound is above; a quantile in the highest is the bound
    below it.
    """
    outside = np.where(ratio < 0, -np.inf, np.where(ratio > 1, np.inf, np.nan))
    if len(bounds) < 2 or bounds[-1] != np.inf:
        return np.where((ratio >= 0) & (ratio <= 1), np.nan, outside)
    counts = _monotonic(counts)
    total = counts[:, -1]
    rank = ratio * total
    reached = counts[:, :-1] >= rank[:, None]
    bucket = np.where(reached.any(axis=1), reached.argmax(axis=1), len(bounds) - 1)
    rows = np.arange(len(counts))
    first = bucket == 0
    below = np.maximum(bucket - 1, 0)
    begin = np.where(first, 0.0, bounds[below])
    under = np.where(first, 0.0, counts[rows, below])
    share = (rank - under) / (counts[rows, bucket] - under)
    found = begin + (bounds[bucket] - begin) * share
    found = np.where(first & (bounds[0] <= 0), bounds[0], found)
    found = np.where(bucket == len(bounds) - 1, bounds[-2], found)
    found = np.where(total == 0, np.nan, found)
    return np.where((ratio >= 0) & (ratio <= 1), found, outside)


def _monotonic(counts: Floats) -> Floats:
    """The counts with every decrease, and every difference that is only rounding, levelled."""
    result = counts.copy()
    reached = counts[:, 0]
    for place in range(1, counts.shape[1]):
        now = counts[:, place]
        sizes = np.abs(reached) + np.abs(now)
        level = (now < reached) | (np.abs(now - reached) < ROUNDING * sizes)
        reached = result[:, place] = np.where(level, reached, now)
    return result


def fraction(bounds: Floats, counts: Floats, lower: Floats, upper: Floats) -> Floats:
    """The share of observations between two values, linear within buckets."""
    if bounds[-1] != np.inf:
        return np.full(len(counts), np.nan)
    total = counts[:, -1]
    share = (_rank(bounds, counts, upper) - _rank(bounds, counts, lower)) / total
    share = np.where(lower >= upper, 0.0, share)
    return np.where((total == 0) | np.isnan(lower) | np.isnan(upper), np.nan, share)


def _rank(bounds: Floats, counts: Floats, value: Floats) -> Floats:
    """How many observations lie below a value; buckets of infinite width are not divided."""
    total = counts[:, -1]
    lowest = 0.0 if bounds[0] > 0 else -np.inf
    edges = np.concatenate([[lowest], bounds])
    sums = np.hstack([np.zeros((len(counts), 1)), counts])
    bucket = np.clip(np.searchsorted(edges, value, side="right") - 1, 0, len(bounds) - 1)
    rows = np.arange(len(counts))
    begin, end = edges[bucket], edges[bucket + 1]
    under, reached = sums[rows, bucket], sums[rows, bucket + 1]
    inside = under + (reached - under) * (value - begin) / (end - begin)
    inside = np.where(np.isinf(begin), reached, inside)
    inside = np.where(value <= edges[0], 0.0, np.where(value == begin, under, inside))
    return np.minimum(np.where(value == np.inf, total, inside), total)


def labelled(table: Table, label: str, value: str) -> Table:
    """The table with one more label on every series."""
    columns = table.columns.remember(
        ("labelled", label, value),
        lambda: Columns([relabelled(one, {**one, label: value}) for one in table.columns]),
    )
    return table.renamed(columns)
