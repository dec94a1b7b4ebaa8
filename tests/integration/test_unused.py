"""Collecting layouts and series of which nothing is stored, under the eyes of those who write."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from engine.promql import Matcher, MatchOp
from schemas.layouts import Series
from services.clock import now_us
from services.database import Pool
from services.ingest import exclusive, unused
from services.ingest.batch import Layouts, Received, Window, receive
from services.ingest.jobs import Progress
from services.ingest.store import Store
from services.ingest.unused import collect_unused
from services.series_lookup import SHAPES, SOURCES, Catalogue
from tests.builders import GAUGE, delivery, sample_message

DAY, HOUR = timedelta(days=1), timedelta(hours=1)
TABLES = ("series", "layouts", "layout_series", "layout_shapes", "shapes")


@pytest.fixture
def pool(pool_of_either: Pool) -> Pool:
    """Every test here runs on TimescaleDB and on plain PostgreSQL."""
    return pool_of_either


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exclusive, "PAUSE_S", 0.01)
    monkeypatch.setattr(unused, "PAUSE_S", 0.01)
    monkeypatch.setattr(unused, "MIN_AGE", -DAY)


class Worker:
    """An ingest worker, as far as layouts go: it remembers those that it saw."""

    def __init__(self, pool: Pool) -> None:
        self._store = Store(pool)
        self._layouts = Layouts()
        self._seq = 0

    async def write(self, *instances: str, series: Sequence[Series] = GAUGE) -> None:
        await self._store.write([self._received(instance, series) for instance in instances])

    def _received(self, instance: str, series: Sequence[Series]) -> Received:
        self._seq += 1
        rows = [float(n) for n in range(len(series))]
        message = sample_message(rows, instance=instance, seq=self._seq, series=series)
        bounds = Window(DAY, DAY).bounds_us(now_us())
        return receive(delivery(message), message, self._layouts, bounds)


async def collect(pool: Pool) -> str:
    progress = Progress(HOUR)
    await collect_unused(pool, datetime.now(UTC), progress)
    return progress.text


async def counts(pool: Pool) -> dict[str, int]:
    return {table: await pool.fetchval(f"select count(*) from {table}") for table in TABLES}


async def test_a_layout_without_rows_goes_with_what_only_it_has(pool: Pool) -> None:
    worker = Worker(pool)
    await worker.write("stays")
    before = await counts(pool)
    extra = [*GAUGE, Series("humidity", {}, "gauge")]
    await worker.write("stays", series=extra)  # shares two series with a layout that stays
    await worker.write("goes")  # shares its shape with a layout that stays
    await pool.execute(
        """delete from frames where layout_id in
           (select id from layouts where width = 3 or source->>'instance' = 'goes')"""
    )
    assert await collect(pool) == "3 of 3 layouts; 2 were unused"
    assert await counts(pool) == before
    assert await collect(pool) == "1 of 1 layouts; 0 were unused"


@pytest.mark.parametrize("table", ["frames", "blocks", "rollups_5m", "rollups_1h"])
async def test_a_layout_with_a_row_anywhere_stays(pool: Pool, table: str) -> None:
    await Worker(pool).write("host-1")
    if table != "frames":
        await pool.execute("delete from frames")
        await pool.execute("select ensure_partition($1, now())", table)
        values = "1, '', '', '{}'" if table == "blocks" else ", ".join(["'{}'"] * 7)
        await pool.execute(f"insert into {table} select id, now(), {values} from layouts")
    await collect(pool)
    assert (await counts(pool))["layouts"] == 1


async def test_a_layout_that_was_just_registered_stays(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unused, "MIN_AGE", HOUR)
    await Worker(pool).write("host-1")
    await pool.execute("delete from frames")
    await collect(pool)
    assert (await counts(pool))["layouts"] == 1


async def test_many_layouts_are_collected_in_portions(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unused, "SERIES_AT_ONCE", 5)
    monkeypatch.setattr(unused, "LAYOUTS_AT_ONCE", 4)
    await Worker(pool).write(*(f"host-{n}" for n in range(9)))
    await pool.execute("delete from frames where layout_id % 3 > 0")
    assert await collect(pool) == "9 of 9 layouts; 6 were unused"
    assert await pool.fetchval("select times from layouts_collected") > 2


async def test_a_worker_that_knew_a_collected_layout_has_it_registered_again(pool: Pool) -> None:
    worker = Worker(pool)
    await worker.write("host-1", "host-2")
    await pool.execute("delete from frames")
    await collect(pool)
    await worker.write("host-1")
    await worker.write("host-2")
    rows = await pool.fetch("select labels->>'instance' as instance from samples order by 1")
    assert [row["instance"] for row in rows] == ["host-1", "host-1", "host-2", "host-2"]


async def test_no_row_is_written_of_a_layout_that_is_collected(pool: Pool) -> None:
    """Two workers write, rows vanish as with dropped partitions, and the job collects for real."""
    enough = 8
    collected = orphans = 0
    done = asyncio.Event()

    async def collector() -> None:
        nonlocal collected
        while not done.is_set():
            collected += int((await collect(pool)).split()[-3])

    async def remover() -> None:
        nonlocal orphans
        while not done.is_set():
            orphans += await pool.fetchval(
                """with gone as (delete from frames returning layout_id)
                   select count(*) from gone where layout_id not in (select id from layouts)"""
            )

    async def writer(order: int) -> None:
        worker = Worker(pool)
        hosts = [f"host-{n}" for n in range(5)][::order]
        while collected < enough:
            for host in hosts:
                await worker.write(host)
            await worker.write(*hosts)

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        group.create_task(collector())
        group.create_task(remover())
        await asyncio.gather(writer(1), writer(-1))
        done.set()
    assert orphans == 0
    rows, readable = await pool.fetchrow(
        "select (select 2 * count(*) from frames), (select count(*) from samples)"
    )
    assert rows == readable
    unfound = "select count(*) from layouts where id not in (select layout_id from layout_shapes)"
    assert await pool.fetchval(unfound) == 0


@pytest.mark.parametrize("before", [SOURCES, SHAPES])
async def test_series_that_are_collected_while_they_are_looked_up_are_not_found(
    pool: Pool, before: str
) -> None:
    await Worker(pool).write("host-1")
    await pool.execute("delete from frames")

    class Meddling:
        """The pool, but layouts are collected before one of the statements."""

        async def fetch(self, statement: str, *arguments: object) -> list[object]:
            if statement == before:
                await collect(pool)
            return list(await pool.fetch(statement, *arguments))

    matchers = [Matcher("__name__", MatchOp.EQUAL, "temperature")]
    connection: Any = Meddling()
    assert await Catalogue().matches(connection, matchers) == []
    assert (await counts(pool))["layouts"] == 0
