"""Reading what is stored: blocks of series by matchers and range, from head and sealed history.

The port between stores and the expression engine is `engine.promql.blocks.Block`; this is the
database's side of it. Nothing here makes an object per sample.
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from asyncpg import Record

from engine.promql.blocks import Block, Indexes
from engine.promql.errors import QueryError
from engine.promql.matchers import Matcher
from services import clock
from services.database import Connection, Pool
from services.frame_pieces import (
    History,
    Piece,
    SealedHour,
    SealedSpan,
    Span,
    block,
    head_piece,
    joined,
    sealed_pieces,
    spans,
)
from services.series_lookup import Catalogue, Selected


class Limits(NamedTuple):
    """Past these an expression is refused: series of one selector, and values (8 bytes each) that
    a query reads in all, which bound its memory."""

    series: int = 50_000
    cells: int = 100_000_000


DEFAULT_LIMITS = Limits()

INLINE_CELLS = 20_000
"""Up to here blocks are put together on the event loop: less work than the way to a thread."""

ASSUMED_ROWS_PER_S = 1.0
"""Where a selector may read too much even at this rate, its rows are counted first."""

_LAST_US = clock.microseconds(datetime(9999, 1, 1, tzinfo=UTC))

# What to do is known: few keys, looked up in indexes. A plan made from statistics, which a new
# partition lacks, may read all of it; and planning takes longer than reading.
BEGIN = """
begin isolation level repeatable read, read only;
set local plan_cache_mode = force_generic_plan;
set local enable_seqscan = off;
set local enable_hashjoin = off;
set local enable_mergejoin = off;
"""

# Frames of recent hours as they are: a row is ten minutes of a layout, instants and arrays in
# sequence, so that neither side makes an object per frame. The order is mended by the reader.
# Sealed blocks: of each hour the groups of columns that are wanted.
# One statement, so that a reader never sees frames that are being sealed twice, or not at all.
SAMPLES = """
select place, null::timestamptz as start, count(*)::integer as rows, null::integer as span,
       string_agg(timestamptz_send(at), '') as at,
       string_agg(array_send(values[lower:upper]), '') as data,
       null::integer as before, null::integer[] as ends
from unnest($3::integer[], $4::integer[], $5::integer[], $6::integer[])
    as wanted (place, layout_id, lower, upper)
join frames using (layout_id)
where at > $1 and at <= $2
group by place, date_bin('10 minutes', at, '1970-01-01 UTC')
union all
select place, start, rows, span, at,
       substring(data from coalesce(ends[lower - 1], 0) + 1
                 for ends[upper] - coalesce(ends[lower - 1], 0)),
       coalesce(ends[lower - 1], 0), ends[lower:upper]
from unnest($7::integer[], $8::integer[], $9::integer[], $10::integer[], $11::integer[])
    as wanted (place, span, layout_id, lower, upper)
join blocks using (layout_id)
where start > $1 - interval '1 hour' and start < $2
"""

COUNT = """
with wanted as (select * from unnest($3::integer[], $4::integer[]) as w (layout_id, width))
select (select coalesce(sum(width), 0) from wanted join frames using (layout_id)
        where at > $1 and at <= $2)
     + (select coalesce(sum(width * rows), 0) from wanted join blocks using (layout_id)
        where start > $1 - interval '1 hour' and start < $2)
"""


class Reader:
    """Reads frames, and remembers what it learned of layouts from one query to the next."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._catalogue = Catalogue()

    @asynccontextmanager
    async def snapshot(self, limits: Limits = DEFAULT_LIMITS) -> AsyncIterator["Snapshot"]:
        """All that is read in it is of one instant, whatever is stored or sealed meanwhile."""
        async with self._pool.acquire() as connection:
            try:
                await connection.execute(BEGIN)
                yield Snapshot(connection, self._catalogue, limits)
            finally:
                if not connection.is_closed():
                    await connection.execute("rollback")


class Snapshot:
    """The database as it was at one instant. Cancelling a read cancels it on the server."""

    def __init__(self, connection: Connection, catalogue: Catalogue, limits: Limits) -> None:
        self.connection = connection
        self.catalogue = catalogue
        self._limits = limits
        self.samples = Counter[str]()
        """Values read so far, absent ones included, by where they were stored: head, sealed."""

    async def read(self, matchers: Sequence[Matcher], start_us: int, end_us: int) -> list[Block]:
        """Blocks of all series that match, with samples in start_us < at <= end_us; one per layout.

        Raises QueryError past the limits; those on cells are of all that the snapshot reads.
        """
        selected = await self.catalogue.select(self.connection, matchers, self._limits.series)
        if not selected:
            return []
        start, end = clamped(start_us), clamped(end_us)
        await self._check_size(selected, start, end)
        wanted = [_wanted(one) for one in selected]
        rows = await self.connection.fetch(SAMPLES, start, end, *_arguments(wanted))
        before = self.samples.total()
        for row in rows:
            if not row["span"]:
                tier = "head" if row["start"] is None else "sealed"
                self.samples[tier] += row["rows"] * len(selected[row["place"]].columns)
        self._check_cells(self.samples.total())

        def assemble() -> list[Block]:
            return _blocks(wanted, rows, start_us, end_us)

        small = self.samples.total() - before <= INLINE_CELLS
        return assemble() if small else await asyncio.to_thread(assemble)

    async def _check_size(
        self, selected: Sequence[Selected], start: datetime, end: datetime
    ) -> None:
        """Raises QueryError before anything is read, where that would be too much."""
        series = sum(len(one.columns) for one in selected)
        span_s = (min(end, datetime.now(UTC)) - start).total_seconds()
        if series * max(span_s, 0.0) * ASSUMED_ROWS_PER_S <= self._limits.cells:
            return
        ids = [one.layout_id for one in selected]
        widths = [len(one.columns) for one in selected]
        self._check_cells(await self.connection.fetchval(COUNT, start, end, ids, widths))

    def _check_cells(self, cells: int) -> None:
        if cells > self._limits.cells:
            raise QueryError(
                f"the query reads {cells:,} samples; at most {self._limits.cells:,}: narrow it"
            )


async def read(
    pool: Pool,
    matchers: Sequence[Matcher],
    start_us: int,
    end_us: int,
    limits: Limits = DEFAULT_LIMITS,
) -> list[Block]:
    """`Snapshot.read` by a reader that nobody asks a second time."""
    async with Reader(pool).snapshot(limits) as snapshot:
        return await snapshot.read(matchers, start_us, end_us)


def clamped(at_us: int) -> datetime:
    """The instant, or the nearest that PostgreSQL and datetime can hold."""
    return clock.instant(min(max(at_us, 0), _LAST_US))


@dataclass(slots=True)
class _Wanted:
    """What is read of one layout. lower, upper: places of the array, from 1, both included."""

    selected: Selected
    lower: int
    upper: int
    spans: list[Span]

    @property
    def columns(self) -> Indexes:
        """Which places of the slice are selected."""
        return self.selected.positions - (self.lower - 1)


def _wanted(selected: Selected) -> _Wanted:
    positions = selected.positions
    return _Wanted(selected, int(positions.min()) + 1, int(positions.max()) + 1, spans(positions))


def _arguments(wanted: Sequence[_Wanted]) -> list[list[int]]:
    """Those of SAMPLES after the range."""
    every = [
        (place, number, span)
        for place, one in enumerate(wanted)
        for number, span in enumerate(one.spans)
    ]
    return [
        list(range(len(wanted))),
        [one.selected.layout_id for one in wanted],
        [one.lower for one in wanted],
        [one.upper for one in wanted],
        [place for place, _, _ in every],
        [number for _, number, _ in every],
        [wanted[place].selected.layout_id for place, _, _ in every],
        [span.lower for _, _, span in every],
        [span.upper for _, _, span in every],
    ]


def _blocks(
    wanted: Sequence[_Wanted], rows: Sequence[Record], start_us: int, end_us: int
) -> list[Block]:
    """The rows of SAMPLES, one block per layout that has samples in start_us < at <= end_us."""
    head: defaultdict[int, list[Piece]] = defaultdict(list)
    hours: defaultdict[int, dict[datetime, SealedHour]] = defaultdict(dict)
    for row in rows:
        place = row["place"]
        one = wanted[place]
        if row["start"] is None:
            width = one.upper - one.lower + 1
            head[place].append(head_piece(row["at"], row["data"], width, one.columns))
            continue
        hour = hours[place].setdefault(row["start"], SealedHour(row["rows"], row["at"], []))
        part = SealedSpan(one.spans[row["span"]], row["data"], row["before"], row["ends"])
        hour.spans.append(part)
    histories = [
        History(
            [hour for _, hour in sorted(hours[place].items())],
            one.selected.width,
            len(one.selected.columns),
        )
        for place, one in enumerate(wanted)
    ]
    found = []
    for place, old in enumerate(sealed_pieces(histories)):
        piece = joined(old, head[place])
        made = block(wanted[place].selected.columns, piece, start_us, end_us)
        if made is not None:
            found.append(made)
    return found
