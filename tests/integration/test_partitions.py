"""Dropping partitions under way: of the head once they are empty, of history by retention."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from services.clock import microseconds, now_us
from services.database import Pool
from services.ingest import exclusive
from services.ingest.batch import Layouts, Received, Window, receive
from services.ingest.jobs import Progress
from services.ingest.partitions import drop_empty_head, list_partitions
from services.ingest.retention import retain
from services.ingest.store import Store
from tests.builders import delivery, sample_message

DAY, HOUR, MINUTE = timedelta(days=1), timedelta(hours=1), timedelta(minutes=1)
TABLES = ("frames", "blocks", "rollups_5m", "rollups_1h")


def today() -> datetime:
    """When the day began: a run may go over midnight."""
    return datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def now() -> datetime:
    return today() + HOUR


@pytest.fixture
def pool(pool_of_either: Pool) -> Pool:
    """Every test here runs on TimescaleDB and on plain PostgreSQL."""
    return pool_of_either


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exclusive, "PAUSE_S", 0.01)


def batch(at: datetime, *, instance: str = "host-1", seq: int = 0) -> list[Received]:
    message = sample_message([1.0, 2.0], at_us=microseconds(at), instance=instance, seq=seq)
    bounds = Window(366 * DAY, DAY).bounds_us(now_us())
    return [receive(delivery(message), message, Layouts(), bounds)]


async def days(pool: Pool, table: str) -> list[int]:
    """How many days ago each of its partitions began."""
    return [(today() - one.lower).days for one in await list_partitions(pool, table)]


async def sealed(pool: Pool, at: datetime, *, rolled_up: bool = True) -> None:
    """What sealing the hour from `at` leaves, with the rollups or without; data does not matter."""
    midnight = at.replace(hour=0)
    await pool.execute(
        """insert into layouts (id, hash, source, width) overriding system value
           values (1000, '', '{}', 1) on conflict do nothing"""
    )
    for table, start in (("blocks", at), ("rollups_5m", at), ("rollups_1h", midnight)):
        await pool.execute("select ensure_partition($1, $2)", table, start)
        if table == "blocks":
            await pool.execute("insert into blocks values (1000, $1, 1, '', '', '{}')", start)
        elif rolled_up:
            await pool.execute(
                f"""insert into {table} values (1000, $1, '{{}}', '{{}}', '{{}}', '{{}}', '{{}}',
                                                '{{}}', '{{}}') on conflict do nothing""",
                start,
            )


async def lag(pool: Pool) -> timedelta:
    return await retain(pool, now(), Progress(HOUR))


async def floor(pool: Pool, tier: str) -> datetime:
    found: datetime = await pool.fetchval("select floor from retention where tier = $1", tier)
    return found


async def test_an_old_partition_of_the_head_goes_when_it_is_empty(pool: Pool) -> None:
    store = Store(pool)
    for ago in range(5):
        await store.write(batch(today() - ago * DAY + MINUTE, seq=ago))
    await pool.execute(
        "delete from frames where at not between $1 and $2", today() - 3 * DAY, today()
    )
    await drop_empty_head(pool, now(), Progress(HOUR))
    assert await days(pool, "frames") == [3, 2, 1, 0]
    await pool.execute("delete from frames")
    await drop_empty_head(pool, now(), Progress(HOUR))
    assert await days(pool, "frames") == [2, 1, 0]


async def test_a_partition_that_was_large_is_vacuumed_first(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.ingest.partitions.EMPTY_BYTES", 0)
    await Store(pool).write(batch(today() - 9 * DAY))
    await pool.execute("delete from frames")
    await drop_empty_head(pool, now(), Progress(HOUR))
    assert await days(pool, "frames") == []


async def test_late_rows_find_a_partition_though_theirs_was_dropped(pool: Pool) -> None:
    """A worker remembers which partitions there are."""
    store = Store(pool)
    late = today() - 5 * DAY
    await store.write(batch(late))
    await pool.execute("delete from frames")
    await drop_empty_head(pool, now(), Progress(HOUR))
    assert await days(pool, "frames") == []
    assert await store.write(batch(late, seq=1)) == 0
    assert await pool.fetchval("select count(*) from frames") == 1


async def test_no_late_row_is_lost_while_its_partition_is_dropped(pool: Pool) -> None:
    """Workers write, and the rows are taken away as by sealing, while the job drops and drops."""
    late = today() - 5 * DAY
    enough = 5
    done = asyncio.Event()
    taken = dropped = written = 0

    async def drop() -> None:
        nonlocal dropped
        while not done.is_set():
            progress = Progress(HOUR)
            await drop_empty_head(pool, now(), progress)
            dropped += progress.text.endswith(": 1")

    async def seal() -> None:
        nonlocal taken
        while not done.is_set():
            taken += len(await pool.fetch("delete from frames returning 1"))

    async def write(worker: int) -> None:
        nonlocal written
        store = Store(pool)
        seq = 0
        while dropped < enough or seq < enough:
            at = late + seq * timedelta(seconds=1)
            await store.write(batch(at, instance=f"host-{worker}", seq=seq))
            written += 1
            seq += 1

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        group.create_task(drop())
        group.create_task(seal())
        await asyncio.gather(*(write(worker) for worker in range(3)))
        done.set()
    assert taken + await pool.fetchval("select count(*) from frames") == written


async def test_retention_drops_what_is_too_old_and_raises_the_floor(pool: Pool) -> None:
    for ago in (800, 100, 20, 17, 15, 1):
        await sealed(pool, today() - ago * DAY)
    assert await lag(pool) == timedelta(0)
    assert await days(pool, "blocks") == [15, 1]
    assert await floor(pool, "raw") == today() - 16 * DAY
    five = [one.upper for one in await list_partitions(pool, "rollups_5m")]
    assert min(five) > now() - 90 * DAY
    assert now() - 107 * DAY < await floor(pool, "5m") <= now() - 90 * DAY
    hour = [one.upper for one in await list_partitions(pool, "rollups_1h")]
    assert min(hour) > now() - 730 * DAY
    assert now() - 828 * DAY < await floor(pool, "1h") <= now() - 730 * DAY


async def test_history_stays_until_it_is_rolled_up(pool: Pool) -> None:
    start = today() - 20 * DAY
    await sealed(pool, start, rolled_up=False)
    assert await lag(pool) == now() - (start + 16 * DAY)
    assert await days(pool, "blocks") == [20]
    await pool.execute("delete from blocks")
    await sealed(pool, start)
    assert await lag(pool) == timedelta(0)
    assert await days(pool, "blocks") == []


async def test_history_stays_while_a_late_row_of_it_waits_to_be_sealed(pool: Pool) -> None:
    start = today() - 20 * DAY
    await sealed(pool, start)
    await Store(pool).write(batch(start + DAY))  # the last instant of the day's last hour
    assert await lag(pool) > timedelta(0)
    assert await days(pool, "blocks") == [20]
    await pool.execute("delete from frames")
    await lag(pool)
    assert await days(pool, "blocks") == []


async def test_rollups_stay_until_their_days_are_rolled_up(pool: Pool) -> None:
    start = today() - 200 * DAY
    await sealed(pool, start)
    await pool.execute("insert into days_due values (1000, $1)", start)
    await lag(pool)
    assert len(await days(pool, "rollups_5m")) == 1
    await pool.execute("delete from days_due")
    rows = await pool.fetch("delete from rollups_1h returning *")
    await lag(pool)
    assert len(await days(pool, "rollups_5m")) == 1
    await pool.execute("insert into rollups_1h select ($1::rollups_1h).*", rows[0])
    await lag(pool)
    assert await days(pool, "rollups_5m") == []


async def test_the_oldest_raw_history_goes_when_all_is_too_large(pool: Pool) -> None:
    for ago in range(5):
        await sealed(pool, today() - ago * DAY)
    partitions = [await list_partitions(pool, table) for table in TABLES]
    total = sum(one.bytes for some in partitions for one in some)
    await pool.execute("update retention set max_bytes = $1 where tier = 'raw'", total)
    await lag(pool)
    assert await days(pool, "blocks") == [4, 3, 2, 1, 0]
    await pool.execute("update retention set max_bytes = max_bytes - 1 where tier = 'raw'")
    await lag(pool)
    assert await days(pool, "blocks") == [3, 2, 1, 0]
    assert await floor(pool, "raw") == today() - 3 * DAY


async def test_a_long_query_holds_up_retention_and_retention_nobody(pool: Pool) -> None:
    for ago in (20, 1):
        await sealed(pool, today() - ago * DAY)
    async with pool.acquire() as reader, reader.transaction():
        await reader.fetch("select * from blocks")
        job = asyncio.create_task(retain(pool, now(), Progress(HOUR)))
        while not job.done():
            # It would wait for ever behind a job that waited for the reader without end.
            await pool.fetch("select * from blocks where start > $1", now() - 2 * DAY)
            await pool.execute("update blocks set rows = rows where start > $1", now() - 2 * DAY)
        assert await job > timedelta(0)
        assert await days(pool, "blocks") == [20, 1]
    assert await lag(pool) == timedelta(0)
    assert await days(pool, "blocks") == [1]
