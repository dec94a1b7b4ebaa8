"""Which series, label names and label values there are, from what matchers are decided on."""

from collections.abc import Iterable, Sequence

from engine.promql.blocks import NAME, Labels
from engine.promql.errors import QueryError
from engine.promql.matchers import Matcher
from services.clock import clamped
from services.database import Connection
from services.series_lookup import Catalogue, Match, aside, metrics

EVER = (0, 2**62)

Range = tuple[int | None, int | None]
"""First and last instant, µs, both included; None: no bound."""

# A layout counts as a whole: whether it has a frame in the range, at whatever age.
ACTIVE = """
select id from unnest($1::integer[]) as wanted (id)
where exists (select from frames where layout_id = id and at between $2 and $3)
   or exists (select from blocks where layout_id = id
              and start between $2 - interval '1 hour' and $3)
   or exists (select from rollups_1h where layout_id = id
              and start between $2 - interval '1 day' and $3)
"""

NAMES_OF_SOURCES = "select distinct jsonb_object_keys(source) as name from layouts"
NAMES_OF_SHAPES = "select distinct unnest(names) as name from shapes"
VALUES_OF_SOURCES = "select distinct source->>$1 as value from layouts where source ? $1"
VALUES_OF_SHAPES = """
select distinct one->>$1 as value from shapes, jsonb_array_elements(labels) as one
where $1 = any(names) and one ? $1
"""


async def series(
    connection: Connection,
    catalogue: Catalogue,
    matchers: Sequence[Matcher],
    range_us: Range,
    max_series: int,
) -> list[Labels]:
    """Label sets of the series that match, of layouts with frames in the range.

    Raises QueryError past `max_series`.
    """
    found = await _matches(connection, catalogue, matchers, range_us, max_series)
    count = _size(found)
    if count > max_series:
        raise QueryError(f"{count} series match; at most {max_series}")
    return await aside(count, lambda: [labels for one in found for labels in one.labels()])


async def names(
    connection: Connection,
    catalogue: Catalogue,
    matchers: Sequence[Matcher],
    range_us: Range,
) -> set[str]:
    """Names of the labels that series that match have. Without matchers the range is not heeded."""
    if not matchers:
        statements = (NAMES_OF_SOURCES, NAMES_OF_SHAPES)
        rows = [row for one in statements for row in await connection.fetch(one)]
        return {NAME, *(row["name"] for row in rows)} if rows else set()
    found = await _matches(connection, catalogue, matchers, range_us, None)
    return await aside(
        _size(found), lambda: {name for labels in _label_sets(found) for name in labels}
    )


async def values(
    connection: Connection,
    catalogue: Catalogue,
    name: str,
    matchers: Sequence[Matcher],
    range_us: Range,
) -> set[str]:
    """Values of a label among series that match. Without matchers the range is not heeded."""
    if not matchers:
        if name == NAME:
            return set(await metrics(connection))
        statements = (VALUES_OF_SOURCES, VALUES_OF_SHAPES)
        rows = [row for one in statements for row in await connection.fetch(one, name)]
        return await aside(len(rows), lambda: {row["value"] for row in rows})
    found = await _matches(connection, catalogue, matchers, range_us, None)
    return await aside(
        _size(found),
        lambda: {labels[name] for labels in _label_sets(found) if name in labels},
    )


def _size(found: Iterable[Match]) -> int:
    return sum(len(one.places) for one in found)


def _label_sets(found: Iterable[Match]) -> Iterable[Labels]:
    """Those of sources, and series' own; each once, as hosts that expose the same share them."""
    yield from {one.candidate["layout_id"]: one.source.labels for one in found}.values()
    for shape, places in {(one.shape, one.places) for one in found}:
        yield from (shape[place] for place in places)


async def _matches(
    connection: Connection,
    catalogue: Catalogue,
    matchers: Sequence[Matcher],
    range_us: Range,
    max_series: int | None,
) -> list[Match]:
    found = await catalogue.matches(connection, matchers, max_series)
    if range_us == (None, None) or not found:
        return found
    start, end = (
        clamped(bound if one is None else one) for one, bound in zip(range_us, EVER, strict=True)
    )
    ids = {one.candidate["layout_id"] for one in found}
    active = {row["id"] for row in await connection.fetch(ACTIVE, list(ids), start, end)}
    return [one for one in found if one.candidate["layout_id"] in active]
