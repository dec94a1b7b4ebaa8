"""What the bus in memory promises beyond the port: confirmed means settled, and all is bounded."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from schemas.topology import DEAD, DEAD_QUEUE, Binding, Exchange, Queue, Topology
from services.bus import Bus, Delivery, Message, Unavailable, Unroutable
from services.bus_memory import memory_bus

WORK = "work"
TOPOLOGY = Topology(
    exchanges=(Exchange(WORK, "topic"), Exchange(DEAD, "fanout")),
    queues=(Queue("left"), Queue("right"), Queue(DEAD_QUEUE, dead_letters=False)),
    bindings=(
        Binding(WORK, "left"),
        Binding(WORK, "right", key="both"),
        Binding(DEAD, DEAD_QUEUE),
    ),
)
SHORT_S = 0.05


@pytest.fixture
async def bus() -> AsyncIterator[Bus]:
    async with memory_bus() as opened:
        await opened.declare(TOPOLOGY)
        yield opened


@pytest.fixture
async def small_bus() -> AsyncIterator[Bus]:
    """Room for two bodies of 10 bytes in each queue, and little patience."""
    async with memory_bus(publish_timeout_s=SHORT_S, queue_bytes=25) as opened:
        await opened.declare(TOPOLOGY)
        yield opened


def message(name: str) -> Message:
    return Message(name.encode().ljust(10), "text/plain", name)


def name(delivery: Delivery) -> str:
    return delivery.message.message_id


async def settle_down() -> None:
    """Let every task run until it waits for something."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_publish_is_confirmed_when_every_bound_queue_has_acked(bus: Bus) -> None:
    async with bus.consume("left", prefetch=1) as left, bus.consume("right", prefetch=1) as right:
        publish = asyncio.create_task(bus.publish(WORK, "both", message("a")))
        await left.ack([await left.receive()])
        await settle_down()
        assert not publish.done()
        await right.ack([await right.receive()])
        await publish


async def test_a_rejected_message_is_confirmed(bus: Bus) -> None:
    async with bus.consume("left", prefetch=1) as left:
        publish = asyncio.create_task(bus.publish(WORK, "one", message("a")))
        await left.reject(await left.receive(), "torn")
        await publish
    assert await bus.depth(DEAD_QUEUE) == 1


async def test_a_poison_message_is_confirmed_once_it_is_dead(bus: Bus) -> None:
    async with bus.consume("left", prefetch=1) as left:
        publish = asyncio.create_task(bus.publish(WORK, "one", message("a")))
        while await bus.depth(DEAD_QUEUE) == 0:
            await left.retry(await left.receive())
        await publish


async def test_what_nobody_settles_is_unavailable_and_names_the_queue(small_bus: Bus) -> None:
    with pytest.raises(Unavailable, match="consumers of left"):
        await small_bus.publish(WORK, "one", message("a"))


async def test_sending_an_unsettled_message_again_waits_for_the_first(small_bus: Bus) -> None:
    for _ in range(5):
        with pytest.raises(Unavailable):
            await small_bus.publish(WORK, "one", message("a"))
    assert await small_bus.depth("left") == 1
    publish = asyncio.create_task(small_bus.publish(WORK, "one", message("a")))
    async with small_bus.consume("left", prefetch=10) as left:
        await left.ack([await left.receive()])
        await publish
    publish = asyncio.create_task(small_bus.publish(WORK, "one", message("a")))
    await settle_down()
    assert await small_bus.depth("left") == 1, "a settled one is a new message"
    publish.cancel()
    await asyncio.wait((publish,))


async def test_a_full_queue_makes_a_publish_wait_and_then_unavailable(small_bus: Bus) -> None:
    waiting = [asyncio.create_task(small_bus.publish(WORK, "one", message(n))) for n in "ab"]
    await settle_down()
    with pytest.raises(Unavailable, match="full"):
        await small_bus.publish(WORK, "one", message("c"))
    with pytest.raises(Unavailable, match="full"):
        await small_bus.publish(WORK, "both", message("d"))
    assert (await small_bus.depth("left"), await small_bus.depth("right")) == (2, 0)
    await asyncio.wait(waiting)
    assert all(isinstance(task.exception(), Unavailable) for task in waiting)


async def test_a_publish_that_waits_for_room_goes_on_when_there_is_some(small_bus: Bus) -> None:
    async with small_bus.consume("left", prefetch=1) as left, asyncio.TaskGroup() as group:
        for n in "abcdef":
            group.create_task(small_bus.publish(WORK, "one", message(n)))
        got = []
        for _ in "abcdef":
            delivery = await left.receive()
            got.append(name(delivery))
            await left.ack([delivery])
    assert sorted(got) == list("abcdef")


async def test_a_cancelled_publish_leaves_its_message_to_the_consumers(bus: Bus) -> None:
    publish = asyncio.create_task(bus.publish(WORK, "one", message("a")))
    await settle_down()
    publish.cancel()
    await asyncio.wait((publish,))
    async with bus.consume("left", prefetch=1) as left:
        assert name(await left.receive()) == "a"


async def test_the_dead_queue_drops_its_oldest(small_bus: Bus) -> None:
    async with small_bus.consume("left", prefetch=1) as left:
        for n in "abcd":
            publish = asyncio.create_task(small_bus.publish(WORK, "one", message(n)))
            await left.reject(await left.receive(), "torn")
            await publish
    async with small_bus.consume(DEAD_QUEUE, prefetch=10) as dead:
        assert [name(await dead.receive()) for _ in "cd"] == ["c", "d"]
    assert await small_bus.depth(DEAD_QUEUE) == 2


async def test_a_reject_without_a_dead_queue_says_so_and_keeps_the_message() -> None:
    async with memory_bus() as bus:
        await bus.declare(
            Topology((Exchange(WORK, "topic"),), (Queue("left"),), (Binding(WORK, "left"),))
        )
        publish = asyncio.create_task(bus.publish(WORK, "one", message("a")))
        async with bus.consume("left", prefetch=1) as left:
            delivery = await left.receive()
            with pytest.raises(Unroutable):
                await left.reject(delivery, "torn")
            await left.ack([delivery])
        await publish


async def test_closing_the_bus_lets_its_publishers_go() -> None:
    async with memory_bus(queue_bytes=25) as bus:
        await bus.declare(TOPOLOGY)
        tasks = [asyncio.create_task(bus.publish(WORK, "one", message(n))) for n in "abcd"]
        await settle_down()
    await asyncio.wait(tasks, timeout=1)
    assert all(isinstance(task.exception(), Unavailable) for task in tasks)
    assert bus.state() == "the bus is closed"


async def test_a_consumer_that_always_has_something_lets_others_run(bus: Bus) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    publishes = [asyncio.create_task(bus.publish(WORK, "one", message(f"{n}"))) for n in range(50)]
    await settle_down()
    ticking = asyncio.create_task(tick())
    async with bus.consume("left", prefetch=50) as left:
        for _ in range(50):
            await left.ack([await left.receive()])
    ticking.cancel()
    await asyncio.wait((ticking, *publishes))
    assert ticks >= 50
