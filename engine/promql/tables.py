"""The value of an expression over a list of instants: one table, whatever the expression."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from engine.promql.blocks import (
    NAME,
    NO_COLUMNS,
    Booleans,
    Columns,
    Floats,
    Indexes,
    join_columns,
)
from engine.promql.errors import QueryError

METADATA = frozenset({NAME, "__type__", "__unit__"})
"""Labels that describe a metric, and are true of none that is computed from it."""


class Table(NamedTuple):
    """An instant vector at each of several instants ("steps").

    values: float64, (steps, columns). present: bool, (steps, columns): whether the vector has this
    series at this step; what `values` holds elsewhere means nothing.
    """

    columns: Columns
    values: Floats
    present: Booleans

    def renamed(self, columns: Columns) -> "Table":
        """The same cells under other label sets; series that become the same are made one.

        Raises QueryError where two of them are present at the same step.
        """
        return united(Table(columns, self.values, self.present))

    def without_name(self) -> "Table":
        """The same table without metric names."""
        return self.renamed(nameless(self.columns))


def empty_table(steps: int) -> Table:
    """A table without series."""
    return Table(NO_COLUMNS, np.empty((steps, 0)), np.empty((steps, 0), dtype=np.bool_))


def join_tables(tables: Sequence[Table], steps: int) -> Table:
    """Tables of different series side by side."""
    if len(tables) == 1:
        return tables[0]
    if not tables:
        return empty_table(steps)
    return Table(
        join_columns([table.columns for table in tables]),
        np.hstack([table.values for table in tables]),
        np.hstack([table.present for table in tables]),
    )


def nameless(columns: Columns) -> Columns:
    """The columns without their metric names, and without the type and unit that go with them."""
    return columns.remember(
        "nameless",
        lambda: Columns([{k: v for k, v in one.items() if k not in METADATA} for one in columns]),
    )


def united(table: Table) -> Table:
    """The table with equal label sets made one column each, as Prometheus does over steps."""
    groups = table.columns.remember("same", lambda: _same(table.columns))
    if not groups:
        return table
    values = np.empty((len(table.values), len(groups)))
    present = np.zeros(values.shape, dtype=np.bool_)
    for column, members in enumerate(groups):
        here = table.present[:, members]
        if (here.sum(axis=1) > 1).any():
            raise QueryError("vector cannot contain metrics with the same labelset")
        chosen = here.argmax(axis=1)
        values[:, column] = table.values[:, members][np.arange(len(values)), chosen]
        present[:, column] = here.any(axis=1)
    return Table(table.columns.take([int(members[0]) for members in groups]), values, present)


def _same(columns: Columns) -> list[Indexes]:
    """Positions of equal label sets, grouped; nothing where all differ."""
    places: dict[frozenset[tuple[str, str]], list[int]] = {}
    for position, identity in enumerate(columns.identities()):
        places.setdefault(identity, []).append(position)
    if len(places) == len(columns):
        return []
    return [np.array(members, dtype=np.intp) for members in places.values()]
