"""The daily rollups: a layout's closed day in buckets of an hour, from its buckets of 5 minutes.

Sealing marks the days of which it changes an hour (`days_due`). A mark goes in the transaction that
computes its day, from all of the day's hours as they are then: in whatever order they were sealed,
and however often, the last mark leaves the row that a single pass would have made.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta
from typing import Any

import numpy as np

from services.clock import EPOCH, instant, microseconds
from services.database import Connection, Pool
from services.failpoints import failpoint
from services.ingest.hours import Key, decode_days, encode_rollups
from services.ingest.jobs import Progress
from services.ingest.rollups import BUCKETS, HOURS, Rollup, of_days
from services.ingest.sealing import (
    CELLS_PER_BATCH,
    PLAN,
    SEAL_AFTER,
    ensure_partitions,
    lock_history,
)

DAY_AFTER = SEAL_AFTER + timedelta(hours=1)
"""How long after its end a day is computed: when its last hour has been sealed, as a rule."""

DAY = timedelta(days=1)

MARKS_PER_PAGE = 2_000
"""Marks that are read at once."""

MARKS = """
select due.start, layout_id, width from days_due due join layouts on layouts.id = layout_id
where due.start <= $1 and (due.start, layout_id) > ($2, $3)
order by due.start, layout_id limit $4
"""

DELETE_MARKS = """
delete from days_due due using unnest($1::int[], $2::timestamptz[]) as day (layout_id, start)
where due.layout_id = day.layout_id and due.start = day.start
"""

SERIES_AT_ONCE = 2_000
"""Series of a day that are computed at once. A day of 20,000 takes 200 MB so, and 860 MB whole;
each part costs reading the rows once more."""

HOURS_OF_DAYS = f"""
select layout_id, r.start, {", ".join(f"{name}[$5:$6]" for name in Rollup._fields)}
from unnest($1::int[], $2::timestamptz[]) as day (id, start)
join rollups_5m r on r.layout_id = day.id
                 and r.start >= day.start and r.start < day.start + interval '1 day'
where r.start >= $3 and r.start < $4
"""

DELETE_DAYS = """
delete from rollups_1h r using unnest($1::int[], $2::timestamptz[]) as day (layout_id, start)
where r.layout_id = day.layout_id and r.start = day.start and r.start >= $3 and r.start < $4
"""


async def roll_up_days(pool: Pool, now: datetime, progress: Progress) -> timedelta:
    """The job: computes the closed days that are marked; nothing is left when it returns."""
    done = 0
    async for width, days in _batches(pool, now - DAY_AFTER - DAY):
        progress(f"{done} days of layouts rolled up", now - instant(days[0][1]))
        await _roll_up(pool, width, days)
        done += len(days)
    progress(f"{done} days of layouts rolled up")
    return timedelta(0)


async def _batches(pool: Pool, until: datetime) -> AsyncIterator[tuple[int, list[Key]]]:
    """Marked days of layouts of one width, as many as one transaction can take; oldest first."""
    last = (EPOCH, 0)
    while page := await pool.fetch(MARKS, until, *last, MARKS_PER_PAGE):
        by_width: defaultdict[int, list[Key]] = defaultdict(list)
        for start, layout_id, width in page:
            by_width[width].append((layout_id, microseconds(start)))
        for width, days in by_width.items():
            size = max(1, CELLS_PER_BATCH // (width * HOURS * BUCKETS * len(Rollup._fields)))
            for first in range(0, len(days), size):
                yield width, days[first : first + size]
        last = page[-1][0], page[-1][1]


async def _roll_up(pool: Pool, width: int, days: Sequence[Key]) -> None:
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute(PLAN)
        floor_us = await lock_history(connection, "5m")
        await connection.execute(DELETE_MARKS, *_arguments(days)[:2])
        whole = [(layout_id, day_us) for layout_id, day_us in days if day_us >= floor_us]
        if whole:
            keys, rollup = await _rolled_up(connection, width, whole)
            await _write(connection, keys, await asyncio.to_thread(_encoded, keys, rollup))
        failpoint("days.before_commit")


def _arguments(days: Sequence[Key]) -> tuple[list[int], list[datetime], datetime, datetime]:
    """The keys, and bounds on `start`: constants by which partitions are left out of a plan."""
    starts = [instant(day_us) for _, day_us in days]
    return [layout_id for layout_id, _ in days], starts, min(starts), max(starts) + DAY


async def _rolled_up(
    connection: Connection, width: int, days: Sequence[Key]
) -> tuple[list[Key], Rollup]:
    """Those of the days that have samples, in buckets of an hour."""
    parts: list[Rollup] = []
    keys: list[Key] = []
    for first in range(0, width, SERIES_AT_ONCE):
        last = min(first + SERIES_AT_ONCE, width)
        hours = await _hours(connection, days, first, last)
        keys, part = await asyncio.to_thread(_computed, hours, last - first)
        parts.append(part)
    return keys, Rollup._make(np.concatenate(one, axis=1) for one in zip(*parts, strict=True))


async def _hours(connection: Connection, days: Sequence[Key], first: int, last: int) -> bytearray:
    """Rows of `rollups_5m`, of the series from `first` up to `last` alone."""
    data = bytearray()

    async def keep(chunk: bytes) -> None:
        data.extend(chunk)

    cells = first * BUCKETS + 1, last * BUCKETS
    await connection.copy_from_query(
        HOURS_OF_DAYS, *_arguments(days), *cells, output=keep, format="binary"
    )
    return data


def _computed(hours: bytearray, width: int) -> tuple[list[Key], Rollup]:
    """Days and their buckets of an hour. Runs in a thread."""
    keys, rollup = decode_days(hours, width)
    return keys, of_days(rollup)


def _encoded(keys: Sequence[Key], rollup: Rollup) -> bytes:
    """Rows of `rollups_1h`. Runs in a thread."""
    return encode_rollups([(keys, rollup)])


async def _write(connection: Connection, keys: Sequence[Key], rows: bytes) -> None:
    if keys:
        await connection.execute(DELETE_DAYS, *_arguments(keys))
        await ensure_partitions(connection, "rollups_1h", keys)
        source: Any = memoryview(rows)  # bytes would be taken for a path
        await connection.copy_to_table("rollups_1h", source=source, format="binary")
