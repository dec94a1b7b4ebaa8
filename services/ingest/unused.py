"""Layouts and series of which nothing is stored any more are collected.

A worker may know a layout by its id and write a row of it a moment after it was found unused. So
the last look is taken while nobody can write rows, and the transaction that collects counts up
`layouts_collected`. A writer reads the count after it wrote its rows: where it is not the one by
which it looked its layouts up, it rolls back and looks them up again. Ids are never used twice.
"""

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta

from services.database import Connection, Pool
from services.ingest.exclusive import PAUSE_S, exclusively
from services.ingest.jobs import Progress

MIN_AGE = timedelta(days=1)
"""A younger layout may just not have been written yet; to collect it would be for nothing."""

LAYOUTS_AT_ONCE = 5000
"""Layouts that one statement looks at: about 0.1 s."""

SERIES_AT_ONCE = 5000
"""Series of one transaction: about 0.2 s, in which ingest waits. A wider layout stands alone."""

OLD_ENOUGH = "select id from layouts where id > $1 and created_at < $2 order by id limit $3"

# One probe of a key per table and partition, as long as nothing is found; a join would read them.
UNUSED = """
select id, width from layouts
where id = any($1::integer[]) and coalesce(
    (select true from frames where layout_id = layouts.id limit 1),
    (select true from blocks where layout_id = layouts.id limit 1),
    (select true from rollups_5m where layout_id = layouts.id limit 1),
    (select true from rollups_1h where layout_id = layouts.id limit 1)) is null
order by id
"""

COLLECT_SERIES = """
delete from series where id = any($1::bigint[])
and not exists (select from layout_series where series_id = series.id)
"""

COLLECT_SHAPES = """
delete from shapes where id = any($1::integer[])
and not exists (select from layout_shapes where shape_id = shapes.id)
"""


async def collect_unused(pool: Pool, now: datetime, progress: Progress) -> timedelta:
    """The job: removes what nothing is stored of; again is a no-op."""
    collected, last = 0, 0
    total = await pool.fetchval("select count(*) from layouts")
    seen = 0
    while True:
        progress(f"{seen} of {total} layouts; {collected} were unused")
        rows = await pool.fetch(OLD_ENOUGH, last, now - MIN_AGE, LAYOUTS_AT_ONCE)
        if not rows:
            return timedelta(0)
        ids = [row["id"] for row in rows]
        async with pool.acquire() as connection, connection.transaction():
            unused = await _unused(connection, ids)
        for some in _portions(unused):
            progress(f"{seen} of {total} layouts; {collected} were unused")
            collected += await _collect(pool, some)
            await asyncio.sleep(PAUSE_S)  # writers look their layouts up again meanwhile
        seen, last = seen + len(ids), ids[-1]


async def _unused(connection: Connection, ids: Sequence[int]) -> list[tuple[int, int]]:
    """Those of the layouts that no table has a row of, as (id, width)."""
    # Without statistics a scan would be taken for the quicker way to a single row.
    await connection.execute("set local enable_seqscan = off")
    return [(row["id"], row["width"]) for row in await connection.fetch(UNUSED, ids)]


def _portions(layouts: Sequence[tuple[int, int]]) -> list[list[int]]:
    portions: list[list[int]] = []
    size = SERIES_AT_ONCE
    for layout_id, width in layouts:
        if size + width > SERIES_AT_ONCE:
            portions.append([])
            size = 0
        portions[-1].append(layout_id)
        size += width
    return portions


async def _collect(pool: Pool, candidates: Sequence[int]) -> int:
    """Collect those that are still unused when nobody can write; how many that were."""
    collected = 0

    async def work(connection: Connection) -> bool:
        nonlocal collected
        # Writers of rows, and registration, which begins with the series.
        await connection.execute("lock table only frames, series in share row exclusive mode")
        ids = [layout_id for layout_id, _ in await _unused(connection, candidates)]
        if not ids:
            return True
        series = await connection.fetch(
            "delete from layout_series where layout_id = any($1::integer[]) returning series_id",
            ids,
        )
        shapes = await connection.fetch(
            "delete from layout_shapes where layout_id = any($1::integer[]) returning shape_id",
            ids,
        )
        await connection.execute("delete from days_due where layout_id = any($1::integer[])", ids)
        await connection.execute("delete from layouts where id = any($1::integer[])", ids)
        await connection.execute(COLLECT_SERIES, list({row["series_id"] for row in series}))
        await connection.execute(COLLECT_SHAPES, list({row["shape_id"] for row in shapes}))
        await connection.execute("update layouts_collected set times = times + 1")
        collected = len(ids)
        return True

    await exclusively(pool, work)
    return collected
