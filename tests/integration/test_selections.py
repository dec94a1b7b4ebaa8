"""What a selector selected is remembered while nothing else is registered, and no longer."""

import asyncio
from datetime import timedelta

import pytest

from engine.promql import parse
from engine.promql.nodes import Selector
from schemas.samples import SampleMessage
from services.clock import now_us
from services.database import Pool
from services.frames import Reader, Snapshot
from services.ingest import registry
from services.ingest.batch import Layouts, Received, Window, receive
from services.ingest.store import Store
from tests.builders import delivery, sample_message

HOUR_US = 3_600_000_000
T0 = now_us() // HOUR_US * HOUR_US - 6 * HOUR_US
WINDOW = Window(timedelta(days=30), timedelta(days=1))
TEMPERATURE = parse("temperature").tree


def received(message: SampleMessage) -> Received:
    return receive(delivery(message), message, Layouts(), WINDOW.bounds_us(now_us()))


def of_host(name: str) -> Received:
    """A message of a host that was never seen."""
    return received(sample_message([1.0, 2.0], instance=name, at_us=T0 + 1))


async def instances(snapshot: Snapshot) -> set[str]:
    """Hosts of which a snapshot finds samples."""
    assert isinstance(TEMPERATURE, Selector)
    blocks = await snapshot.read(TEMPERATURE.matchers, T0, T0 + HOUR_US)
    return {labels["instance"] for block in blocks for labels in block.labels}


async def seen(reader: Reader, *, alone: bool = True) -> set[str]:
    """The same of a query of its own."""
    async with reader.snapshot(alone=alone) as snapshot:
        return await instances(snapshot)


async def test_what_was_asked_before_is_read_by_one_statement(pool: Pool) -> None:
    await Store(pool).write([of_host("a")])
    reader = Reader(pool)
    counts = []
    for _ in range(4):
        statements: list[object] = []
        async with reader.snapshot(alone=True) as snapshot:
            with snapshot.connection.query_logger(statements.append):
                assert await instances(snapshot) == {"a"}
        counts.append(len(statements))
    assert counts[0] > counts[-1]
    assert counts[2:] == [1, 1]


@pytest.mark.parametrize("alone", [True, False])
async def test_what_is_registered_is_in_the_next_answer(pool: Pool, alone: bool) -> None:
    reader, expected = Reader(pool), set()
    for name in ("a", "b", "c"):
        await Store(pool).write([of_host(name)])
        expected.add(name)
        for _ in range(3):
            assert await seen(reader, alone=alone) == expected


async def test_a_snapshot_goes_by_what_was_registered_when_it_began(pool: Pool) -> None:
    await Store(pool).write([of_host("a")])
    reader = Reader(pool)
    async with reader.snapshot() as before:
        assert await instances(before) == {"a"}
        await Store(pool).write([of_host("b")])
        for _ in range(2):
            assert await seen(reader) == {"a", "b"}
            assert await instances(before) == {"a"}
    assert await seen(reader) == {"a", "b"}


async def test_registrations_at_once_are_each_seen_when_they_are_committed(pool: Pool) -> None:
    await Store(pool).write([of_host("a")])
    reader = Reader(pool)
    one, other = of_host("b"), of_host("c")
    async with pool.acquire() as slow:
        transaction = slow.transaction()
        await transaction.start()
        await registry.register(slow, [one.frames[0].layout])
        quick = asyncio.ensure_future(Store(pool).write([other]))
        for _ in range(3):
            assert await seen(reader) == {"a"}
        await transaction.commit()
    await quick
    for _ in range(2):
        assert await seen(reader) == {"a", "c"}
    await Store(pool).write([one])
    for _ in range(2):
        assert await seen(reader) == {"a", "b", "c"}


async def test_what_is_collected_is_no_longer_remembered(pool: Pool) -> None:
    for name in ("a", "b"):
        await Store(pool).write([of_host(name)])
    reader = Reader(pool)
    for _ in range(2):
        await seen(reader)
    before = reader.selections.registered
    await pool.execute("delete from layout_shapes where layout_id = 1")
    assert len(await seen(reader)) == 1
    assert reader.selections.registered != before


async def test_a_reader_that_was_prepared_remembers_from_its_first_query_on(pool: Pool) -> None:
    await Store(pool).write([of_host("a")])
    reader = Reader(pool)
    async with reader.snapshot(alone=True) as snapshot:
        await snapshot.prepare()
    assert await seen(reader) == {"a"}
    statements: list[object] = []
    async with reader.snapshot(alone=True) as snapshot:
        with snapshot.connection.query_logger(statements.append):
            assert await instances(snapshot) == {"a"}
    assert len(statements) == 1
