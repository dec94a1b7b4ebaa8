"""Which columns of which layouts a selector selects, found without touching every series.

Matchers are decided on metrics, sources and shapes (schemas/migrations/0005_lookup.sql). None of
these ever changes once it is registered, so a process remembers those that it has met.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, NamedTuple, TypeVar

import numpy as np
from asyncpg import Record

from engine.promql.blocks import NAME, Columns, Indexes, Labels, join_columns
from engine.promql.errors import QueryError
from engine.promql.matchers import Matcher, MatchOp, matching_columns
from services.database import Connection
from services.recent import Recent
from services.series_condition import Condition

MAX_CANDIDATES = 200_000
"""Shapes of layouts that one selector may leave to be looked at, about half a second's work; above
it the expression is refused."""

MAX_CACHED_SERIES = 100_000
"""Label sets that a process remembers, twice over: about 1 kB each with what the engine derives."""

MAX_CACHED_LAYOUTS = 100_000
"""Layouts that a process remembers, twice over: about 0.5 kB each."""

ALWAYS_OF_SOURCE = ("job", "instance")
"""Labels that no series has of its own (schemas/samples.py)."""

MAX_INLINE = 1000
"""Layouts, or shapes of them, that are worked on on the event loop: a few milliseconds."""

T = TypeVar("T")
V = TypeVar("V")


class Source(NamedTuple):
    """Of a layout: its source's labels, and how many series it has."""

    labels: Mapping[str, str]
    width: int


@dataclass(frozen=True, slots=True, eq=False)
class Selected:
    """Columns of one layout that a selector selects. `positions` count from 0, (columns,)."""

    layout_id: int
    width: int
    positions: Indexes
    columns: Columns


class Match(NamedTuple):
    """Series of one metric in one layout. `places`: which of the shape's series, ascending.

    candidate: a row of layout_shapes.
    """

    candidate: Record
    source: Source
    shape: Columns
    places: tuple[int, ...]

    def positions(self) -> Indexes:
        """Where the series stand in the layout, from 0."""
        scattered = self.candidate["positions"]
        if scattered is None:
            first: int = self.candidate["first"]
            return np.array(self.places, dtype=np.intp) + (first - 1)
        return np.array([scattered[place] - 1 for place in self.places], dtype=np.intp)

    def labels(self) -> list[Labels]:
        """The full label sets."""
        return [{**self.shape[place], **self.source.labels} for place in self.places]


SOURCES = "select id, source, width from layouts where id = any($1::integer[])"
SHAPES = "select id, metric, labels from shapes where id = any($1::integer[])"
LAYOUT_IDS = "select id from layouts"

# Each step jumps to the next metric in the index.
METRICS = """
with recursive found (metric) as (
    (select metric from layout_shapes order by metric limit 1)
    union all
    select (select metric from layout_shapes where metric > found.metric order by metric limit 1)
    from found where found.metric is not null)
select metric from found where metric is not null
"""


async def metrics(connection: Connection) -> list[str]:
    """Names of all metrics, sorted as the database sorts them."""
    return [row["metric"] for row in await connection.fetch(METRICS)]


@dataclass(slots=True)
class Catalogue:
    """Finds series, and remembers sources, shapes and label sets from one query to the next."""

    _sources: Recent[int, Source] = field(default_factory=lambda: Recent(MAX_CACHED_LAYOUTS))
    _shapes: Recent[int, Columns] = field(default_factory=lambda: Recent(MAX_CACHED_SERIES))
    _columns: Recent[tuple[int, int, tuple[int, ...]], Columns] = field(
        default_factory=lambda: Recent(MAX_CACHED_SERIES)
    )
    _selections: Recent[tuple[Any, ...], tuple[list[Selected], int]] = field(
        default_factory=lambda: Recent(MAX_CACHED_SERIES)
    )
    """What matchers selected of candidates, and how many series: a dashboard asks the same again
    and again."""

    async def select(
        self, connection: Connection, matchers: Sequence[Matcher], max_series: int
    ) -> list[Selected]:
        """What the matchers select, one per layout. Raises QueryError past `max_series`."""
        candidates = await self._candidates(connection, matchers, max_series)
        if len(candidates) > MAX_INLINE:
            return await self._select(connection, matchers, candidates, max_series)
        key = (tuple(matchers), *((one["layout_id"], one["shape_id"]) for one in candidates))
        known = self._selections.get(key, itemgetter(1))
        if known is None:
            selected = await self._select(connection, matchers, candidates, max_series)
            known = selected, sum(len(one.columns) for one in selected)
            self._selections.put(key, known, len(key) + known[1])
        _check(known[1], max_series)
        return known[0]

    async def _select(
        self,
        connection: Connection,
        matchers: Sequence[Matcher],
        candidates: Sequence[Record],
        max_series: int,
    ) -> list[Selected]:
        found = await self._matched(connection, matchers, candidates, max_series)
        return await aside(len(found), lambda: self._selected(found, max_series))

    async def matches(
        self, connection: Connection, matchers: Sequence[Matcher], max_series: int | None = None
    ) -> list[Match]:
        """What the matchers select, one per layout and metric; its cost is not that of its series.

        Raises QueryError early where it can be told that there are more than `max_series`.
        """
        candidates = await self._candidates(connection, matchers, max_series)
        return await self._matched(connection, matchers, candidates, max_series)

    async def _matched(
        self,
        connection: Connection,
        matchers: Sequence[Matcher],
        candidates: Sequence[Record],
        max_series: int | None,
    ) -> list[Match]:
        if not candidates:
            return []
        sources = await self._recall(
            connection, self._sources, SOURCES, {one["layout_id"] for one in candidates}, _source
        )
        sources = {
            layout_id: one for layout_id, one in sources.items() if _of_source(matchers, one.labels)
        }
        left = [one for one in candidates if one["layout_id"] in sources]
        if max_series is not None and _all_selected(matchers):
            _check(sum(one["length"] for one in left), max_series)
        shapes = await self._recall(
            connection, self._shapes, SHAPES, {one["shape_id"] for one in left}, _shape
        )
        left = [one for one in left if one["shape_id"] in shapes]  # not collected meanwhile
        return await aside(len(left), lambda: _decided(matchers, left, sources, shapes))

    async def _candidates(
        self, connection: Connection, matchers: Sequence[Matcher], max_series: int | None
    ) -> list[Record]:
        condition = Condition()
        by_name = [one for one in matchers if one.name == NAME]
        equal = [one for one in by_name if one.op is MatchOp.EQUAL]
        if by_name:
            names = [equal[0].value] if equal else await metrics(connection)
            condition.metric_in([n for n in names if all(one.accepts(n) for one in by_name)])
        condition.of_source({one.name: one.value for one in matchers if _is_of_source(one)})
        if not condition.narrow:
            condition.of_either([one for one in matchers if one.op is MatchOp.EQUAL and one.value])
        if not condition.narrow:
            condition.layout_in(await self._layouts(connection, matchers))
        exact = max_series is not None and all(
            one.name == NAME or _is_of_source(one) for one in matchers
        )
        most = min(MAX_CANDIDATES, max_series) if max_series and exact else MAX_CANDIDATES
        rows = await connection.fetch(condition.statement(most + 1), *condition.arguments)
        if len(rows) > most and exact:
            raise QueryError(f"the query selects more than {max_series} series")
        if len(rows) > MAX_CANDIDATES:
            raise QueryError(
                "the selector leaves too many series to look at: name a metric, or an instance"
            )
        return rows

    async def _layouts(self, connection: Connection, matchers: Sequence[Matcher]) -> list[int]:
        """Layouts whose source does not rule the matchers out, out of all that there are."""
        ids = {row["id"] for row in await connection.fetch(LAYOUT_IDS)}
        sources = await self._recall(connection, self._sources, SOURCES, ids, _source)
        return [one for one, source in sources.items() if _of_source(matchers, source.labels)]

    async def _recall(
        self,
        connection: Connection,
        known: Recent[int, V],
        statement: str,
        ids: Iterable[int],
        make: Callable[[Record], V],
    ) -> dict[int, V]:
        """By id what is remembered, or else read."""
        found, missing = {}, []
        for one in ids:
            value = known.get(one, _weight)
            if value is None:
                missing.append(one)
            else:
                found[one] = value
        if missing:
            for row in await connection.fetch(statement, missing):
                value = found[row["id"]] = make(row)
                known.put(row["id"], value, _weight(value))
        return found

    def _selected(self, found: Sequence[Match], max_series: int) -> list[Selected]:
        _check(sum(len(one.places) for one in found), max_series)
        parts: dict[int, list[Match]] = {}
        for one in found:
            parts.setdefault(one.candidate["layout_id"], []).append(one)
        return [
            Selected(
                layout_id,
                some[0].source.width,
                np.concatenate([one.positions() for one in some]),
                join_columns([self._labelled(one) for one in some]),
            )
            for layout_id, some in parts.items()
        ]

    def _labelled(self, one: Match) -> Columns:
        key = (one.candidate["layout_id"], one.candidate["shape_id"], one.places)
        known = self._columns.get(key, len)
        if known is None:
            known = Columns(one.labels())
            self._columns.put(key, known, len(known))
        return known


def _weight(value: Any) -> int:
    return len(value) if isinstance(value, Columns) else 1


def _source(row: Record) -> Source:
    return Source(row["source"], row["width"])


def _shape(row: Record) -> Columns:
    return Columns([{NAME: row["metric"], **labels} for labels in row["labels"]])


def _is_of_source(matcher: Matcher) -> bool:
    """Whether it is for the source alone to be equal: one that lacks the label has it nowhere."""
    is_equal = matcher.op is MatchOp.EQUAL and bool(matcher.value)
    return is_equal and matcher.name in ALWAYS_OF_SOURCE


def _of_source(matchers: Sequence[Matcher], source: Mapping[str, str]) -> bool:
    """Whether the matchers of the source's labels accept them."""
    return all(one.accepts(source[one.name]) for one in matchers if one.name in source)


def _check(count: int, max_series: int) -> None:
    if count > max_series:
        raise QueryError(f"the query selects {count} series; at most {max_series}")


def _all_selected(matchers: Sequence[Matcher]) -> bool:
    """Whether every series of a candidate is selected, if its source is."""
    return {one.name for one in matchers} <= {NAME, *ALWAYS_OF_SOURCE}


def _decided(
    matchers: Sequence[Matcher],
    candidates: Sequence[Record],
    sources: Mapping[int, Source],
    shapes: Mapping[int, Columns],
) -> list[Match]:
    names = {matcher.name for matcher in matchers}
    asked: dict[frozenset[str], tuple[Matcher, ...]] = {}
    left = {}  # what is to be asked of a layout's shapes
    for layout_id, source in sources.items():
        key = frozenset(names.intersection(source.labels))
        if key not in asked:
            asked[key] = tuple(matcher for matcher in matchers if matcher.name not in key)
        left[layout_id] = asked[key]
    decided: dict[tuple[int, int], tuple[int, ...]] = {}
    found = []
    for one in candidates:
        layout_id, shape_id = one["layout_id"], one["shape_id"]
        own, shape = left[layout_id], shapes[shape_id]
        places = decided.get((id(own), shape_id))
        if places is None:
            places = decided[id(own), shape_id] = matching_columns(own, shape)
        if places:
            found.append(Match(one, sources[layout_id], shape, places))
    return found


async def aside(size: int, work: Callable[[], T]) -> T:
    """The result of `work`: in a thread where it would keep the event loop from others."""
    return work() if size <= MAX_INLINE else await asyncio.to_thread(work)
