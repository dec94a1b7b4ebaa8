"""A backup as the guide makes it, of a store that is being written to, holds what was stored."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from urllib.parse import urlsplit

import numpy as np
import pytest

from engine.promql.matchers import Matcher, MatchOp
from schemas.samples import SampleMessage
from schemas.values import ABSENT, STALE
from services.clock import instant, now_us
from services.database import Pool, check_schema, migrate, open_pool
from services.ingest.batch import Layouts, Window, receive
from services.ingest.days import roll_up_days
from services.ingest.jobs import Progress
from services.ingest.sealing import seal
from services.ingest.store import Store
from tests.builders import delivery, sample_message
from tests.reading import read
from tests.stack.database import Database, with_database
from tests.stack.session import Stack

WINDOW = Window(timedelta(days=366), timedelta(days=1))
HOUR_US = 3_600_000_000
SECOND_US = 1_000_000
NOW_US = now_us()
EVERYTHING = (Matcher("job", MatchOp.NOT_EQUAL, ""),)
ROLLUPS = ("rollups_5m", "rollups_1h")

Samples = dict[frozenset[tuple[str, str]], list[tuple[int, int]]]


@pytest.fixture(params=["timescale", "plain"])
def server(request: pytest.FixtureRequest, stack: Stack) -> Database:
    database = stack.database() if request.param == "timescale" else stack.plain_database()
    if request.param == "timescale" and not database.has_timescale():
        pytest.skip(f"{database!r} has no TimescaleDB")
    return database


async def store(pool: Pool, *messages: SampleMessage) -> None:
    layouts = Layouts()
    bounds = WINDOW.bounds_us(now_us())
    await Store(pool).write([receive(delivery(one), one, layouts, bounds) for one in messages])


async def fill(pool: Pool) -> None:
    """Three days of history, sealed and rolled up, and an hour of head."""
    ages_h = [72, 71, 50, 25, 3]
    hours = [NOW_US // HOUR_US * HOUR_US - age * HOUR_US + SECOND_US for age in ages_h]
    rows = [[1.5, ABSENT], [STALE, 2.0], [float("nan"), -0.0]]
    for name in ("host-1", "host-2"):
        await store(
            pool,
            *(
                sample_message(*rows, instance=name, at_us=at_us, seq=seq)
                for seq, at_us in enumerate(hours)
            ),
        )
    progress = Progress(timedelta(minutes=1))
    await seal(pool, instant(NOW_US), progress)
    await roll_up_days(pool, instant(NOW_US), progress)
    await store(pool, sample_message(*rows, at_us=NOW_US - 600 * SECOND_US, seq=9))


async def all_samples(pool: Pool, until_us: int) -> Samples:
    """Bits by series and instant."""
    found: Samples = {}
    for block in await read(pool, EVERYTHING, 0, until_us):
        at = block.at.tolist()
        bits = np.ascontiguousarray(block.values).view(np.uint64)
        for place, labels in enumerate(block.labels):
            cells = found.setdefault(frozenset(labels.items()), [])
            cells += zip(at, bits[:, place].tolist(), strict=True)
    return {series: sorted(cells) for series, cells in found.items()}


async def rollups(pool: Pool) -> list[list[tuple[object, ...]]]:
    """All rows; text, in which NaN equals NaN."""
    return [
        [tuple(row) for row in await pool.fetch(f"select r::text from {table} r order by 1")]
        for table in ROLLUPS
    ]


@asynccontextmanager
async def writing(pool: Pool) -> AsyncIterator[None]:
    """Samples newer than NOW_US are stored, of instances old and new, while this lasts."""
    stop = asyncio.Event()

    async def write() -> None:
        seq = 100
        while not stop.is_set():
            name = f"host-{seq % 7}"
            at_us = NOW_US + seq * SECOND_US
            await store(pool, sample_message([1.0, 2.0], instance=name, at_us=at_us, seq=seq))
            seq += 1

    async with asyncio.TaskGroup() as group:
        group.create_task(write())
        yield
        stop.set()


def dump(server: Database, name: str, file: str) -> None:
    server.run("pg_dump", "--format=custom", f"--file={file}", server.url_inside(name))


def restore(server: Database, file: str, name: str) -> None:
    if server.has_timescale():
        server.sql("create extension if not exists timescaledb", database=name)
        server.sql("select timescaledb_pre_restore()", database=name)
    server.run("pg_restore", "--exit-on-error", f"--dbname={server.url_inside(name)}", file)
    if server.has_timescale():
        server.sql("select timescaledb_post_restore()", database=name)


async def test_a_restored_backup_holds_every_sample_and_takes_more(server: Database) -> None:
    with server.migrated_database(migrate) as url, server.empty_database() as empty_url:
        old, new = (urlsplit(one).path.lstrip("/") for one in (url, empty_url))
        folder = (await asyncio.to_thread(server.run, "mktemp", "--directory")).strip()
        file = f"{folder}/vervet.dump"
        async with open_pool(url) as pool:
            await fill(pool)
            stored, rolled_up = await all_samples(pool, NOW_US), await rollups(pool)
            assert all(rolled_up)
            assert await pool.fetchval("select count(*) from blocks") == 10
            async with writing(pool):
                await asyncio.to_thread(dump, server, old, file)
        await asyncio.to_thread(restore, server, file, new)
        await asyncio.to_thread(server.run, "rm", "-r", folder)
        async with open_pool(with_database(server.url, new)) as pool:
            await check_schema(pool)
            assert await all_samples(pool, NOW_US) == stored
            assert await rollups(pool) == rolled_up
            await goes_on(pool)


async def goes_on(pool: Pool) -> None:
    """What comes later is stored, in partitions and ids that are new, and sealed."""
    progress = Progress(timedelta(minutes=1))
    late_us = NOW_US - 100 * HOUR_US
    await store(pool, sample_message([3.0, 4.0], instance="new", at_us=late_us))
    await seal(pool, instant(NOW_US), progress)
    found = await read(pool, (Matcher("instance", MatchOp.EQUAL, "new"),), 0, NOW_US)
    assert [block.values.tolist() for block in found] == [[[3.0, 4.0]]]
    assert await pool.fetchval("select count(*) from blocks") == 11


async def test_who_dumps_holds_up_neither_ingest_nor_sealing(server: Database) -> None:
    with server.migrated_database(migrate) as url:
        async with open_pool(url) as pool, pool.acquire() as dumping, dumping.transaction():
            # As pg_dump does it, from its beginning to its end.
            await dumping.execute("lock table frames, blocks, rollups_5m in access share mode")
            async with asyncio.timeout(30):
                await fill(pool)
            assert await pool.fetchval("select count(*) from blocks") == 10
