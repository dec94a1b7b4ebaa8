"""Registration: a layout's series, and what matchers find them by, written once for ever."""

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import msgspec

from schemas.layouts import series_hash
from services.database import Connection
from services.ingest.batch import Layout

MAX_SERIES_AT_ONCE = 50_000
"""Series of one transaction, which holds all of them in memory; a wider layout stands alone."""

KNOWN = "select hash, id from layouts where hash = any($1::bytea[])"

REGISTERING = """
create temporary table if not exists registering
    (layout integer not null, position integer not null, hash bytea not null, metric text not null,
     labels text not null, type text not null, unit text not null)
    on commit delete rows
"""

# Each table in the order of its hashes, and the tables in one order: workers that register the same
# at once wait for one another, and never deadlock.
REGISTER_SERIES = """
insert into series (hash, metric, labels, type, unit)
select distinct on (hash) hash, metric, labels::jsonb, type, unit from registering
order by hash
on conflict (hash) do nothing
"""

SHAPES = """
select place, metric, type, unit, labels::jsonb as labels,
       shape_hash(metric, type, unit, labels::jsonb) as hash
from unnest($1::text[], $2::text[], $3::text[], $4::text[])
    with ordinality as s (metric, type, unit, labels, place)
"""

REGISTER_SHAPES = f"""
insert into shapes (hash, metric, type, unit, labels, names)
select distinct on (hash) hash, metric, type, unit, labels, label_names(labels)
from ({SHAPES}) s order by hash
on conflict (hash) do nothing
"""

SHAPE_IDS = f"select shapes.id from ({SHAPES}) s join shapes using (hash) order by place"

REGISTER_LAYOUTS = """
insert into layouts (hash, source, width)
select * from unnest($1::bytea[], $2::jsonb[], $3::integer[]) as l (hash, source, width)
order by hash
on conflict (hash) do nothing
returning hash, id
"""

REGISTER_LAYOUT_SERIES = """
insert into layout_series (layout_id, position, series_id)
select made.id, r.position, series.id
from registering r join unnest($1::integer[], $2::integer[]) as made (layout, id) using (layout)
join series using (hash)
"""

REGISTER_LAYOUT_SHAPES = """
insert into layout_shapes (layout_id, metric, shape_id, first, length, positions)
select layout_id, metric, shape_id, first, length, positions::integer[]
from unnest($1::integer[], $2::text[], $3::integer[], $4::integer[], $5::integer[], $6::text[])
    as s (layout_id, metric, shape_id, first, length, positions)
"""


Identity = tuple[str, str, str, str]
"""What shapes of layouts share: metric, type, unit, and the labels as the text of a jsonb."""


class Shape(NamedTuple):
    """A metric's series within a layout: their labels without the source's, and their places."""

    metric: str
    type: str
    unit: str
    labels: list[dict[str, str]]
    positions: list[int]

    @property
    def identity(self) -> Identity:
        """It, anew with each call."""
        return self.metric, self.type, self.unit, msgspec.json.encode(self.labels).decode()

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
    await connection.execute(REGISTERING)
    await connection.copy_records_to_table(
        "registering", records=[row for n, one in enumerate(layouts) for row in _rows(n, one)]
    )
    await connection.execute(REGISTER_SERIES)
    shapes = {one.hash: [(shape, shape.identity) for shape in shapes_of(one)] for one in layouts}
    ids_of_shapes = await _register_shapes(
        connection, {identity for some in shapes.values() for _, identity in some}
    )
    created = await connection.fetch(
        REGISTER_LAYOUTS,
        [one.hash for one in layouts],
        [dict(one.source) for one in layouts],
        [one.width for one in layouts],
    )
    ids = {row["hash"]: row["id"] for row in created}  # without those that another worker made
    made = [(n, ids[one.hash]) for n, one in enumerate(layouts) if one.hash in ids]
    await connection.execute(
        REGISTER_LAYOUT_SERIES, [n for n, _ in made], [layout_id for _, layout_id in made]
    )
    owned = [
        (layout_id, shape, ids_of_shapes[identity])
        for key, layout_id in ids.items()
        for shape, identity in shapes[key]
    ]
    await connection.execute(
        REGISTER_LAYOUT_SHAPES,
        [layout_id for layout_id, _, _ in owned],
        [one.metric for _, one, _ in owned],
        [shape_id for _, _, shape_id in owned],
        [one.positions[0] for _, one, _ in owned],
        [len(one.positions) for _, one, _ in owned],
        [one.scattered() for _, one, _ in owned],
    )


def _rows(number: int, layout: Layout) -> Iterator[tuple[int, int, bytes, str, str, str, str]]:
    """What the table `registering` holds of a layout."""
    for position, one in enumerate(layout.series, 1):
        labels = {**one.labels, **layout.source}
        identity = series_hash(one.name, labels)
        text = msgspec.json.encode(labels).decode()
        yield number, position, identity, one.name, text, one.type, one.unit


async def _register_shapes(
    connection: Connection, shapes: Collection[Identity]
) -> dict[Identity, int]:
    """The ids of these shapes, each given once: many layouts share them."""
    order = list(shapes)
    columns = [list(column) for column in zip(*order, strict=True)]
    await connection.execute(REGISTER_SHAPES, *columns)
    rows = await connection.fetch(SHAPE_IDS, *columns)
    return {shape: row["id"] for shape, row in zip(order, rows, strict=True)}
