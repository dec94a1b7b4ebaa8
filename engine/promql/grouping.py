"""Which series an aggregation takes together."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from engine.promql.blocks import NAME, Booleans, Columns, Floats, Indexes, Labels
from engine.promql.tables import METADATA, Table, Unnamed


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """Columns sorted by group (`order`; None: as they stand), where each group begins in that
    order, and the groups' label sets."""

    order: Indexes | None
    starts: Indexes
    columns: Columns

    def sorted(self, table: Table) -> tuple[Floats, Booleans]:
        """The table's values and presence with its columns sorted by group."""
        if self.order is None:
            return table.values, table.present
        return table.values[:, self.order], table.present[:, self.order]

    def members(self, width: int) -> Iterator[Indexes]:
        """The positions of each group's columns in a table of this width."""
        order = np.arange(width) if self.order is None else self.order
        yield from np.split(order, self.starts[1:])


def grouped(columns: Columns, without: bool, labels: tuple[str, ...]) -> Groups:
    """The groups of equal labels: by the listed ones, or by all but them and the name."""
    return columns.remember(("group", without, labels), lambda: _group(columns, without, labels))


def _group(columns: Columns, without: bool, labels: tuple[str, ...]) -> Groups:
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
    for number, members in enumerate(places.values()):
        shown = not METADATA.isdisjoint(kept[number])
        if shown and any(isinstance(columns[place], Unnamed) for place in members):
            kept[number] = Unnamed(kept[number])
    order = [position for members in places.values() for position in members]
    sizes = [len(members) for members in places.values()]
    return Groups(
        None if order == sorted(order) else np.array(order, dtype=np.intp),
        np.cumsum([0, *sizes[:-1]], dtype=np.intp),
        Columns(kept),
    )
