"""Faults on the way from the bus to the database: nothing lost, nothing doubled.

The test's own list of what it published is the truth that the database is held to.
"""

import asyncio
from pathlib import Path

from pydantic import SecretStr

from schemas.samples import SampleMessage
from schemas.topology import DEAD_QUEUE, INTAKE
from services.bus import Bus, Unavailable
from services.bus_rabbit import rabbit_bus
from services.clock import now_us
from services.database import Pool, open_pool
from services.ingest.service import serve
from services.ingest.settings import IngestSettings
from services.migrate import prepare
from services.runtime import Context
from tests.builders import bus_message, sample_message
from tests.processes import eventually, vervet
from tests.stack.broker import Broker
from tests.stack.database import Database

EPOCH_US = 1_000_000


def messages(count: int) -> list[SampleMessage]:
    """Of five hosts in turn; the sample's value is the message's seq, so that each can be found."""
    start = now_us() - count * EPOCH_US
    return [
        sample_message(
            [float(n // 5), 1.0], instance=f"host-{n % 5}", seq=n // 5, at_us=start + n * EPOCH_US
        )
        for n in range(count)
    ]


async def publish(bus: Bus, message: SampleMessage) -> None:
    """As an agent does: the same message again until it is confirmed."""
    while True:
        try:
            await bus.publish(INTAKE, "node.host", bus_message(message))
            return
        except Unavailable:
            await asyncio.sleep(0.1)


async def publish_all(bus: Bus, sent: list[SampleMessage]) -> None:
    window = asyncio.Semaphore(50)

    async def one(message: SampleMessage) -> None:
        async with window:
            await publish(bus, message)

    await asyncio.gather(*(one(message) for message in sent))


async def everything_is_stored(pool: Pool, sent: list[SampleMessage]) -> bool:
    count = await pool.fetchval("select count(*) from frames")
    return int(count) == len(sent)


async def assert_stored_once(pool: Pool, sent: list[SampleMessage]) -> None:
    """lost = generated - stored is 0, and no (host, epoch, seq) is there twice."""
    rows = await pool.fetch(
        """select labels->>'instance' as instance, value::bigint as seq from samples
           where labels->>'room' = 'a'"""
    )
    stored = sorted((row["instance"], row["seq"]) for row in rows)
    assert stored == sorted((one.source["instance"], one.seq) for one in sent)
    gaps = await pool.fetchval(
        "select sum(last_seq - first_seq + 1 - messages) from agents where epoch = 'e1'"
    )
    assert gaps == 0


async def test_killed_between_commit_and_ack_it_stores_no_row_twice(
    broker_url: str, database_url: str, tmp_path: Path
) -> None:
    await crash_and_restart("ingest.after_commit", broker_url, database_url, tmp_path)


async def test_killed_before_commit_it_loses_nothing(
    broker_url: str, database_url: str, tmp_path: Path
) -> None:
    await crash_and_restart("ingest.before_commit", broker_url, database_url, tmp_path)


async def crash_and_restart(
    failpoint: str, broker_url: str, database_url: str, tmp_path: Path
) -> None:
    servers = {"broker_url": broker_url, "database_url": database_url}
    log = tmp_path / "log"
    sent = messages(60)
    async with rabbit_bus(broker_url, name="test") as bus, open_pool(database_url) as pool:
        await prepare(database_url, bus)
        async with vervet("ingest", log=log, failpoint=failpoint, **servers) as doomed:
            await publish_all(bus, sent)
            assert await doomed.ended() == -9
        async with vervet("ingest", log=log, **servers) as running:
            await eventually(lambda: everything_is_stored(pool, sent), running.text)
            await eventually(lambda: queue_is_settled(bus), running.text)
            await assert_stored_once(pool, sent)


async def queue_is_settled(bus: Bus) -> bool:
    return await bus.depth("ingest") == 0


async def test_a_broker_killed_under_load_loses_and_doubles_nothing(
    own_broker: Broker, database_url: str
) -> None:
    sent = messages(600)
    async with rabbit_bus(own_broker.url, name="test") as bus, open_pool(database_url) as pool:
        await prepare(database_url, bus)
        context = Context(bus)
        settings = IngestSettings(database_url=SecretStr(database_url))
        async with asyncio.TaskGroup() as group:
            service = group.create_task(serve(settings, context))
            publishing = group.create_task(publish_all(bus, sent[:300]))
            await eventually(lambda: some_stored(pool))
            await asyncio.to_thread(own_broker.kill)
            late = group.create_task(publish_all(bus, sent[300:]))
            await asyncio.to_thread(own_broker.start)
            await asyncio.gather(publishing, late)
            await eventually(lambda: everything_is_stored(pool, sent), within_s=60)
            context.stopping.set()
            await service
        await assert_stored_once(pool, sent)


async def some_stored(pool: Pool) -> bool:
    return bool(await pool.fetchval("select count(*) > 0 from frames"))


async def test_a_database_killed_under_load_loses_and_doubles_nothing(
    broker_url: str, own_database: Database
) -> None:
    sent = messages(300)
    async with rabbit_bus(broker_url, name="test") as bus:
        await prepare(own_database.url, bus)
        context = Context(bus)
        settings = IngestSettings(database_url=SecretStr(own_database.url))
        async with asyncio.TaskGroup() as group:
            service = group.create_task(serve(settings, context))
            await publish_all(bus, sent[:100])
            await asyncio.to_thread(own_database.kill)
            await publish_all(bus, sent[100:])
            await eventually(lambda: "database" in context.health.reasons())
            await asyncio.to_thread(own_database.start)
            async with open_pool(own_database.url) as pool:
                await eventually(lambda: everything_is_stored(pool, sent), within_s=60)
                await assert_stored_once(pool, sent)
            assert context.health.is_ready()
            context.stopping.set()
            await service
        assert await bus.depth(DEAD_QUEUE) == 0


async def test_it_waits_for_what_is_absent_and_says_for_what(
    own_broker: Broker, empty_database_url: str, tmp_path: Path
) -> None:
    await asyncio.to_thread(own_broker.stop)
    servers = {"broker_url": own_broker.url, "database_url": empty_database_url}
    async with vervet("ingest", log=tmp_path / "log", **servers) as ingest:
        await ingest.until_waiting_for("waiting for broker: ")
        assert ingest.get("/-/healthy")[0] == 200
        await asyncio.to_thread(own_broker.start)
        await ingest.until_waiting_for("vervet migrate")
        async with rabbit_bus(own_broker.url, name="test") as bus:
            await prepare(empty_database_url, bus)
            await ingest.until_ready()
            sent = messages(5)
            await publish_all(bus, sent)
            async with open_pool(empty_database_url) as pool:
                await eventually(lambda: everything_is_stored(pool, sent), ingest.text)
    assert ingest.process.returncode == 0
