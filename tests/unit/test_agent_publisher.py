"""The publisher: each message until it is confirmed, in order, whatever the broker says."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from schemas.topology import INGEST_QUEUE, INTAKE, Binding, Exchange, Queue, Topology
from services.agent import publisher as publisher_module
from services.agent.collectors import AgentFacts, gauge
from services.agent.columns import Layout
from services.agent.outgoing import compose
from services.agent.publisher import WINDOW, Publisher
from services.agent.records import Record
from services.agent.store import Store, open_store
from services.bus import Bus, Message, Refused, Unavailable, Unroutable
from services.bus_memory import memory_bus
from services.clock import now_us
from services.runtime import Context
from tests.processes import eventually

SOURCE = {"job": "node", "instance": "host-1"}
ONLY_INGEST = Topology(
    exchanges=(Exchange(INTAKE, "fanout"),),
    queues=(Queue(INGEST_QUEUE),),
    bindings=(Binding(INTAKE, INGEST_QUEUE),),
)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher_module, "backoff_s", lambda attempt: 0.001)


@dataclass
class Faulty:
    """A bus in front of another. `faults`: what happens to each publish; fine after the last.

    "lost": Unavailable, and nothing was stored. "unknown": Unavailable, though it was stored.
    """

    bus: Bus
    faults: list[str] = field(default_factory=list)
    sent: list[str] = field(default_factory=list)
    under_way: int = 0
    most_under_way: int = 0

    async def publish(self, exchange: str, key: str, message: Message) -> None:
        self.sent.append(message.message_id)
        fault = self.faults.pop(0) if self.faults else "fine"
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            if fault in ("fine", "unknown"):
                await self.bus.publish(exchange, key, message)
        finally:
            self.under_way -= 1
        if fault == "unroutable":
            raise Unroutable("no queue is bound")
        if fault == "refused":
            raise Refused("too large")
        if fault != "fine":
            raise Unavailable("the broker is away")


@dataclass
class Bench:
    """A publisher at work between a spool and a broker whose messages are taken and acked."""

    store: Store
    faulty: Faulty
    context: Context
    facts: AgentFacts
    received: list[str] = field(default_factory=list)

    async def append(self, count: int) -> None:
        at_us = now_us()
        columns = Layout("test").columns([gauge("one", "One.")(1)], at_us)
        for _ in range(count):
            await self.store.append(
                lambda epoch, seq: compose([columns], SOURCE, at_us, "msgpack", epoch, seq)
            )

    def numbers(self) -> list[int]:
        return [int(name.rpartition("/")[2]) for name in self.received]

    def done(self) -> bool:
        books = self.facts.spool
        assert books is not None
        return books.waiting.messages == 0


@asynccontextmanager
async def bench(directory: Path, faults: list[str] | None = None) -> AsyncIterator[Bench]:
    facts = AgentFacts()
    store = await open_store(directory, facts, max_bytes=64 * 1024**2, max_age=timedelta(hours=1))
    async with memory_bus() as bus:
        await bus.declare(ONLY_INGEST)
        faulty = Faulty(bus, faults or [])
        context = Context(cast(Bus, faulty))
        made = Bench(store, faulty, context, facts)

        async def take() -> None:
            async with bus.consume(INGEST_QUEUE, prefetch=100) as consumer:
                async for delivery in consumer:
                    made.received.append(delivery.message.message_id)
                    await consumer.ack([delivery])

        taking = asyncio.create_task(take())
        running = asyncio.create_task(Publisher(store, context, facts).run())
        try:
            yield made
            context.stopping.set()
            await asyncio.wait_for(running, 5)
        finally:
            taking.cancel()
            running.cancel()
            await asyncio.wait({taking, running})
            await store.close()


async def test_messages_arrive_in_order_and_leave_the_spool(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        await made.append(200)
        await eventually(made.done)
        assert made.numbers() == list(range(1, 201))
        assert made.facts.spool is not None
        assert made.facts.spool.confirmed.samples == 200


async def test_many_are_under_way_at_a_time_and_no_more_than_the_window(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        made.faulty.faults = ["lost"]
        await made.append(200)
        await eventually(made.done)
        assert 1 < made.faulty.most_under_way <= WINDOW


async def test_a_lost_message_is_sent_again_under_its_id_before_newer_ones(tmp_path: Path) -> None:
    async with bench(tmp_path, ["fine", "lost", "lost"]) as made:
        await made.append(5)
        await eventually(made.done)
        assert sorted(set(made.numbers())) == [1, 2, 3, 4, 5]
        assert made.facts.publish_failures["unavailable"] == 2
        assert len(set(made.received)) == 5


async def test_what_failed_in_different_ways_is_sent_again_in_order(tmp_path: Path) -> None:
    async with bench(tmp_path, ["lost"]) as made:
        await made.append(1)
        await eventually(made.done)
        made.faulty.faults = ["unroutable", "lost", "unroutable", "lost"]
        await made.append(4)
        await eventually(made.done)
        assert made.numbers() == [1, 2, 3, 4, 5]


async def test_a_refused_message_is_counted_and_the_others_go_on(tmp_path: Path) -> None:
    with capture_logs() as logs:
        async with bench(tmp_path, ["fine", "refused"]) as made:
            await made.append(5)
            await eventually(made.done)
            assert made.facts.spool is not None
            assert made.facts.spool.dropped["refused"].messages == 1
            assert made.facts.publish_failures["refused"] == 1
            assert made.numbers() == [1, 3, 4, 5]
    assert [line["reason"] for line in logs if line["event"] == "message refused"] == ["too large"]


async def test_without_a_topology_it_waits_and_says_for_what(tmp_path: Path) -> None:
    with capture_logs() as logs:
        async with bench(tmp_path, ["unroutable"] * 50) as made:
            await made.append(1)
            await eventually(lambda: "broker" in made.context.health.reasons())
            assert "vervet migrate" in made.context.health.reasons()["broker"]
            await eventually(made.done)
            assert made.context.health.is_ready()
    warnings = [line for line in logs if line["log_level"] == "warning"]
    assert len(warnings) == 1, "the same reason is told once"


async def test_a_message_appended_while_others_wait_for_confirms_is_sent_at_once(
    tmp_path: Path,
) -> None:
    release = asyncio.Event()

    class Slow(Faulty):
        async def publish(self, exchange: str, key: str, message: Message) -> None:
            self.sent.append(message.message_id)
            if len(self.sent) == 1:
                await release.wait()

    async with bench(tmp_path) as made:
        slow = Slow(made.faulty.bus)
        made.context.bus = cast(Bus, slow)
        await made.append(1)
        await eventually(lambda: len(slow.sent) == 1)
        await made.append(1)
        await eventually(lambda: len(slow.sent) == 2)
        release.set()
        await eventually(made.done)


async def test_one_that_waits_for_a_connection_does_not_overtake_one_that_failed(
    tmp_path: Path,
) -> None:
    cut, back = asyncio.Event(), asyncio.Event()
    stored: list[int] = []

    class Reconnecting(Faulty):
        async def publish(self, exchange: str, key: str, message: Message) -> None:
            self.sent.append(message.message_id)
            if len(self.sent) in (1, 3):
                await cut.wait()
                raise Unavailable("connection lost")
            await back.wait()
            stored.append(int(message.message_id.rpartition("/")[2]))

    async with bench(tmp_path) as made:
        bus = Reconnecting(made.faulty.bus)
        made.context.bus = cast(Bus, bus)
        await made.append(1)
        await eventually(lambda: len(bus.sent) == 1)
        await made.append(1)
        await eventually(lambda: len(bus.sent) == 2)
        cut.set()
        await eventually(lambda: len(bus.sent) == 6)
        back.set()
        await eventually(made.done)
    assert stored == [1, 2]


async def test_it_rests_while_nothing_arrives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    take = Store.take

    async def counting(store: Store, window: int, max_bytes: int) -> list[Record]:
        nonlocal asked
        asked += 1
        return await take(store, window, max_bytes)

    monkeypatch.setattr(Store, "take", counting)
    async with bench(tmp_path) as made:
        await made.append(1)
        await eventually(made.done)
        before = asked
        for _ in range(100):
            await asyncio.sleep(0.001)
        assert asked - before <= 2


async def test_it_stops_at_once_while_the_broker_is_away(tmp_path: Path) -> None:
    async with bench(tmp_path, ["lost"] * 100_000) as made:
        await made.append(3)
        await eventually(lambda: made.facts.publish_failures["unavailable"] > 3)
    again = await open_store(
        tmp_path, made.facts, max_bytes=64 * 1024**2, max_age=timedelta(hours=1)
    )
    assert [record.seq for record in await again.take(10, 1 << 30)] == [1, 2, 3]
    await again.close()


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.sampled_from(["fine", "lost", "unknown", "unroutable", "refused"]), max_size=60),
    st.lists(st.integers(1, 20), min_size=1, max_size=3),
)
def test_whatever_happens_each_message_is_stored_or_counted(
    faults: list[str], batches: list[int]
) -> None:
    async def run(directory: Path) -> None:
        async with bench(directory, list(faults)) as made:
            for count in batches:
                await made.append(count)
            await eventually(made.done)
            books = made.facts.spool
            assert books is not None
            refused = books.dropped["refused"].messages if "refused" in books.dropped else 0
            stored = set(made.numbers())
            missing = set(range(1, sum(batches) + 1)) - stored
            assert len(missing) <= refused
            if {"fine", "refused"}.issuperset(faults):  # else one refused may be there already
                assert len(missing) == refused
            first_of_each = list(dict.fromkeys(made.numbers()))
            if "lost" not in faults and "unroutable" not in faults:
                assert first_of_each == sorted(first_of_each)

    with tempfile.TemporaryDirectory() as name:
        asyncio.run(run(Path(name)))
