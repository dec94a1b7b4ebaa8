"""What every bus driver promises. Each test runs on RabbitMQ and on the bus in memory."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

import pytest
from prometheus_client import REGISTRY

from schemas.topology import (
    DEAD,
    DEAD_QUEUE,
    DELIVERY_LIMIT,
    INTAKE,
    SAMPLES,
    Binding,
    Exchange,
    Queue,
    Topology,
    topology,
)
from services.bus import Bus, Consumer, Delivery, Message, Refused, TopologyMissing, Unroutable
from services.bus_memory import memory_bus
from services.bus_rabbit import rabbit_bus

WORK = "work"
SPREAD = "spread"
PARTITIONS = [f"part.{p}" for p in range(4)]
TOPOLOGY = Topology(
    exchanges=(
        Exchange(WORK, "topic"),
        Exchange(SPREAD, "x-consistent-hash", hash_header="instance"),
        Exchange(DEAD, "fanout"),
    ),
    queues=(
        Queue("jobs"),
        Queue("ordered", single_active=True),
        *(Queue(name, single_active=True) for name in PARTITIONS),
        Queue(DEAD_QUEUE, dead_letters=False),
    ),
    bindings=(
        Binding(WORK, "jobs", key="job.#"),
        Binding(WORK, "ordered", key="ordered.*"),
        Binding(WORK, SPREAD, key="spread.#", to_exchange=True),
        *(Binding(SPREAD, name, key="1") for name in PARTITIONS),
        Binding(DEAD, DEAD_QUEUE),
    ),
)
SOON_S = 20.0

Connect = Callable[[], AbstractAsyncContextManager[Bus]]


@pytest.fixture(params=["memory", pytest.param("rabbit", marks=pytest.mark.broker)])
def bus_url(request: pytest.FixtureRequest) -> str | None:
    """Address of an empty virtual host; None for the bus in memory."""
    return None if request.param == "memory" else str(request.getfixturevalue("broker_url"))


@pytest.fixture
async def connect(bus_url: str | None) -> AsyncIterator[Connect]:
    """Opens one more connection to the same broker."""
    if bus_url is not None:
        url = bus_url
        yield lambda: rabbit_bus(url, name="contract")
        return
    async with memory_bus() as shared:

        @asynccontextmanager
        async def connect_again() -> AsyncIterator[Bus]:
            yield shared

        yield connect_again


@pytest.fixture
async def bus(connect: Connect) -> AsyncIterator[Bus]:
    async with connect() as opened:
        await eventually(lambda: opened.declare(TOPOLOGY))
        yield opened


async def eventually(attempt: Callable[[], Awaitable[None]]) -> None:
    """Repeat until it raises no more, for SOON_S at most."""
    deadline = time.monotonic() + SOON_S
    while True:
        try:
            return await attempt()
        except Exception:
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(0.05)


def message(number: int, instance: str = "a") -> Message:
    return Message(
        b"%d" % number, "text/plain", f"id/{number}", {"instance": instance, "n": number}
    )


def number(delivery: Delivery) -> int:
    return int(delivery.message.body)


async def receive(consumer: Consumer, wanted: int) -> list[Delivery]:
    async with asyncio.timeout(SOON_S):
        return [await consumer.receive() for _ in range(wanted)]


@asynccontextmanager
async def published(bus: Bus, key: str, numbers: Iterable[int]) -> AsyncIterator[None]:
    """Publish in the background, in order; leaving waits until all are confirmed.

    In memory that is when the test has settled them, so it settles inside."""
    async with asyncio.TaskGroup() as group:
        for n in numbers:
            group.create_task(bus.publish(WORK, key, message(n)))
        yield


async def drain(bus: Bus, queue: str, wanted: int) -> list[Delivery]:
    async with bus.consume(queue, prefetch=wanted) as consumer:
        deliveries = await receive(consumer, wanted)
        await consumer.ack(deliveries)
    return deliveries


async def assert_depth(bus: Bus, queue: str, wanted: int) -> None:
    async def has_depth() -> None:
        assert await bus.depth(queue) == wanted

    await eventually(has_depth)


def counted(name: str) -> float:
    return REGISTRY.get_sample_value(f"vervet_bus_{name}_total") or 0.0


async def test_a_consumer_gets_what_was_published(bus: Bus) -> None:
    async with published(bus, "job.one", [7]):
        (delivery,) = await drain(bus, "jobs", 1)
    assert delivery.message == message(7)
    assert (delivery.exchange, delivery.routing_key) == (WORK, "job.one")
    assert not delivery.redelivered


async def test_a_publish_returns_once_it_is_confirmed(bus: Bus) -> None:
    before = counted("published")
    async with bus.consume("jobs", prefetch=1) as consumer, asyncio.TaskGroup() as group:
        group.create_task(bus.publish(WORK, "job", message(1)))
        await consumer.ack(await receive(consumer, 1))
    assert counted("published") == before + 1


async def test_an_empty_body_and_a_large_one_arrive_unchanged(bus: Bus) -> None:
    large = bytes(range(256)) * 4000
    async with bus.consume("jobs", prefetch=2) as consumer, asyncio.TaskGroup() as group:
        group.create_task(bus.publish(WORK, "job", Message(b"", "a/b", "empty")))
        group.create_task(bus.publish(WORK, "job", Message(large, "a/b", "large")))
        deliveries = await receive(consumer, 2)
        await consumer.ack(deliveries)
    assert {d.message.message_id: d.message.body for d in deliveries} == {
        "empty": b"",
        "large": large,
    }


async def test_a_message_that_no_queue_is_bound_for_is_unroutable(bus: Bus) -> None:
    with pytest.raises(Unroutable, match=r"other\.key"):
        await bus.publish(WORK, "other.key", message(1))


async def test_what_amqp_cannot_carry_is_refused(bus: Bus) -> None:
    with pytest.raises(Refused, match="body"):
        await bus.publish(WORK, "job", Message(bytes(16 * 1024**2 + 1), "a/b", "large"))
    with pytest.raises(Refused, match="routing key"):
        await bus.publish(WORK, "ä" * 128, message(1))
    with pytest.raises(Refused, match="message id"):
        await bus.publish(WORK, "job", Message(b"", "a/b", "x" * 256))


async def test_an_exchange_that_is_not_declared_is_unroutable_and_harms_no_other(bus: Bus) -> None:
    async with published(bus, "job.one", range(20)):
        with pytest.raises(Unroutable, match="absent"):
            await bus.publish("absent", "key", message(1))
        await drain(bus, "jobs", 20)


async def test_what_is_acked_is_gone_and_what_is_not_comes_again(
    connect: Connect, bus: Bus
) -> None:
    async with published(bus, "job.one", range(10)):
        async with connect() as dying, dying.consume("jobs", prefetch=10) as consumer:
            deliveries = await receive(consumer, 10)
            await consumer.ack(deliveries[:4])
        again = await drain(bus, "jobs", 6)
    assert sorted(map(number, again)) == [4, 5, 6, 7, 8, 9]
    assert all(delivery.redelivered for delivery in again)
    await assert_depth(bus, "jobs", 0)


async def test_a_batch_is_acked_in_any_order_and_twice(bus: Bus) -> None:
    async with published(bus, "job.one", range(8)):
        async with bus.consume("jobs", prefetch=8) as consumer:
            deliveries = await receive(consumer, 8)
            await consumer.ack([deliveries[6], deliveries[1], deliveries[3]])
            await consumer.ack(deliveries[:4])
            await consumer.ack([])
        again = await drain(bus, "jobs", 3)
    assert sorted(map(number, again)) == [4, 5, 7]


async def test_at_most_prefetch_deliveries_are_unsettled(bus: Bus) -> None:
    async with published(bus, "job.one", range(5)), bus.consume("jobs", prefetch=2) as consumer:
        first = await receive(consumer, 2)
        await assert_depth(bus, "jobs", 3)
        await consumer.ack(first)
        await consumer.ack(await receive(consumer, 2))
        await consumer.ack(await receive(consumer, 1))


async def test_a_rejected_message_is_in_the_dead_queue_with_its_reason(bus: Bus) -> None:
    before = counted("rejected")
    async with published(bus, "job.one", [1, 2]), bus.consume("jobs", prefetch=2) as consumer:
        bad, good = await receive(consumer, 2)
        await consumer.reject(bad, "layout: " + "x" * 500)
        await consumer.ack([good])
    (dead,) = await drain(bus, DEAD_QUEUE, 1)
    assert dead.message.body == b"1"
    assert dead.message.message_id == "id/1"
    assert dead.message.headers == {
        "instance": "a",
        "n": 1,
        "x-reason": ("layout: " + "x" * 500)[:256],
        "x-queue": "jobs",
        "x-exchange": WORK,
        "x-routing-key": "job.one",
    }
    await assert_depth(bus, "jobs", 0)
    assert counted("rejected") == before + 1


async def test_a_retried_message_comes_again(bus: Bus) -> None:
    async with published(bus, "job.one", [1]), bus.consume("jobs", prefetch=1) as consumer:
        (first,) = await receive(consumer, 1)
        await consumer.retry(first)
        (second,) = await receive(consumer, 1)
        await consumer.ack([second])
    assert (first.redelivered, second.redelivered) == (False, True)
    assert second.message == first.message


async def test_a_message_that_is_given_back_too_often_becomes_a_dead_letter(bus: Bus) -> None:
    async with published(bus, "job.one", [1]), bus.consume("jobs", prefetch=1) as consumer:
        for _ in range(DELIVERY_LIMIT + 1):
            await consumer.retry((await receive(consumer, 1))[0])
        (dead,) = await drain(bus, DEAD_QUEUE, 1)
    assert dead.message.body == b"1"
    assert dead.message.headers["x-first-death-reason"] == "delivery_limit"
    assert dead.message.headers["x-first-death-queue"] == "jobs"
    await assert_depth(bus, "jobs", 0)


async def test_competing_consumers_share_a_queue(connect: Connect, bus: Bus) -> None:
    async with AsyncExitStack() as stack:
        other = await stack.enter_async_context(connect())
        left = await stack.enter_async_context(bus.consume("jobs", prefetch=2))
        right = await stack.enter_async_context(other.consume("jobs", prefetch=2))
        shares: dict[str, list[int]] = {"left": [], "right": []}

        async def work(name: str, consumer: Consumer) -> None:
            async for delivery in consumer:
                shares[name].append(number(delivery))
                await consumer.ack([delivery])

        workers = [asyncio.create_task(work(*pair)) for pair in (("left", left), ("right", right))]
        async with published(bus, "job.one", range(100)):
            pass

        async def all_arrived() -> None:
            assert sorted(shares["left"] + shares["right"]) == list(range(100))

        await eventually(all_arrived)
        for worker in workers:
            worker.cancel()
        await asyncio.wait(workers)
    assert min(len(shares["left"]), len(shares["right"])) >= 20


async def test_one_consumer_at_a_time_and_the_next_takes_over_in_order(
    connect: Connect, bus: Bus
) -> None:
    async with connect() as other, AsyncExitStack() as leaving:
        active = await leaving.enter_async_context(bus.consume("ordered", prefetch=10))
        async with (
            other.consume("ordered", prefetch=50) as standby,
            published(bus, "ordered.x", range(30)),
        ):
            first = await receive(active, 10)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(standby.receive(), 0.3)
            await active.ack(first[:5])
            await leaving.aclose()
            second = await receive(standby, 25)
            await standby.ack(second)
    assert [number(d) for d in first] == list(range(10))
    assert [number(d) for d in second] == list(range(5, 30))
    assert all(d.redelivered for d in second[:5])
    assert not any(d.redelivered for d in second[10:])


async def test_a_hash_exchange_keeps_a_header_on_one_queue_and_spreads_many(bus: Bus) -> None:
    seen: dict[str, Counter[str]] = {name: Counter() for name in PARTITIONS}

    async def work(name: str, consumer: Consumer) -> None:
        async for delivery in consumer:
            seen[name][str(delivery.message.headers["instance"])] += 1
            await consumer.ack([delivery])

    async with AsyncExitStack() as stack:
        workers = []
        for name in PARTITIONS:
            consumer = await stack.enter_async_context(bus.consume(name, prefetch=20))
            workers.append(asyncio.create_task(work(name, consumer)))
        async with asyncio.TaskGroup() as group:
            for n in range(200):
                sent = message(n, instance=f"host-{n % 50}")
                group.create_task(bus.publish(WORK, f"spread.host-{n % 50}", sent))

        async def all_arrived() -> None:
            assert sum(count.total() for count in seen.values()) == 200

        await eventually(all_arrived)
        for worker in workers:
            worker.cancel()
        await asyncio.wait(workers)
    assert all(seen.values()), "a partition got nothing"
    assert sum(seen.values(), Counter()) == {f"host-{n}": 4 for n in range(50)}
    assert sum(len(count) for count in seen.values()) == 50


@pytest.mark.parametrize(
    ("pattern", "taken"),
    [
        ("live.*.up", {"live.a.up"}),
        ("live.#", {"live", "live.a", "live.a.up", "live.a.b.up"}),
        ("#.up", {"live.a.up", "live.a.b.up"}),
        ("live.#.up", {"live.a.up", "live.a.b.up"}),
        ("live.a", {"live.a"}),
        ("*.*", {"live.a"}),
        ("#", {"live", "live.a", "live.a.up", "live.a.b.up"}),
    ],
)
async def test_a_live_stream_gets_what_its_pattern_matches(
    bus: Bus, pattern: str, taken: set[str]
) -> None:
    async with bus.subscribe(WORK, [pattern, "end"], max_length=10) as live:
        for n, key in enumerate(("live", "live.a", "live.a.up", "live.a.b.up")):
            if key in taken:
                await bus.publish(WORK, key, message(n))
            else:
                with pytest.raises(Unroutable):
                    await bus.publish(WORK, key, message(n))
        await bus.publish(WORK, "end", message(9))
        deliveries = await receive(live, len(taken) + 1)
    assert {d.routing_key for d in deliveries} == taken | {"end"}


async def test_a_live_stream_keeps_the_newest_when_nobody_reads_it(bus: Bus) -> None:
    delivered, dropped = counted("delivered"), counted("dropped")
    async with bus.subscribe(WORK, ["live"], max_length=5) as live:
        for n in range(20):
            await bus.publish(WORK, "live", message(n))

        async def all_arrived() -> None:
            assert counted("delivered") == delivered + 20

        await eventually(all_arrived)
        assert [number(d) for d in await receive(live, 5)] == [15, 16, 17, 18, 19]
    assert counted("dropped") == dropped + 15


async def test_a_live_stream_ends_with_its_context(bus: Bus) -> None:
    async with bus.subscribe(WORK, ["live"], max_length=5) as live:
        await bus.publish(WORK, "live", message(1))
        (delivery,) = await receive(live, 1)
        await live.ack([delivery])

    async def is_unroutable() -> None:
        with pytest.raises(Unroutable):
            await bus.publish(WORK, "live", message(2))

    await eventually(is_unroutable)


async def test_cancelling_a_receive_loses_nothing(bus: Bus) -> None:
    got: list[int] = []
    async with (
        published(bus, "job.one", range(300)),
        bus.consume("jobs", prefetch=300) as consumer,
        asyncio.timeout(SOON_S),
    ):
        while len(got) < 300:
            waiting = asyncio.create_task(consumer.receive())
            for _ in range(len(got) % 3):
                await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait((waiting,))
            delivery = await consumer.receive() if waiting.cancelled() else waiting.result()
            got.append(number(delivery))
            await consumer.ack([delivery])
    assert got == list(range(300))


async def test_depth_counts_what_waits(bus: Bus) -> None:
    async with published(bus, "job.one", range(3)):
        await assert_depth(bus, "jobs", 3)
        await drain(bus, "jobs", 3)
    await assert_depth(bus, "jobs", 0)
    with pytest.raises(TopologyMissing, match="absent"):
        await bus.depth("absent")


async def test_declaring_twice_changes_nothing(bus: Bus) -> None:
    async with published(bus, "job.one", [1]):
        await assert_depth(bus, "jobs", 1)
        await bus.declare(TOPOLOGY)
        await bus.check(TOPOLOGY)
        await drain(bus, "jobs", 1)


async def test_the_whole_topology_of_the_project_can_be_declared(bus: Bus) -> None:
    await bus.declare(topology(partitions=3))
    await bus.check(topology(partitions=3))


async def test_others_follow_the_samples_of_some_hosts_by_topic(bus: Bus) -> None:
    exchanges = (Exchange(INTAKE, "fanout"), Exchange(SAMPLES, "topic"))
    binding = Binding(INTAKE, SAMPLES, to_exchange=True)
    await bus.declare(Topology(exchanges, bindings=(binding,)))
    async with (
        bus.subscribe(SAMPLES, ["node.*"], max_length=10) as some,
        bus.subscribe(SAMPLES, ["#"], max_length=10) as every,
    ):
        for key in ("node.a", "db.a", "node.b"):
            await bus.publish(INTAKE, key, message(1))
        assert [one.routing_key for one in await receive(some, 2)] == ["node.a", "node.b"]
        assert [one.routing_key for one in await receive(every, 3)] == ["node.a", "db.a", "node.b"]


async def test_a_check_names_what_is_missing(bus: Bus) -> None:
    wanted = Topology(
        exchanges=(Exchange(WORK, "topic"), Exchange("absent.exchange", "topic")),
        queues=(Queue("jobs"), Queue("absent.queue"), Queue("absent.other")),
    )
    with pytest.raises(TopologyMissing) as caught:
        await bus.check(wanted)
    assert "exchange absent.exchange, queue absent.queue, queue absent.other" in str(caught.value)
    assert "vervet migrate" in str(caught.value)
    assert "jobs" not in str(caught.value)


async def test_what_stands_with_other_arguments_is_named(bus: Bus) -> None:
    with pytest.raises(TopologyMissing, match="queue jobs") as queue:
        await bus.declare(Topology(queues=(Queue("jobs", single_active=True),)))
    assert "delete" in str(queue.value)
    with pytest.raises(TopologyMissing, match="exchange work"):
        await bus.declare(Topology(exchanges=(Exchange(WORK, "fanout"),)))
    await bus.check(TOPOLOGY)


async def test_consuming_what_is_not_declared_is_refused(bus: Bus) -> None:
    with pytest.raises(TopologyMissing, match="queue absent"):
        async with bus.consume("absent", prefetch=1):
            pass
    with pytest.raises(TopologyMissing, match="exchange absent"):
        async with bus.subscribe("absent", ["#"], max_length=1):
            pass


async def test_the_state_of_a_good_connection_is_none(bus: Bus) -> None:
    assert bus.state() is None
