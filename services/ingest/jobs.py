"""The scheduler: the jobs on stored data, run by one ingest worker at a time.

The worker that holds an advisory lock on a connection of its own runs the jobs, one after another.
When that connection ends, the lock is another's and the job that runs is cancelled, its transaction
with it. For a moment two may run then (a process that was frozen and thaws): a job is correct
beside itself, since it works in transactions that lock what they change.
"""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta
from typing import NamedTuple

import asyncpg
import structlog
from prometheus_client import Counter, Gauge

from services.clock import EPOCH
from services.database import CONNECT_TIMEOUT_S, ERRORS, Connection, Pool, describe, open_pool
from services.runtime import backoff_s

log = structlog.get_logger("vervet.jobs")

LOCK = 0x5645_5256_4A4F
"""Advisory lock key of who runs the jobs."""

TICK_S = 2.0
"""Between two looks at what is due, at the lock, and at a running job's progress."""

LOCK_TIMEOUT_S = 10.0
"""An answer on the lock's connection that takes longer means that the connection is lost."""

CLOSE_S = 1.0
"""What closing that connection may take; then it is cut."""

LOCK_SETTINGS = {
    "application_name": "vervet jobs",
    "timezone": "UTC",
    # The server ends the session, and with it the lock, of a worker that froze or is cut off.
    "idle_session_timeout": "15s",
}

POOL_SIZE = 2
"""Connections that jobs share; jobs run one at a time."""

JOB_SETTINGS = {
    # A worker that froze within a transaction must not keep its locks.
    "idle_in_transaction_session_timeout": "30s",
}

GRACE_S = 120.0
"""How much longer than its time a run may take to come to where it can stop, then it is cut off."""

FIRST_RETRY = timedelta(seconds=10)
LAST_RETRY = timedelta(minutes=10)

LAST_SUCCESS = Gauge(
    "vervet_job_last_success_timestamp_seconds", "When a job last did all its work", ["job"]
)
DURATION = Gauge("vervet_job_duration_seconds", "Time that a job's last run took", ["job"])
LAG = Gauge("vervet_job_lag_seconds", "Age of the oldest work that a job has left", ["job"])
RUNS = Counter("vervet_job_runs_total", "Runs of a job by result", ["job", "result"])


class OutOfTime(Exception):
    """The run has had its time: what it committed stays, and it goes on at its next turn."""


class Progress:
    """Where a job says how far it has come. A job calls it between any two of its transactions."""

    def __init__(self, most: timedelta) -> None:
        self.text = ""
        self.lag: timedelta | None = None
        self._loop = asyncio.get_running_loop()
        self._until = self._loop.time() + most.total_seconds()

    def __call__(self, text: str, lag: timedelta | None = None) -> None:
        """Shows `text`, such as "412 of 9000 layout hours". Raises OutOfTime, to be let through.

        lag: the age of the oldest work that is left if the run ends here.
        """
        self.text, self.lag = text, lag
        if self._loop.time() >= self._until:
            raise OutOfTime


Run = Callable[[Pool, datetime, Progress], Awaitable[timedelta]]
"""Does the work there is at an instant, the database's now, in transactions of a few seconds each;
the age of the oldest work that it had to leave."""


class Job(NamedTuple):
    """A job, and how often and how long at a time it is to run."""

    name: str
    every: timedelta
    most: timedelta
    run: Run


class State(NamedTuple):
    """What the database knows of a job; `failures` counts a run that has begun until it got on."""

    requested_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    failures: int = 0


def due_at(every: timedelta, state: State) -> datetime:
    """When the next run is due: `every` after the last began, or as soon as it was asked for.

    A run that failed, or that ended with its process, is repeated after 10 s, then 20 s, 40 s …
    """
    if state.requested_at is not None:
        return state.requested_at
    if state.started_at is None:
        return EPOCH
    if state.failures == 0:
        return state.started_at + every
    pause: timedelta = min(LAST_RETRY, FIRST_RETRY * 2 ** min(state.failures - 1, 16))
    return max(state.started_at, state.finished_at or state.started_at) + pause


def next_job(jobs: Sequence[Job], states: Mapping[str, State], now: datetime) -> Job | None:
    """The job that has been due for longest, so that none starves; None when none is due."""
    due = {job.name: due_at(job.every, states[job.name]) for job in jobs}
    return min(
        (job for job in jobs if due[job.name] <= now), key=lambda job: due[job.name], default=None
    )


class Outcome(NamedTuple):
    """How a run ended."""

    result: str
    lag: timedelta | None = None
    error: str = ""


async def run_jobs(url: str, jobs: Sequence[Job]) -> None:
    """Run the jobs whenever this worker is the one to, until cancelled. Raises a job's defects."""
    owner = f"{socket.gethostname()}/{os.getpid()}"
    attempt = 0
    async with open_pool(url, size=POOL_SIZE, settings=JOB_SETTINGS) as pool:
        while True:
            try:
                async with holding_lock(url) as connection:
                    attempt = 0
                    log.info("runs the jobs from now on", owner=owner)
                    await Scheduler(connection, pool, jobs, owner).run()
            except* ERRORS as group:
                if attempt == 0:
                    reason = describe(group.exceptions[0])
                    log.warning("the lock on the jobs is lost or not to be had", reason=reason)
            finally:
                for gauge in (LAST_SUCCESS, DURATION, LAG):
                    gauge.clear()
            await asyncio.sleep(backoff_s(attempt))
            attempt += 1


@asynccontextmanager
async def holding_lock(url: str) -> AsyncIterator[Connection]:
    """Waits until no other worker holds the lock; yields the connection that holds it then."""
    connection: Connection = await asyncpg.connect(
        url,
        timeout=CONNECT_TIMEOUT_S,
        command_timeout=LOCK_TIMEOUT_S,
        server_settings=LOCK_SETTINGS,
    )
    try:
        # Not the lock that waits: a statement that does would hold vacuum back for as long.
        while not await connection.fetchval("select pg_try_advisory_lock($1)", LOCK):  # noqa: ASYNC110
            await asyncio.sleep(TICK_S)
        yield connection
    finally:
        with suppress(*ERRORS):
            await connection.close(timeout=CLOSE_S)


PREPARE = """
insert into jobs (name, every_s, owner) select *, $3 from unnest($1::text[], $2::float8[])
on conflict (name) do update set every_s = excluded.every_s
"""

START = """
update jobs set owner = $2, started_at = now(), requested_at = null, failures = failures + 1,
                progress = ''
where name = $1
"""

FINISH = """
update jobs set
    finished_at = now(), duration_s = extract(epoch from now() - started_at),
    lag_s = coalesce($3, lag_s), progress = $4, error = $5,
    failures = case when $2 = 'error' then failures else 0 end,
    succeeded_at = case when $2 = 'success' then now() else succeeded_at end,
    requested_at = case when $2 = 'unfinished' then now() else requested_at end
where name = $1
"""


class Scheduler:
    """The jobs while this worker holds the lock; `connection` is the lock's."""

    def __init__(self, connection: Connection, pool: Pool, jobs: Sequence[Job], owner: str) -> None:
        self._connection = connection
        self._pool = pool
        self._jobs = jobs
        self._owner = owner

    async def run(self) -> None:
        """Run what is due, for ever. Raises what the lock's connection raises when it is lost."""
        names = [job.name for job in self._jobs]
        every_s = [job.every.total_seconds() for job in self._jobs]
        await self._connection.execute("delete from jobs where name <> all($1)", names)
        await self._connection.execute(PREPARE, names, every_s, self._owner)
        while True:
            if not await self.run_one():
                await asyncio.sleep(TICK_S)

    async def run_one(self) -> bool:
        """Run the job that is due; False when none is."""
        rows = await self._connection.fetch("select *, now() as now from jobs")
        states = {
            row["name"]: State(
                row["requested_at"], row["started_at"], row["finished_at"], row["failures"]
            )
            for row in rows
        }
        for row in rows:
            show(row)
        now = rows[0]["now"]
        job = next_job(self._jobs, states, now)
        if job is None:
            return False
        await self._run(job, now)
        return True

    async def _run(self, job: Job, now: datetime) -> None:
        await self._connection.execute(START, job.name, self._owner)
        progress = Progress(job.most)
        async with asyncio.TaskGroup() as group:
            beat = group.create_task(self._beat(job, progress), name=f"progress of {job.name}")
            outcome = await self._outcome(job, now, progress)
            beat.cancel()
        RUNS.labels(job.name, outcome.result).inc()
        lag_s = None if outcome.lag is None else outcome.lag.total_seconds()
        await self._connection.execute(
            FINISH, job.name, outcome.result, lag_s, progress.text, outcome.error
        )

    async def _outcome(self, job: Job, now: datetime, progress: Progress) -> Outcome:
        """Do the job's work. What the database raises is an outcome; all else is a defect."""
        try:
            async with asyncio.timeout(job.most.total_seconds() + GRACE_S):
                return Outcome("success", await job.run(self._pool, now, progress))
        except OutOfTime:
            return Outcome("unfinished", progress.lag)
        except ERRORS as error:
            log.warning("a job failed; it will be tried again", job=job.name, exc_info=error)
            return Outcome("error", error=describe(error))

    async def _beat(self, job: Job, progress: Progress) -> None:
        """Show the progress, and by the way notice when the lock's connection is lost."""
        while True:
            await asyncio.sleep(TICK_S)
            await self._connection.execute(
                "update jobs set progress = $2 where name = $1", job.name, progress.text
            )


def show(row: asyncpg.Record) -> None:
    """A job's row in /metrics."""
    if row["succeeded_at"] is not None:
        LAST_SUCCESS.labels(row["name"]).set(row["succeeded_at"].timestamp())
    for gauge, value in ((DURATION, row["duration_s"]), (LAG, row["lag_s"])):
        if value is not None:
            gauge.labels(row["name"]).set(value)
