"""The scheduler on a real database: one worker at a time, and what is known of every job."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta
from pathlib import Path

import asyncpg
import pytest
from prometheus_client import REGISTRY

from services.bus_rabbit import rabbit_bus
from services.database import Pool, open_pool
from services.ingest import jobs
from services.ingest.jobs import Job, Progress, Run, run_jobs
from services.migrate import prepare
from tests.processes import Running, eventually, vervet

DAY, MINUTE, NONE = timedelta(days=1), timedelta(minutes=1), timedelta(0)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "TICK_S", 0.02)
    monkeypatch.setattr(jobs, "FIRST_RETRY", timedelta(milliseconds=1))


@pytest.fixture
async def pool(plain_database_url: str) -> AsyncIterator[Pool]:
    async with open_pool(plain_database_url) as opened:
        yield opened


def job(run: Run, name: str = "a", every: timedelta = DAY, most: timedelta = MINUTE) -> Job:
    return Job(name, every, most, run)


async def until(condition: Callable[[], bool]) -> None:
    await eventually(condition, lambda: "the condition never held")


async def row(pool: Pool, name: str = "a") -> asyncpg.Record:
    return await pool.fetchrow("select * from jobs where name = $1", name)


def metric(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


async def lock_holders(pool: Pool) -> list[int]:
    rows = await pool.fetch(
        """select pid from pg_locks join pg_database on pg_database.oid = database
           where locktype = 'advisory' and granted and objid = $1
             and datname = current_database()""",
        jobs.LOCK & 0xFFFF_FFFF,
    )
    return [one["pid"] for one in rows]


async def test_a_run_leaves_its_figures(plain_database_url: str, pool: Pool) -> None:
    async def run(_: Pool, now: datetime, progress: Progress) -> timedelta:
        progress("2 of 2 hours")
        return timedelta(seconds=90)

    async with asyncio.TaskGroup() as group:
        scheduler = group.create_task(run_jobs(plain_database_url, [job(run, "figures")]))
        await until(lambda: metric("vervet_job_lag_seconds", job="figures") == 90)
        found = await row(pool, "figures")
        assert found["progress"] == "2 of 2 hours"
        assert found["started_at"] <= found["finished_at"] == found["succeeded_at"]
        assert (found["lag_s"], found["failures"], found["error"]) == (90, 0, "")
        succeeded = metric("vervet_job_last_success_timestamp_seconds", job="figures")
        assert succeeded == found["succeeded_at"].timestamp()
        assert metric("vervet_job_runs_total", job="figures", result="success") == 1
        scheduler.cancel()
    assert metric("vervet_job_lag_seconds", job="figures") is None


async def test_a_job_that_fails_is_shown_and_tried_again(
    plain_database_url: str, pool: Pool
) -> None:
    seen: list[asyncpg.Record] = []

    async def run(_: Pool, __: datetime, ___: Progress) -> timedelta:
        seen.append(await row(pool))
        if len(seen) < 3:
            await pool.execute("select 1 / 0")
        return NONE

    async with asyncio.TaskGroup() as group:
        scheduler = group.create_task(run_jobs(plain_database_url, [job(run)]))
        await until(lambda: len(seen) == 3)
        scheduler.cancel()
    assert [(one["failures"], one["error"]) for one in seen] == [
        (1, ""),
        (2, "division by zero"),
        (3, "division by zero"),
    ]


async def test_a_job_that_hangs_is_cut_off(
    plain_database_url: str, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "GRACE_S", 0.05)
    runs = 0

    async def run(own: Pool, _: datetime, __: Progress) -> timedelta:
        nonlocal runs
        runs += 1
        await own.execute("select pg_sleep(600)", timeout=600)
        return NONE

    async with asyncio.TaskGroup() as group:
        scheduler = group.create_task(run_jobs(plain_database_url, [job(run, most=NONE)]))
        await until(lambda: runs == 2)
        assert (await row(pool))["error"] == "TimeoutError"
        scheduler.cancel()


async def test_a_defect_of_a_job_is_not_hidden(plain_database_url: str) -> None:
    async def run(_: Pool, __: datetime, ___: Progress) -> timedelta:
        raise LookupError("a defect")

    with pytest.raises(ExceptionGroup, match="unhandled errors") as raised:
        await run_jobs(plain_database_url, [job(run)])
    assert raised.group_contains(LookupError, match="a defect")


async def test_a_job_out_of_time_gives_way_to_others_and_goes_on(plain_database_url: str) -> None:
    turns: list[str] = []

    def counting(name: str, enough: int) -> Run:
        async def run(_: Pool, __: datetime, progress: Progress) -> timedelta:
            turns.append(name)
            if turns.count(name) < enough:
                progress("more is left")
            return NONE

        return run

    some = [job(counting(name, 3), name, most=NONE) for name in ("a", "b")]
    async with asyncio.TaskGroup() as group:
        scheduler = group.create_task(run_jobs(plain_database_url, some))
        await until(lambda: len(turns) == 6)
        scheduler.cancel()
    assert turns == ["a", "b", "a", "b", "a", "b"]
    assert metric("vervet_job_runs_total", job="b", result="unfinished") == 2


async def test_a_run_out_of_time_tells_how_old_what_it_left_is(plain_database_url: str) -> None:
    async def run(_: Pool, __: datetime, progress: Progress) -> timedelta:
        progress("more is left", timedelta(seconds=70))
        return NONE

    async with asyncio.TaskGroup() as group:
        work = run_jobs(plain_database_url, [job(run, "late", most=NONE)])
        scheduler = group.create_task(work)
        await until(lambda: metric("vervet_job_lag_seconds", job="late") == 70)
        scheduler.cancel()


async def test_a_job_runs_when_it_is_asked_for(plain_database_url: str, pool: Pool) -> None:
    runs = 0

    async def run(_: Pool, __: datetime, ___: Progress) -> timedelta:
        nonlocal runs
        runs += 1
        return NONE

    async with asyncio.TaskGroup() as group:
        scheduler = group.create_task(run_jobs(plain_database_url, [job(run)]))
        await until(lambda: runs == 1)
        await pool.execute("update jobs set requested_at = now()")
        await until(lambda: runs == 2)
        scheduler.cancel()


async def test_progress_is_seen_while_the_job_runs(plain_database_url: str, pool: Pool) -> None:
    texts = asyncio.Queue[str]()

    async def run(_: Pool, __: datetime, progress: Progress) -> timedelta:
        progress("412 of 9000 layout hours")
        while not (await row(pool))["progress"]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await texts.put((await row(pool))["progress"])
        return NONE

    async with asyncio.TaskGroup() as group:
        scheduler = group.create_task(run_jobs(plain_database_url, [job(run)]))
        assert await asyncio.wait_for(texts.get(), 20) == "412 of 9000 layout hours"
        scheduler.cancel()


async def test_the_jobs_go_on_when_the_lock_is_lost_one_run_after_the_other(
    plain_database_url: str, pool: Pool
) -> None:
    """The transaction of the job that ran is rolled back with it. Whichever worker is first has
    the lock then."""
    await pool.execute("create table done (worker text)")
    events: list[tuple[str, str]] = []

    def worker(name: str) -> Job:
        async def run(own: Pool, _: datetime, __: Progress) -> timedelta:
            events.append(("begins", name))
            try:
                async with own.acquire() as connection, connection.transaction():
                    await connection.execute("insert into done values ($1)", name)
                    if len(events) == 1:
                        await asyncio.Event().wait()
            finally:
                events.append(("ends", name))
            return NONE

        return job(run)

    async with asyncio.TaskGroup() as group:
        schedulers = [
            group.create_task(run_jobs(plain_database_url, [worker(name)])) for name in "xy"
        ]
        await until(lambda: len(events) == 1)
        (holder,) = await lock_holders(pool)
        await pool.execute("select pg_terminate_backend($1)", holder)
        await until(lambda: len(events) == 4)
        for scheduler in schedulers:
            scheduler.cancel()
    (_, first), _, (_, second), _ = events
    assert events == [(what, who) for who in (first, second) for what in ("begins", "ends")]
    assert [one["worker"] for one in await pool.fetch("select * from done")] == [second]


async def test_the_server_ends_the_session_of_a_worker_that_freezes(
    plain_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(jobs.LOCK_SETTINGS, "idle_session_timeout", "100ms")
    async with (
        jobs.holding_lock(plain_database_url),
        asyncio.timeout(20),
        jobs.holding_lock(plain_database_url) as next_holder,
    ):
        assert await next_holder.fetchval("select true")


async def test_when_a_worker_is_killed_another_one_runs_the_jobs(
    broker_url: str, database_url: str, tmp_path: Path
) -> None:
    environ = {"broker_url": broker_url, "database_url": database_url}
    async with rabbit_bus(broker_url, name="test") as bus:
        await prepare(database_url, bus)
    async with (
        open_pool(database_url) as pool,
        vervet("ingest", log=tmp_path / "first", **environ) as first,
        vervet("ingest", log=tmp_path / "second", **environ) as second,
    ):

        async def runs_it(worker: Running) -> bool:
            owner = await pool.fetchval("select owner from jobs where name = 'head'")
            return bool(owner) and owner.endswith(f"/{worker.process.pid}")

        async def one_does() -> bool:
            return await runs_it(first) or await runs_it(second)

        await eventually(one_does, first.text)
        holder, other = (first, second) if await runs_it(first) else (second, first)
        holder.kill()
        await pool.execute("update jobs set requested_at = now()")
        await eventually(lambda: runs_it(other), other.text)
