"""Aggregations that keep some series of each group as they are: topk, bottomk, limitk, limit_ratio.

Where there is one step, the result stands in the order of the ranks, group by group.
"""

import hashlib
from collections.abc import Callable

import numpy as np

from engine.promql.blocks import Booleans, Columns, Floats, Indexes, Labels
from engine.promql.errors import QueryError
from engine.promql.grouping import grouped
from engine.promql.tables import Table, empty_table

MAX_INT64 = 2.0**63


def select(
    op: str, table: Table, parameter: Floats, *, without: bool, labels: tuple[str, ...]
) -> Table:
    """The selected series with all their labels. parameter: (steps,)."""
    check(op, parameter)
    if not len(table.columns):
        return empty_table(len(table.values))
    keep = np.zeros(table.present.shape, dtype=np.bool_)
    ranking: list[Indexes] = []
    rank = RANKINGS[op]
    for members in grouped(table.columns, without, labels).members(len(table.columns)):
        group = _taken(table, members)
        order, wanted = rank(group, parameter)
        kept = np.zeros(group.present.shape, dtype=np.bool_)
        np.put_along_axis(kept, order, wanted, axis=1)
        keep[:, members] = kept & group.present
        ranking.append(members[order[0]])
    selected = Table(table.columns, table.values, keep)
    if len(table.values) > 1:
        return selected
    order = np.concatenate(ranking)
    return _taken(selected, order[keep[0, order]])


def _taken(table: Table, places: Indexes) -> Table:
    columns = Columns([table.columns[place] for place in places])
    return Table(columns, table.values[:, places], table.present[:, places])


def check(op: str, parameter: Floats) -> None:
    """Raises QueryError for a parameter that selects nothing sensible."""
    if np.isnan(parameter).any():
        raise QueryError(f"{'Ratio' if op == 'limit_ratio' else 'Parameter'} value is NaN")
    if op == "limit_ratio":
        return
    if (parameter >= MAX_INT64).any():
        raise QueryError(f"Scalar value {parameter.max()} overflows int64")
    if (parameter < -MAX_INT64).any():
        raise QueryError(f"Scalar value {parameter.min()} underflows int64")


Ranked = tuple[Indexes, Booleans]
"""(steps, columns): columns from first to last, and whether the column of that rank is wanted."""


def _first(order: Indexes, count: Floats) -> Ranked:
    return order, np.arange(order.shape[1]) < np.trunc(count)[:, None]


def _by_value(group: Table, keys: Floats, count: Floats) -> Ranked:
    """By ascending key, NaN after all numbers, absent series last; equal ones as they stand."""
    late = np.where(group.present, np.isnan(keys).astype(np.int8), 2)
    return _first(np.lexsort((keys, late), axis=-1), count)


def _label_order(columns: Columns) -> list[int]:
    """Positions of the columns in the order of their label sets, as Prometheus stores series."""
    return columns.remember(
        "label order",
        lambda: sorted(range(len(columns)), key=lambda one: sorted(columns[one].items())),
    )


def _by_labels(group: Table, count: Floats) -> Ranked:
    """By label sets, as Prometheus' storage sorts series; absent ones last."""
    place = _label_order(group.columns)
    ranks = np.empty(len(place), dtype=np.intp)
    ranks[place] = np.arange(len(place))
    return _first(np.lexsort((np.broadcast_to(ranks, group.present.shape), ~group.present)), count)


def _ratio(group: Table, ratio: Floats) -> Ranked:
    """Those whose hash stands below the ratio; of a negative one, all others."""
    hashes = np.array([_hash_ratio(one) for one in group.columns])
    share = np.clip(ratio, -1.0, 1.0)[:, None]
    wanted = np.where(share >= 0, hashes < share, hashes >= 1.0 + share)
    order = np.broadcast_to(np.arange(len(hashes)), wanted.shape)
    return order, wanted


def _hash_ratio(labels: Labels) -> float:
    """A number in 0..1 that is the same for the same labels, always."""
    text = repr(sorted(labels.items())).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) / 2.0**64


RANKINGS: dict[str, Callable[[Table, Floats], Ranked]] = {
    "topk": lambda group, count: _by_value(group, -group.values, count),
    "bottomk": lambda group, count: _by_value(group, group.values, count),
    "limitk": _by_labels,
    "limit_ratio": _ratio,
}
