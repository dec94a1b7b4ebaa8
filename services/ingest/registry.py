"""Registration: a layout's series, and what matchers find them by, written once for ever."""

import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from schemas.layouts import Series, series_hash
from services.database import Connection
from services.ingest.batch import Layout

MAX_SERIES_AT_ONCE = 50_000
"""Series of one transaction, which holds all of them in memory; a wider layout stands alone."""

KNOWN = "select hash, id from layouts where hash = any($1::bytea[])"

# Each table in the order of its hashes, and the tables in one order: workers that register the same
# at once wait for one another, and never deadlock.
REGISTER_SERIES = """
insert into series (hash, metric, labels, type, unit)
select distinct on (hash) *
from unnest($1::bytea[], $2::text[], $3::jsonb[], $4::text[], $5::text[])
    as s (hash, metric, labels, type, unit)
order by hash
on conflict (hash) do nothing
"""

REGISTER_SHAPES = """
insert into shapes (hash, metric, type, unit, labels, names)
select distinct on (1)
       shape_hash(metric, type, unit, labels::jsonb), metric, type, unit, labels::jsonb,
       label_names(labels::jsonb)
from unnest($1::text[], $2::text[], $3::text[], $4::text[]) as s (metric, type, unit, labels)
order by 1
on conflict (hash) do nothing
"""

REGISTER_LAYOUTS = """
insert into layouts (hash, source, width)
select * from unnest($1::bytea[], $2::jsonb[], $3::integer[]) as l (hash, source, width)
order by hash
on conflict (hash) do nothing
returning hash, id
"""

REGISTER_LAYOUT_SERIES = """
insert into layout_series (layout_id, position, series_id)
select s.layout_id, s.position, series.id
from unnest($1::integer[], $2::integer[], $3::bytea[]) as s (layout_id, position, hash)
join series using (hash)
"""

REGISTER_LAYOUT_SHAPES = """
insert into layout_shapes (metric, layout_id, shape_id, first, length, positions)
select s.metric, s.layout_id, shapes.id, s.first, s.length, s.positions::integer[]
from unnest($1::integer[], $2::text[], $3::text[], $4::text[], $5::text[], $6::integer[],
            $7::integer[], $8::text[])
    as s (layout_id, metric, type, unit, labels, first, length, positions)
join shapes on hash = shape_hash(s.metric, s.type, s.unit, s.labels::jsonb)
"""


class Shape(NamedTuple):
    """A metric's series within a layout: their labels without the source's, and their places."""

    metric: str
    type: str
    unit: str
    labels: list[dict[str, str]]
    positions: list[int]

    def json(self) -> str:
        """The labels as the text of a jsonb."""
        return json.dumps(self.labels, separators=(",", ":"))

    def scattered(self) -> str | None:
        """The positions as the text of an array; None where they follow one another."""
        if self.positions[-1] - self.positions[0] < len(self.positions):
            return None
        return f"{{{','.join(map(str, self.positions))}}}"


def shapes_of(layout: Layout) -> list[Shape]:
    """The layout's metrics, in the order in which it first names them. Positions count from 1."""
    shapes: dict[str, Shape] = {}
    for position, one in enumerate(layout.series, 1):
        shape = shapes.get(one.name)
        if shape is None:
            shape = shapes[one.name] = Shape(one.name, one.type, one.unit, [], [])
        own = {name: value for name, value in one.labels.items() if name not in layout.source}
        shape.labels.append(own)
        shape.positions.append(position)
    return list(shapes.values())


async def register(connection: Connection, layouts: Sequence[Layout]) -> None:
    """Gives every layout its id; the same one, whichever worker sees it first."""
    await _recall(connection, layouts)
    for some in _portions([one for one in layouts if one.id is None]):
        async with connection.transaction():
            await _register(connection, some)
        await _recall(connection, some)


async def _recall(connection: Connection, layouts: Sequence[Layout]) -> None:
    rows = await connection.fetch(KNOWN, [one.hash for one in layouts])
    found = {row["hash"]: row["id"] for row in rows}
    for one in layouts:
        one.id = found.get(one.hash)


def _portions(layouts: Sequence[Layout]) -> Iterator[list[Layout]]:
    portion: list[Layout] = []
    size = 0
    for one in layouts:
        if portion and size + one.width > MAX_SERIES_AT_ONCE:
            yield portion
            portion, size = [], 0
        portion.append(one)
        size += one.width
    if portion:
        yield portion


async def _register(connection: Connection, layouts: Sequence[Layout]) -> None:
    full = {one.hash: [_identified(one, series) for series in one.series] for one in layouts}
    shapes = {one.hash: shapes_of(one) for one in layouts}
    every = [pair for pairs in full.values() for pair in pairs]
    series = [series for one in layouts for series in one.series]
    await connection.execute(
        REGISTER_SERIES,
        [identity for identity, _ in every],
        [one.name for one in series],
        [labels for _, labels in every],
        [one.type for one in series],
        [one.unit for one in series],
    )
    some = [shape for of_layout in shapes.values() for shape in of_layout]
    await connection.execute(
        REGISTER_SHAPES,
        [one.metric for one in some],
        [one.type for one in some],
        [one.unit for one in some],
        [one.json() for one in some],
    )
    created = await connection.fetch(
        REGISTER_LAYOUTS,
        [one.hash for one in layouts],
        [dict(one.source) for one in layouts],
        [one.width for one in layouts],
    )
    ids = {row["hash"]: row["id"] for row in created}  # without those that another worker made
    places = [
        (layout_id, position, identity)
        for key, layout_id in ids.items()
        for position, (identity, _) in enumerate(full[key], 1)
    ]
    await connection.execute(
        REGISTER_LAYOUT_SERIES,
        [layout_id for layout_id, _, _ in places],
        [position for _, position, _ in places],
        [identity for _, _, identity in places],
    )
    owned = [(layout_id, shape) for key, layout_id in ids.items() for shape in shapes[key]]
    await connection.execute(
        REGISTER_LAYOUT_SHAPES,
        [layout_id for layout_id, _ in owned],
        [one.metric for _, one in owned],
        [one.type for _, one in owned],
        [one.unit for _, one in owned],
        [one.json() for _, one in owned],
        [one.positions[0] for _, one in owned],
        [len(one.positions) for _, one in owned],
        [one.scattered() for _, one in owned],
    )


def _identified(layout: Layout, series: Series) -> tuple[bytes, dict[str, str]]:
    """A series' hash, and all its labels."""
    labels = {**series.labels, **layout.source}
    return series_hash(series.name, labels), labels
