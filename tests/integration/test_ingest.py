"""Ingest on a real database: what is stored, once; what is refused, alone."""

import asyncio
from datetime import timedelta

import pytest
from pydantic import SecretStr

from engine.promql import Matcher, MatchOp
from schemas.events import AgentStatus, encode_status
from schemas.layouts import Series
from schemas.samples import SAMPLES_MSGPACK
from schemas.topology import DEAD_QUEUE, EVENTS, INTAKE
from schemas.values import ABSENT, ABSENT_BITS, STALE, bits
from services.bus import Bus, Message
from services.clock import instant, now_us
from services.database import Pool, open_pool
from services.ingest.batch import Layouts, Received, Window, receive
from services.ingest.service import serve
from services.ingest.settings import IngestSettings
from services.ingest.store import Store
from services.runtime import Context
from tests.builders import bus_message, delivery, sample_message
from tests.reading import read

WINDOW = Window(timedelta(days=366), timedelta(days=1))


@pytest.fixture
def pool(pool_of_either: Pool) -> Pool:
    """Every test here runs on TimescaleDB and on plain PostgreSQL."""
    return pool_of_either


def received(*messages: object) -> list[Received]:
    layouts = Layouts()
    bounds = WINDOW.bounds_us(now_us())
    return [receive(delivery(one), one, layouts, bounds) for one in messages]  # type: ignore[arg-type]


async def stored(pool: Pool) -> list[tuple[object, ...]]:
    rows = await pool.fetch(
        """select labels->>'instance', labels->>'room', value from samples order by 1, 2, at"""
    )
    return [tuple(row) for row in rows]


async def test_a_batch_written_twice_is_stored_once(pool: Pool) -> None:
    store = Store(pool)
    at = now_us()
    batch = received(
        sample_message([1.0, 2.0], at_us=at),
        sample_message([3.0, 4.0], at_us=at, instance="host-2"),
    )
    assert await store.write(batch) == 0
    assert await store.write(batch) == 2
    assert await stored(pool) == [
        ("host-1", "a", 1.0),
        ("host-1", "b", 2.0),
        ("host-2", "a", 3.0),
        ("host-2", "b", 4.0),
    ]
    row = await pool.fetchrow("select messages, duplicates, samples from agents limit 1")
    assert tuple(row) == (1, 1, 2)


async def test_a_second_frame_only_fills_absent_cells(pool: Pool) -> None:
    store = Store(pool)
    at = now_us()
    await store.write(received(sample_message([1.0, ABSENT], at_us=at)))
    await store.write(received(sample_message([9.0, 2.0], at_us=at, seq=1)))
    assert await stored(pool) == [("host-1", "a", 1.0), ("host-1", "b", 2.0)]


async def test_two_frames_of_one_key_in_a_batch_are_merged(pool: Pool) -> None:
    at = now_us()
    await Store(pool).write(
        received(
            sample_message([1.0, ABSENT], at_us=at), sample_message([ABSENT, 2.0], at_us=at, seq=1)
        )
    )
    assert await stored(pool) == [("host-1", "a", 1.0), ("host-1", "b", 2.0)]


async def test_absent_cells_and_stale_markers_keep_their_bits(pool: Pool) -> None:
    await Store(pool).write(received(sample_message([ABSENT, STALE])))
    matchers = [Matcher("__name__", MatchOp.EQUAL, "temperature")]
    (block,) = await read(pool, matchers, 0, now_us() + 1_000_000)
    assert [bits(value) for value in block.values[0]] == [ABSENT_BITS, bits(STALE)]
    assert await stored(pool) == []


async def test_rows_of_many_days_find_their_partition(pool: Pool) -> None:
    day = 86_400_000_000
    at = now_us() - 40 * day
    await Store(pool).write(received(sample_message(*[[1.0, 2.0]] * 20, at_us=at, step_us=day)))
    assert await pool.fetchval("select count(*) from frames") == 20


async def test_a_selector_reads_few_columns_of_a_wide_frame(pool: Pool) -> None:
    series = [Series("m", {"n": str(n)}) for n in range(50)]
    rows = [[float(n + 100 * row) for n in range(50)] for row in range(3)]
    at = now_us() - 10_000_000
    await Store(pool).write(received(sample_message(*rows, at_us=at, series=series)))
    matchers = [Matcher("n", MatchOp.REGEX, "4[12]")]
    (block,) = await read(pool, matchers, at - 1, at + 1_000_000)
    assert block.at.tolist() == [at, at + 1_000_000]
    assert block.values.tolist() == [[41.0, 42.0], [141.0, 142.0]]
    assert block.labels[0] == {"__name__": "m", "n": "41", "job": "node", "instance": "host-1"}


async def test_workers_that_write_the_same_at_once_agree(pool: Pool) -> None:
    at = now_us()
    messages = [
        sample_message([float(n), 2.0], at_us=at + n, instance=f"host-{n % 5}", seq=n)
        for n in range(40)
    ]
    stores = [Store(pool) for _ in range(4)]
    await asyncio.gather(
        *(store.write(received(*messages[:: 1 - 2 * (n % 2)])) for n, store in enumerate(stores))
    )
    assert await pool.fetchval("select count(*) from frames") == 40
    assert await pool.fetchval("select count(*) from layouts") == 5
    assert await pool.fetchval("select count(*) from series") == 10
    assert await pool.fetchval("select sum(messages) from agents") == 40


async def drain(bus: Bus, queue: str) -> None:
    """Settle what arrives in a queue that this test is not about."""
    async with bus.consume(queue, prefetch=100) as consumer:
        while True:
            await consumer.ack([await consumer.receive()])


async def test_the_service_stores_and_refuses_one_message_at_a_time(
    bus: Bus, database_url: str
) -> None:
    settings = IngestSettings(database_url=SecretStr(database_url))
    context = Context(bus)
    bad = Message(b"\xc1", SAMPLES_MSGPACK, "bad/1", {"instance": "host-1"})
    async with asyncio.TaskGroup() as group:
        service = group.create_task(serve(settings, context))
        other = group.create_task(drain(bus, "evaluate.0"))
        async with asyncio.timeout(20):
            await asyncio.gather(
                bus.publish(INTAKE, "node.host-1", bus_message(sample_message([1.0, 2.0]))),
                bus.publish(INTAKE, "node.host-1", bad),
                bus.publish(INTAKE, "node.host-1", bus_message(sample_message([3.0, 4.0], seq=1))),
            )
            status = AgentStatus(
                state="started",
                source={"job": "node", "instance": "host-1"},
                epoch="e1",
                at=instant(now_us()),
            )
            await bus.publish(
                EVENTS, status.routing_key, Message(encode_status(status), "application/json", "s")
            )
            async with bus.consume(DEAD_QUEUE, prefetch=1) as dead:
                letter = await dead.receive()
                await dead.ack([letter])
        context.stopping.set()
        await service
        other.cancel()
    assert letter.message.headers["x-queue"] == "ingest"
    assert str(letter.message.headers["x-reason"]).startswith("body:")
    async with open_pool(database_url) as pool:
        assert await pool.fetchval("select sum(messages) from agents") == 2
        assert await pool.fetchval("select state from agent_status") == "started"
