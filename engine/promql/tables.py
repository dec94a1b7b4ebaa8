"""The value of an expression over a list of instants: one table, whatever the expression."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from engine.promql.blocks import (
    NAME,
    NO_COLUMNS,
    Booleans,
    Columns,
    Floats,
    Indexes,
    Labels,
    join_columns,
)
from engine.promql.errors import QueryError

METADATA = frozenset({NAME, "__type__", "__unit__"})
"""Labels that describe a metric, and are true of none that is computed from it."""


class Unnamed(dict[str, str]):
    """A label set whose metadata is dropped when the query has been answered, and no sooner, so
    that until then `label_replace` and groupings can tell series apart by the name.

    Prometheus 3, feature promql-delayed-name-removal.
    """


def relabelled(before: Labels, after: dict[str, str]) -> Labels:
    """`after` as what a label set became: unnamed in the end, if it was to be before."""
    return Unnamed(after) if isinstance(before, Unnamed) else after


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
        """The same table, of which no series keeps its metric name to the end."""
        return Table(unnamed(self.columns), self.values, self.present)

    def finished(self) -> "Table":
        """The same cells under the labels that an answer has."""
        if not self.columns.remember("drops", lambda: [_drops(self.columns)])[0]:
            return self
        return self.renamed(self.columns.remember("finished", lambda: _finished(self.columns)))


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


def without_metadata(labels: Labels) -> dict[str, str]:
    """A label set without the metric name, and without the type and unit that go with it."""
    return {name: value for name, value in labels.items() if name not in METADATA}


def unnamed(columns: Columns) -> Columns:
    """The columns, none of which keeps its metric name to the end."""
    if not columns.remember("stays", lambda: [_stays(columns)])[0]:
        return columns
    return columns.remember("unnamed", lambda: Columns([Unnamed(one) for one in columns]))


def _stays(columns: Iterable[Labels]) -> bool:
    """Whether any has metadata that it keeps."""
    return any(
        not isinstance(one, Unnamed) and not METADATA.isdisjoint(one.keys()) for one in columns
    )


def _drops(columns: Iterable[Labels]) -> bool:
    return any(isinstance(one, Unnamed) for one in columns)


def _finished(columns: Columns) -> Columns:
    return Columns([without_metadata(one) if isinstance(one, Unnamed) else one for one in columns])


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
    """Positions of equal label sets, grouped; nothing where all differ. What loses its name in the
    end differs from what keeps it."""
    places: dict[tuple[frozenset[tuple[str, str]], bool], list[int]] = {}
    for position, (identity, one) in enumerate(zip(columns.identities(), columns, strict=True)):
        places.setdefault((identity, isinstance(one, Unnamed)), []).append(position)
    if len(places) == len(columns):
        return []
    return [np.array(members, dtype=np.intp) for members in places.values()]
