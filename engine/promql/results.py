"""What a query answers, column by column."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from engine.promql.blocks import Booleans, Floats, Instants, Labels
from engine.promql.tables import Table


@dataclass(frozen=True, slots=True, eq=False)
class Vector:
    """An instant vector. values: (series,) float64, in the order of `labels`."""

    at_us: int
    labels: tuple[Labels, ...]
    values: Floats


@dataclass(frozen=True, slots=True)
class Scalar:
    """A number at an instant."""

    at_us: int
    value: float


@dataclass(frozen=True, slots=True, eq=False)
class Matrix:
    """Series over time. values, present: (instants, series); a sample exists where present."""

    labels: tuple[Labels, ...]
    at: Instants
    values: Floats
    present: Booleans

    def series(self) -> Iterator[tuple[Labels, Instants, Floats]]:
        """(labels, at, values) of each series that has samples."""
        for column, labels in enumerate(self.labels):
            here = self.present[:, column]
            if here.all():
                yield labels, self.at, self.values[:, column]
            elif here.any():
                yield labels, self.at[here], self.values[here, column]


_NOTHING: Floats = np.empty(0)

Result = Vector | Scalar | Matrix | str


def vector_of(table: Table, at_us: int) -> Vector:
    """The table's only step as a vector."""
    here = table.present[0].nonzero()[0]
    if not len(here):
        return Vector(at_us, (), _NOTHING)
    if len(here) == len(table.columns):
        return Vector(at_us, table.columns, table.values[0])
    return Vector(at_us, tuple(table.columns[one] for one in here), table.values[0, here])


def matrix_of(table: Table, steps: Instants) -> Matrix:
    """The table as series over time, those without any sample left out, sorted by labels."""
    alive = [int(column) for column in np.flatnonzero(table.present.any(axis=0))]
    alive.sort(key=lambda column: sorted(table.columns[column].items()))
    labels = tuple(table.columns[column] for column in alive)
    return Matrix(labels, steps, table.values[:, alive], table.present[:, alive])
