"""A pipeline at work, measured: publisher, RabbitMQ, `vervet ingest`, PostgreSQL.

Each is a process, or a tree of them, of its own, so that the kernel tells their costs apart.
"""

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

import asyncpg
import psutil

from bench.figures import Failed
from bench.hosts import Load
from bench.processes import Roots, cpu_of_all_s, peaks_mib
from bench.product import END_TIMEOUT_S, vervet
from schemas.topology import DEFAULT_PARTITIONS, EVALUATE, INTAKE, partition_queue
from services.bus_rabbit import rabbit_bus
from services.clock import instant
from services.database import Connection
from services.migrate import prepare
from tests.stack.broker import Broker
from tests.stack.database import with_database
from tests.stack.process import is_alive, tail
from tests.stack.session import Stack

STORE_TIMEOUT_S = 300.0
POLL_S = 0.1


@dataclass(frozen=True)
class Run:
    """What one run took, by process."""

    samples: int
    messages: int
    wall_s: float
    cpu_s: Mapping[str, float]
    peak_mib: Mapping[str, float]


@dataclass
class Pipeline:
    """What stands between an agent and the tables. roots: pids whose trees are measured.

    stored_before: messages that the database knew when it began.
    """

    load: Load
    broker: Broker
    virtual_host: str
    connection: Connection
    admin: Connection
    publisher: subprocess.Popen[str]
    workers: Sequence[psutil.Process]
    worker_log: Path
    roots: Roots
    stored_before: int
    database_url: str
    published: int = 0

    async def run(self, messages: int) -> Run:
        """Publish, wait until all is stored and checkpointed, verify that it is. Raises Failed.

        Afterwards purges the evaluator's queues, which nobody consumes here.
        """
        await self.admin.execute("checkpoint")
        async with peaks_mib(self.roots) as peaks:
            before, began = cpu_of_all_s(self.roots), time.monotonic()
            await asyncio.to_thread(self._publish, messages)
            await self._await_stored()
            wall_s = time.monotonic() - began
            await self.admin.execute("checkpoint")
            after = cpu_of_all_s(self.roots)
        await self._verify()
        await asyncio.to_thread(self._purge)
        used = {name: after[name] - before[name] for name in self.roots}
        return Run(messages * self.load.samples, messages, wall_s, used, peaks)

    def _publish(self, messages: int) -> None:
        assert self.publisher.stdin is not None
        assert self.publisher.stdout is not None
        self.publisher.stdin.write(f"{messages}\n")
        self.publisher.stdin.flush()
        if self.publisher.stdout.readline() != "published\n":
            raise Failed(f"the publisher ended with status {self.publisher.wait()}")
        self.published += messages

    async def _await_stored(self) -> None:
        deadline = time.monotonic() + STORE_TIMEOUT_S
        while (stored := await stored_messages(self.connection) - self.stored_before) < (
            self.published
        ):
            if time.monotonic() > deadline or not all(map(is_alive, self.workers)):
                state = f"{stored} of {self.published} messages are stored"
                raise Failed(f"{state}; the worker's log ends:\n{tail(self.worker_log)}")
            await asyncio.sleep(POLL_S)

    async def _verify(self) -> None:
        """Raises Failed unless each generated sample is in the database, once."""
        generated = self.published * self.load.samples
        stored = await self.connection.fetchval(
            "select coalesce(sum(cardinality(values)), 0)::bigint from frames where at >= $1",
            instant(self.load.first_ms * 1000),
        )
        if stored != generated:
            raise Failed(f"{generated} samples were generated, {stored} are in the database")
        if repeated := await self.connection.fetchval("select sum(duplicates) from agents"):
            raise Failed(f"{repeated} messages came twice, though nothing had failed")

    def _purge(self) -> None:
        for partition in range(DEFAULT_PARTITIONS):
            name = partition_queue(partition)
            self.broker.api("DELETE", f"queues/{self.virtual_host}/{name}/contents")


@asynccontextmanager
async def pipeline(
    stack: Stack,
    load: Load,
    *,
    evaluator: bool,
    workers: int = 1,
    database_url: str | None = None,
) -> AsyncIterator[Pipeline]:
    """A pipeline with a virtual host and a database of its own; all of it ends with the block.

    evaluator: whether its queues get their copy of every message. database_url: a migrated
    database of the stack's, which the caller has filled and keeps.
    """
    broker, database = stack.broker(), stack.database()
    async with AsyncExitStack() as resources:
        broker_url = resources.enter_context(broker.virtual_host())
        if database_url is None:
            database_url = resources.enter_context(database.empty_database())
        name = urlsplit(database_url).path.lstrip("/")
        virtual_host = quote(urlsplit(broker_url).path.lstrip("/"), safe="")
        async with rabbit_bus(broker_url, name="bench") as bus:
            await prepare(database_url, bus)
        if not evaluator:
            broker.api("DELETE", f"bindings/{virtual_host}/e/{INTAKE}/e/{EVALUATE}/%23")
        connection = await asyncpg.connect(database_url)
        resources.push_async_callback(connection.close)
        admin = await asyncpg.connect(with_database(database.admin_url, name))
        resources.push_async_callback(admin.close)
        log = Path(resources.enter_context(tempfile.TemporaryDirectory())) / "ingest.log"
        urls = {"VERVET_BROKER_URL": broker_url, "VERVET_DATABASE_URL": database_url}
        ingest = [
            resources.enter_context(vervet(stack, "ingest", urls, log)) for _ in range(workers)
        ]
        about = map(str, (load.samples, load.hosts, load.first_ms))
        command = [sys.executable, "-m", "bench.publisher", *about]
        publisher = resources.enter_context(talking(command, {"VERVET_BROKER_URL": broker_url}))
        yield Pipeline(
            load,
            broker,
            virtual_host,
            connection,
            admin,
            publisher,
            ingest,
            log,
            {
                "publisher": [publisher.pid],
                "broker": [broker.pid()],
                "ingest": [worker.pid for worker in ingest],
                "database": [database.pid()],
            },
            await stored_messages(connection),
            database_url,
        )


async def stored_messages(connection: Connection) -> int:
    """How many messages the database has taken, those that came again included."""
    count: int = await connection.fetchval(
        "select coalesce(sum(messages + duplicates), 0)::bigint from agents"
    )
    return count


@contextmanager
def talking(
    command: Sequence[str], variables: Mapping[str, str] = {}
) -> "Iterator[subprocess.Popen[str]]":
    """A process that goes by the lines of its standard input; it ends when that does."""
    with subprocess.Popen(
        command,
        env={**os.environ, **variables},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
