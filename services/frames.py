"""Reading what is stored: blocks of series by matchers and range, from head and sealed history.

The port between stores and the expression engine is `engine.promql.blocks.Block`; this is the
database's side of it. Nothing here makes an object per sample.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np
from asyncpg import Record

from engine.promql.blocks import NO_COLUMNS, Block
from engine.promql.errors import QueryError
from engine.promql.matchers import Matcher
from engine.promql.reading import Select
from engine.promql.rollups import LASTS
from services import clock, rollup_reading
from services.database import Connection, Pool
from services.frame_pieces import Piece, block, joined
from services.rollup_pieces import FINE, numbers, points_of
from services.rollup_reading import (
    Floors,
    Part,
    floors_of,
    parts_of,
    read_floors,
    sealed_until,
)
from services.sample_reading import (
    COUNT,
    PLACES,
    SAMPLES,
    Known,
    Reading,
    Wanted,
    arguments_of,
    wanted_of,
)
from services.selections import Matchers, Selection, Selections
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

WORTH_ROLLUPS_US = 6 * 3_600_000_000
"""A range that is shorter is read from its samples, which takes a statement less."""

PLANS = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_material": "off",
}
"""Settings for a pool's connections that are read through. What to do is known: few keys, looked up
in indexes. A plan made from statistics, which a new partition lacks, may read all of it; and
planning takes longer than reading."""

BEGIN = "begin isolation level repeatable read, read only"


class Reader:
    """Reads frames, and remembers what it learned of layouts from one query to the next."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.catalogue = Catalogue()
        self.selections = Selections()
        self.known = Known()
        self.floors: Floors | None = None
        """What had been dropped when it was last seen."""

    @asynccontextmanager
    async def snapshot(
        self, limits: Limits = DEFAULT_LIMITS, *, alone: bool = False
    ) -> AsyncIterator["Snapshot"]:
        """All that is read in it is of one instant, whatever is stored or sealed meanwhile.

        alone: there is one read only, which needs no transaction to be that.
        """
        async with self._pool.acquire() as connection:
            snapshot = Snapshot(connection, self, limits)
            try:
                if not alone:
                    await snapshot.begin()
                yield snapshot
            finally:
                if snapshot.begun and not connection.is_closed():
                    await connection.execute("rollback")


class Snapshot:
    """The database as it was at one instant. Cancelling a read cancels it on the server."""

    def __init__(self, connection: Connection, reader: Reader, limits: Limits) -> None:
        self.connection = connection
        self.catalogue = reader.catalogue
        self._reader = reader
        self._floors_seen: Floors | None = None
        self._registered_seen: bytes | None = None
        self.begun = False
        self._limits = limits
        self.samples = Counter[str]()
        """Values read so far, absent ones included, by where they were stored: head, sealed,
        rollups_5m, rollups_1h."""
        self.notes: dict[str, None] = {}
        """What the reader of an answer should know, in the order in which it was found."""
        self._selections: dict[Matchers, Selection] = {}
        """What is selected, for certain."""
        self._pieces: dict[tuple[Matchers, int, int], list[Piece]] = {}
        """What was read, for other functions of the same samples."""

    async def begin(self) -> None:
        """From here on nothing changes. Does nothing where it was done."""
        if not self.begun:
            self.begun = True
            await self.connection.execute(BEGIN)

    async def lacks(self, start_us: int) -> bool:
        """Whether samples after an instant were dropped, so that rollups stand in for them."""
        return start_us < (await self._floors(start_us)).raw_us

    async def prepare(self) -> None:
        """Has the server plan the statement that reads samples, which takes ten times as long as to
        answer it, before anybody waits for that."""
        nothing = [wanted_of(Selected(0, 1, np.zeros(1, np.intp), NO_COLUMNS))]
        selection = Selection(nothing, arguments_of(nothing), 0, None)
        await self._samples(selection, Reading(nothing, 0, 1, self._reader.known), 0, 1)

    async def read_select(self, select: Select) -> list[Block]:
        """`read` of what a query selects."""
        return await self.read(
            select.matchers,
            select.start_us,
            select.end_us,
            select.column,
            select.window_us,
            select.grid_us,
        )

    async def read(
        self,
        matchers: Sequence[Matcher],
        start_us: int,
        end_us: int,
        column: str = LASTS,
        window_us: int = 0,
        grid_us: int = 0,
    ) -> list[Block]:
        """Blocks of all series that match, with samples in start_us < at <= end_us; one per layout.

        Where samples were dropped, rollups stand in for them: what a function needs of `column`
        (engine/promql/rollups.py) in windows of `window_us`. They do as well where there are
        samples, if these are many and windows keep to a `grid_us` of buckets. Raises QueryError
        past the limits; those on cells are of all that the snapshot reads.
        """
        matchers = tuple(matchers)
        assumed = floors = await self._floors(start_us)
        worth_rollups = end_us - start_us >= WORTH_ROLLUPS_US
        on_grid = bool(grid_us) and grid_us % FINE.bucket_us == 0 and worth_rollups
        checked = not on_grid and not parts_of(floors, start_us, end_us)
        selection = await self._selection(matchers, checked=checked)
        wanted = selection.wanted
        if not wanted:
            return []
        before = self.samples.total()
        if on_grid:
            await self.begin()
            until_us = await sealed_until(self.connection, wanted, start_us, end_us)
            floors = floors._replace(raw_us=max(floors.raw_us, until_us))
        parts = parts_of(floors, start_us, end_us)
        if parts:
            await self.begin()
        key = (matchers, max(start_us, floors.raw_us), end_us)
        reading = Reading(wanted, *key[1:], self._reader.known)
        if key not in self._pieces:
            reading.rows = await self._samples(selection, reading, *key[1:])
        dropped = self._floors_seen not in (None, assumed) and start_us < self._floors_seen.raw_us
        if dropped or not await self._still_selected(matchers, selection):
            # Something was dropped, or registered, since a reader last looked.
            return await self.read(matchers, start_us, end_us, column, window_us, grid_us)
        self._count(reading.rows, wanted)
        old = [(part, await self._rollups(part, column, window_us, wanted)) for part in parts]

        def assemble() -> list[Block]:
            stand_ins = rollup_reading.pieces_of(old, column, window_us, wanted)
            if key not in self._pieces:
                self._pieces[key] = reading.pieces()
            found = []
            for place, piece in enumerate(self._pieces[key]):
                if column == "counts":
                    piece = Piece(piece.at, numbers(piece.values))
                if place in stand_ins:
                    piece = joined(stand_ins[place], [piece])
                found.append(block(wanted[place].selected.columns, piece, start_us, end_us))
            return [one for one in found if one is not None]

        small = self.samples.total() - before <= INLINE_CELLS
        return assemble() if small else await asyncio.to_thread(assemble)

    async def _selection(self, matchers: Matchers, *, checked: bool) -> Selection:
        """What matchers select. checked: whether the samples are read then, which tells if what is
        remembered is out of date."""
        found = self._selections.get(matchers)
        if found is None and checked:
            found = self._reader.selections.known(matchers, self._limits.series)
        if found is None:
            found = self._selections[matchers] = await self._reader.selections.select(
                self.connection, self.catalogue, matchers, self._limits.series
            )
        return found

    async def _still_selected(self, matchers: Matchers, selection: Selection) -> bool:
        """Whether what was remembered is so in this snapshot."""
        if matchers in self._selections:
            return True
        if selection.registered == self._registered_seen:
            self._selections[matchers] = selection
            return True
        return (await self._selection(matchers, checked=False)).same_as(selection)

    async def _samples(
        self, selection: Selection, reading: Reading, start_us: int, end_us: int
    ) -> list[Record]:
        if start_us >= end_us:
            return []
        start, end = clock.clamped(start_us), clock.clamped(end_us)
        await self._check_size(selection, start, end)
        arguments = *selection.arguments, reading.versions(selection.arguments[PLACES])
        rows: list[Record] = await self.connection.fetch(SAMPLES, start, end, *arguments)
        floors = {}
        for row in rows:
            if row["place"] < 0 and row["start"] is None:
                self._registered_seen = self._reader.selections.registered = row["at"]
            elif row["place"] < 0:
                floors[row["at"].decode()] = clock.microseconds(row["start"])
        self._reader.floors = self._floors_seen = floors_of(floors)
        return [row for row in rows if row["place"] >= 0]

    def _count(self, rows: Sequence[Record], wanted: Sequence[Wanted]) -> None:
        for row in rows:
            if not row["span"]:
                tier = "head" if row["span"] is None else "sealed"
                self.samples[tier] += row["rows"] * len(wanted[row["place"]].selected.columns)
        self._check_cells(self.samples.total())

    async def _rollups(
        self, part: Part, column: str, window_us: int, wanted: Sequence[Wanted]
    ) -> list[Record]:
        points = part.tier.buckets * points_of(part.tier, column, window_us)
        series = sum(len(one.selected.columns) for one in wanted)
        span_us = min(part.end_us, clock.now_us()) - part.start_us
        if series * span_us // part.tier.row_us * points > self._limits.cells:
            count = await rollup_reading.count_series(self.connection, part, wanted)
            self._check_cells(self.samples.total() + count * points)
        rows = await rollup_reading.read_rows(self.connection, part, column, wanted)
        for row in rows:
            self.samples[f"rollups_{part.tier.name}"] += points * len(
                wanted[row["place"]].selected.columns
            )
        self._check_cells(self.samples.total())
        dropped = self._floors_seen or self._reader.floors or Floors()
        if rows and part.start_us < dropped.raw_us:
            before_us = dropped.raw_us if part.tier is FINE else dropped.fine_us
            said = f"{part.tier.name} before {clock.rfc3339(before_us)}"
            self.notes[f"answered from rollups of {said}"] = None
        return rows

    async def _floors(self, start_us: int) -> Floors:
        """What was dropped; today's samples never are."""
        if start_us >= clock.now_us() // clock.DAY_US * clock.DAY_US:
            return Floors()
        if self._reader.floors is None:
            self._reader.floors = await read_floors(self.connection)
        return self._floors_seen or self._reader.floors

    async def _check_size(self, selection: Selection, start: datetime, end: datetime) -> None:
        """Raises QueryError before anything is read, where that would be too much."""
        span_s = (min(end, datetime.now(UTC)) - start).total_seconds()
        if selection.series * max(span_s, 0.0) * ASSUMED_ROWS_PER_S <= self._limits.cells:
            return
        ids = [one.selected.layout_id for one in selection.wanted]
        widths = [len(one.selected.columns) for one in selection.wanted]
        self._check_cells(await self.connection.fetchval(COUNT, start, end, ids, widths))

    def _check_cells(self, cells: int) -> None:
        if cells > self._limits.cells:
            raise QueryError(
                f"the query reads {cells:,} samples; at most {self._limits.cells:,}: narrow it"
            )
