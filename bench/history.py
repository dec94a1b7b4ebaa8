"""Hours and days of history, the same in each system: a replay for several hosts, in order of time.

Ours goes the product's own way, through the broker and `vervet ingest`, in messages of many ticks
as a spool sends them after an outage; then its own jobs seal it.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import asyncpg
import psutil

from bench.figures import Failed
from bench.peers import PEERS, answers, get
from bench.processes import Roots, await_idle, cpu_of_all_s
from bench.product import vervet
from bench.replay import Piece, Replay
from bench.requester import FORMS, Sender
from schemas.samples import SAMPLES_MSGPACK, Frame, SampleMessage, encode
from schemas.topology import INTAKE, PARTITION_HEADER, sample_key
from services.bus import Bus, Message
from services.bus_rabbit import rabbit_bus
from services.clock import instant, now_us
from services.database import Connection
from services.ingest.jobs import LOCK
from services.ingest.partitions import HEAD_AGE
from services.ingest.service import JOBS
from services.migrate import prepare
from tests.stack.database import with_database
from tests.stack.peer_servers import PeerServer
from tests.stack.process import Say, free_port, is_alive, tail
from tests.stack.session import Stack

ALL_JOBS_DONE = "select count(succeeded_at) = $1 from jobs"

RECEIVED = "select coalesce(sum(messages + duplicates), 0)::bigint from agents"

TICKS_A_MESSAGE = 120
"""Half a megabyte; the most that a message may have is one."""

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
AGE_MS = HEAD_AGE // timedelta(milliseconds=1) + HOUR_MS
"""How old the newest sample is at least: its hour is closed, and the head's partition dropped."""

AT_ONCE = 16
SENDERS = 4
TIMEOUT_S = 1800.0
POLL_S = 0.2
START_TIMEOUT_S = 60.0
IDLE_TIMEOUT_S = 300.0
SAY_EACH_S = 10.0


@dataclass(frozen=True)
class History:
    """`ticks` ticks of each of `hosts` hosts."""

    replay: Replay
    hosts: int
    ticks: int

    @staticmethod
    def of_whole_days(replay: Replay, hosts: int, ticks: int) -> "History":
        """One that ends with the last day that is old enough, and begins with an hour."""
        last_ms = (now_us() // 1000 - AGE_MS) // DAY_MS * DAY_MS
        start_ms = (last_ms - ticks * replay.interval_ms) // HOUR_MS * HOUR_MS
        return History(replace(replay, start_ms=start_ms), hosts, ticks)

    @property
    def end_ms(self) -> int:
        """No sample is newer."""
        replay = self.replay
        return replay.start_ms + (self.ticks + 1) * replay.interval_ms + replay.jitter_ms

    def source(self, host: int) -> dict[str, str]:
        return {"job": "node", "instance": f"host-{host:05}"}

    def rounds(self) -> Iterator[tuple[int, int]]:
        """First tick and count of what all hosts send before any of them goes on."""
        for first in range(0, self.ticks, TICKS_A_MESSAGE):
            yield first, min(TICKS_A_MESSAGE, self.ticks - first)

    def pieces(self, host: int, first: int, count: int) -> list[Piece]:
        return list(self.replay.pieces(host, first, count))

    def samples(self) -> int:
        """How many there are in all."""
        absent = self.replay.recording.absent()
        if not absent.any():
            return self.hosts * self.ticks * absent.shape[1]
        return sum(
            piece.values.size
            for host in range(self.hosts)
            for piece in self.replay.pieces(host, 0, self.ticks)
        )


class Progress:
    """Says now and then how far a long work is."""

    def __init__(self, say: Say, what: str) -> None:
        self._say, self._what, self._said_at = say, what, time.monotonic()

    def __call__(self, share: float) -> None:
        if time.monotonic() - self._said_at >= SAY_EACH_S:
            self._said_at = time.monotonic()
            self._say(f"{self._what}: {share:.0%}")


@dataclass
class Ours:
    """Vervet's broker and database; its processes run while a block of theirs does."""

    stack: Stack
    broker_url: str
    database_url: str
    bus: Bus
    connection: Connection
    admin: Connection
    folder: Path

    async def fill(self, history: History, say: Say) -> None:
        """Store the history in the head; nothing is sealed meanwhile. Raises Failed."""
        shown = Progress(say, "filling vervet")
        async with self._without_jobs(), self.ingesting() as worker:
            before = await self.connection.fetchval(RECEIVED)
            sent = 0
            for first, count in history.rounds():
                messages = [
                    (history.source(host), history.pieces(host, first, count))
                    for host in range(history.hosts)
                ]
                for start in range(0, len(messages), AT_ONCE):
                    async with asyncio.TaskGroup() as group:
                        for source, pieces in messages[start : start + AT_ONCE]:
                            sent += 1
                            group.create_task(self._publish(source, pieces, sent))
                shown(first / history.ticks)
            await self._await(f"select ({RECEIVED}) >= $1", before + sent, worker)

    async def seal(self, history: History) -> float:
        """Have the product's own jobs do all they have to. Raises Failed if the head keeps any.

        Returns the processor seconds of worker and database, vacuuming and a checkpoint included.
        """
        async with self.ingesting() as worker:
            roots = {"ingest": [worker.pid], "database": [self.stack.database().pid()]}
            before = cpu_of_all_s(roots)
            await self._await(ALL_JOBS_DONE, len(JOBS), worker)
            await self.admin.execute("vacuum")
            await self.admin.execute("checkpoint")
            after = cpu_of_all_s(roots)
        last = instant(history.end_ms * 1000)
        if left := await self.connection.fetchval(
            "select count(*) from frames where at <= $1", last
        ):
            raise Failed(f"{left} frames of closed hours were not sealed")
        return sum(after.values()) - sum(before.values())

    @asynccontextmanager
    async def ingesting(self) -> AsyncIterator[psutil.Process]:
        """`vervet ingest`, as it comes."""
        with vervet(self.stack, "ingest", self._urls, self._log) as worker:
            yield worker

    @asynccontextmanager
    async def answering(self) -> AsyncIterator[tuple[str, Roots]]:
        """`vervet api`, as it comes: its URL, and what works for its answers."""
        listen = f"127.0.0.1:{free_port()}"
        log, url = self.folder / "api.log", f"http://{listen}"
        settings = {**self._urls, "VERVET_LISTEN": listen}
        with vervet(self.stack, "api", settings, log) as process:
            deadline = time.monotonic() + START_TIMEOUT_S
            while not await asyncio.to_thread(answers, f"{url}/-/ready"):
                if time.monotonic() > deadline or not is_alive(process):
                    raise Failed(f"the api is not ready; its log ends:\n{tail(log)}")
                await asyncio.sleep(POLL_S)
            yield url, {"api": [process.pid], "database": [self.stack.database().pid()]}

    @asynccontextmanager
    async def _without_jobs(self) -> AsyncIterator[None]:
        """Hold the lock of who runs the jobs, so that nobody does."""
        await self.connection.execute("select pg_advisory_lock($1)", LOCK)
        yield
        await self.connection.execute("select pg_advisory_unlock($1)", LOCK)

    @property
    def _urls(self) -> dict[str, str]:
        return {"VERVET_BROKER_URL": self.broker_url, "VERVET_DATABASE_URL": self.database_url}

    @property
    def _log(self) -> Path:
        return self.folder / "ingest.log"

    async def _publish(self, source: dict[str, str], pieces: list[Piece], seq: int) -> None:
        frames = tuple(
            Frame(
                piece.part.collector,
                piece.part.encoded,
                (piece.at_ms * 1000).astype("<i8").tobytes(),
                piece.values.astype("<f8").tobytes(),
            )
            for piece in pieces
        )
        made = SampleMessage(source, "history", seq, frames)
        instance = source["instance"]
        message = Message(
            encode(made), SAMPLES_MSGPACK, made.message_id, {PARTITION_HEADER: instance}
        )
        await self.bus.publish(INTAKE, sample_key(source["job"], instance), message)

    async def _await(self, question: str, argument: int, worker: psutil.Process) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not await self.connection.fetchval(question, argument):
            if time.monotonic() > deadline or not is_alive(worker):
                raise Failed(f"not true yet: {question}; ingest's log ends:\n{tail(self._log)}")
            await asyncio.sleep(POLL_S)


@asynccontextmanager
async def ours(stack: Stack) -> AsyncIterator[Ours]:
    """Vervet's broker and database, prepared and empty; they end with the block."""
    async with AsyncExitStack() as resources:
        broker_url = resources.enter_context(stack.broker().virtual_host())
        database = stack.database()
        database_url = resources.enter_context(database.empty_database())
        bus = await resources.enter_async_context(rabbit_bus(broker_url, name="bench"))
        await prepare(database_url, bus)
        name = urlsplit(database_url).path.lstrip("/")
        connection = await asyncpg.connect(database_url)
        resources.push_async_callback(connection.close)
        admin = await asyncpg.connect(with_database(database.admin_url, name), timeout=TIMEOUT_S)
        resources.push_async_callback(admin.close)
        folder = Path(resources.enter_context(TemporaryDirectory()))
        yield Ours(stack, broker_url, database_url, bus, connection, admin, folder)


async def fill_peer(system: str, server: PeerServer, history: History, say: Say) -> None:
    """The same history in a peer, which has then done what it does behind it."""
    await asyncio.to_thread(_send, system, server, history, Progress(say, f"filling {system}"))
    if (flush := PEERS[system].flush_path) is not None:
        await asyncio.to_thread(get, server.url + flush)
    await await_idle(server.pid, IDLE_TIMEOUT_S)


def _send(system: str, server: PeerServer, history: History, shown: Progress) -> None:
    kind, headers = FORMS[PEERS[system].form]
    encoder = kind()

    def post(host: int, first: int, count: int) -> None:
        sender.post(encoder.body(history.source(host), history.pieces(host, first, count)))

    with (
        Sender(server.write_url, headers) as sender,
        ThreadPoolExecutor(SENDERS, thread_name_prefix="sender") as pool,
    ):
        for first, count in history.rounds():
            for done in [pool.submit(post, h, first, count) for h in range(history.hosts)]:
                done.result()
            shown(first / history.ticks)
