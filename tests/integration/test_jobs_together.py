"""All jobs of ingest workers on real samples, one after another and all at once."""

import asyncio
import random
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from prometheus_client import Counter

from services.clock import microseconds, now_us
from services.database import Pool
from services.ingest import exclusive, jobs, unused
from services.ingest.batch import Layouts, Window, receive
from services.ingest.jobs import Job, Progress, run_jobs
from services.ingest.partitions import list_partitions
from services.ingest.sealing import EXPIRED, SEALED
from services.ingest.service import JOBS
from services.ingest.store import Store
from tests.builders import delivery, sample_message
from tests.processes import eventually

DAY, HOUR = timedelta(days=1), timedelta(hours=1)


def today() -> datetime:
    """When the day began: a run may go over midnight."""
    return datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


@pytest.fixture
def url(either_database_url: str) -> str:
    """Every test here runs on TimescaleDB and on plain PostgreSQL."""
    return either_database_url


@pytest.fixture
def pool(pool_of_either: Pool) -> Pool:
    return pool_of_either


async def days(pool: Pool, table: str) -> list[int]:
    """How many days ago each of its partitions began."""
    return [(today() - one.lower).days for one in await list_partitions(pool, table)]


async def all_ran(pool: Pool) -> bool:
    done = await pool.fetchval("select count(*) from jobs where succeeded_at is not null")
    return bool(done == len(JOBS))


async def test_of_twenty_days_the_raw_ones_are_kept_as_set_and_the_rollups_all(
    url: str, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "TICK_S", 0.02)
    instants = [today() - ago * DAY + 10 * HOUR for ago in range(20, 0, -1)]
    messages = [
        sample_message([1.0, 2.0], at_us=microseconds(at), seq=seq)
        for seq, at in enumerate(instants)
    ]
    messages.append(sample_message([3.0, 4.0], seq=len(instants)))
    layouts, bounds = Layouts(), Window(30 * DAY, DAY).bounds_us(now_us())
    await Store(pool).write([receive(delivery(one), one, layouts, bounds) for one in messages])
    async with asyncio.TaskGroup() as group:
        scheduler = group.create_task(run_jobs(url, JOBS))
        await eventually(lambda: all_ran(pool), lambda: "not all jobs ran")
        scheduler.cancel()
    assert [row["error"] for row in await pool.fetch("select error from jobs")] == [""] * len(JOBS)
    assert await days(pool, "blocks") == list(range(15, 0, -1))
    floor = await pool.fetchval("select floor from retention where tier = 'raw'")
    assert floor == today() - 15 * DAY
    assert max(await days(pool, "frames")) <= 2
    # The newest sample is in the head; the day before today may be open still.
    assert await pool.fetchval("select count(*) from frames") == 1
    assert await pool.fetchval("select count(*) from rollups_5m") == 20
    assert await pool.fetchval("select count(*) from rollups_1h") >= 19
    # What a host sends now of a time whose history is gone is counted, and changes no rollup.
    late = sample_message([9.0, 9.0], at_us=microseconds(instants[0]) + 1, seq=99)
    await Store(pool).write([receive(delivery(late), late, layouts, bounds)])
    await pool.execute("update jobs set requested_at = now()")
    async with asyncio.TaskGroup() as group:
        scheduler = group.create_task(run_jobs(url, JOBS))
        await eventually(lambda: none_is_asked_for(pool), lambda: "not all jobs ran")
        scheduler.cancel()
    assert max(await days(pool, "frames")) <= 2
    assert await days(pool, "blocks") == list(range(15, 0, -1))
    oldest = await pool.fetchval("select maxs from rollups_5m order by start limit 1")
    assert 9.0 not in oldest


async def none_is_asked_for(pool: Pool) -> bool:
    waiting = "select count(*) from jobs where requested_at is not null or finished_at < started_at"
    return not await pool.fetchval(waiting)


async def test_two_workers_that_both_run_the_jobs_lose_nothing_and_double_nothing(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a moment when one thaws; here all at once, while late samples of days come in."""
    monkeypatch.setattr(exclusive, "PAUSE_S", 0.01)
    monkeypatch.setattr(unused, "PAUSE_S", 0.01)
    monkeypatch.setattr(unused, "MIN_AGE", -DAY)
    await pool.execute("update retention set keep = '1 day', max_bytes = 1000000")
    before = total(SEALED) + total(EXPIRED)
    writing = True
    chance = random.Random(4)

    async def run(job: Job) -> None:
        while writing:
            # What one of them was about to drop, the other one may have dropped.
            with suppress(asyncpg.UndefinedTableError, asyncpg.NoDataFoundError):
                await job.run(pool, datetime.now(UTC), Progress(HOUR))

    async def write(worker: int) -> int:
        store, layouts, bounds = Store(pool), Layouts(), Window(9 * DAY, DAY).bounds_us(now_us())
        for seq in range(60):
            at = today() - chance.randrange(1, 6) * DAY + timedelta(seconds=seq)
            host = f"host-{worker}-{chance.randrange(5)}"
            message = sample_message([1.0, 2.0], instance=host, seq=seq, at_us=microseconds(at))
            await store.write([receive(delivery(message), message, layouts, bounds)])
        return 60 * 2

    async with asyncio.TaskGroup() as group:
        for job in (*JOBS, *JOBS):
            group.create_task(run(job))
        written = sum(await asyncio.gather(*(write(worker) for worker in range(3))))
        writing = False
    head = await pool.fetchval("select count(*) from samples")
    assert total(SEALED) + total(EXPIRED) - before + head == written
    assert not await pool.fetchval(
        """select count(*) from frames full join blocks using (layout_id)
           where layout_id not in (select id from layouts)"""
    )
    assert not await pool.fetchval(
        """select count(*) from blocks b where not exists (
               select from rollups_5m r where r.layout_id = b.layout_id and r.start = b.start)"""
    )


def total(counter: Counter) -> float:
    """Its value in this process."""
    (metric,) = counter.collect()
    return next(one.value for one in metric.samples if one.name.endswith("_total"))
