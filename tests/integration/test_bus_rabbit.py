"""The RabbitMQ driver in trouble: the broker is away, killed, frozen, in alarm, full or strict."""

import asyncio
import contextlib
import secrets
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from schemas.topology import DEAD, DEAD_QUEUE, Binding, Exchange, Queue, Topology
from services import bus_rabbit_consumer, bus_rabbit_link
from services.bus import (
    Bus,
    BusError,
    Consumer,
    Message,
    Refused,
    TopologyMissing,
    Unavailable,
    Unroutable,
)
from services.bus_rabbit import rabbit_bus
from services.bus_rabbit_outlet import CONFIRM_WINDOW
from tests.stack.broker import Broker

WORK = "work"
TOPOLOGY = Topology(
    exchanges=(Exchange(WORK, "topic"), Exchange(DEAD, "fanout")),
    queues=(Queue("jobs"), Queue(DEAD_QUEUE, dead_letters=False)),
    bindings=(Binding(WORK, "jobs", key="job.#"), Binding(DEAD, DEAD_QUEUE)),
)
SOON_S = 30.0
CANARY = "hunter2-canary"


@contextlib.asynccontextmanager
async def opened(url: str, publish_timeout_s: float = 5.0) -> AsyncIterator[Bus]:
    async with rabbit_bus(url, name="test", publish_timeout_s=publish_timeout_s) as bus:
        await eventually(lambda: bus.declare(TOPOLOGY))
        yield bus


async def eventually(attempt: Callable[[], Awaitable[Any]]) -> None:
    """Repeat until it raises no more, for SOON_S at most."""
    deadline = time.monotonic() + SOON_S
    while True:
        try:
            await attempt()
            return
        except (BusError, AssertionError):
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(0.05)


async def await_state(bus: Bus, wanted: str | None) -> None:
    async def has_state() -> None:
        state = bus.state()
        assert state == wanted if wanted is None else wanted in str(state), state

    await eventually(has_state)


def message(number: int) -> Message:
    return Message(b"%d" % number, "text/plain", f"id/{number}", {"instance": "a"})


async def send_until_confirmed(bus: Bus, number: int) -> None:
    await eventually(lambda: bus.publish(WORK, "job", message(number)))


async def collect(consumer: Consumer, into: list[int], wanted: int) -> None:
    """Ack until `wanted` different numbers have come."""
    seen: set[int] = set()
    async with asyncio.timeout(SOON_S):
        while len(seen) < wanted:
            delivery = await consumer.receive()
            into.append(int(delivery.message.body))
            seen.add(into[-1])
            await consumer.ack([delivery])


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def counted(name: str) -> float:
    return REGISTRY.get_sample_value(f"vervet_bus_{name}_total") or 0.0


async def close_connections(broker: Broker) -> None:
    """As an operator does; the management's list of them lags behind by some seconds."""
    await asyncio.to_thread(broker.management, "close_all_connections", "by the operator")


async def test_a_bus_opens_while_the_broker_is_away_and_says_so() -> None:
    port = closed_port()
    url = f"amqp://vervet:{CANARY}@127.0.0.1:{port}/"
    with capture_logs() as logs:
        async with rabbit_bus(url, name="test", publish_timeout_s=0.3) as bus:
            reason = f"connecting to rabbitmq at 127.0.0.1:{port}: connection refused"
            await await_state(bus, reason)
            began = time.monotonic()
            with pytest.raises(Unavailable, match="connection refused"):
                await bus.publish(WORK, "job", message(1))
            assert 0.2 < time.monotonic() - began < 2, "no tight loop, and bounded"
            with pytest.raises(Unavailable, match="connection refused"):
                await bus.check(TOPOLOGY)
    assert CANARY not in str(logs)


async def test_a_host_that_does_not_exist_is_said_to_be_unknown() -> None:
    async with rabbit_bus("amqp://vervet.invalid/", name="test") as bus:
        await await_state(bus, "rabbitmq at vervet.invalid:5672: the host name is not known")


async def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus_rabbit_link, "REQUEST_TIMEOUT_S", 0.2)
    held: list[asyncio.StreamWriter] = []

    async def hold(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)

    async with await asyncio.start_server(hold, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with rabbit_bus(f"amqp://127.0.0.1:{port}/", name="test") as bus:
            await await_state(bus, "no answer within 0.2 s")
        for writer in held:
            writer.close()


async def test_a_wrong_password_is_named_and_never_shown(broker_url: str) -> None:
    parts = urlsplit(broker_url)
    user = parts.username or "guest"
    url = parts._replace(netloc=f"{user}:{CANARY}@{parts.hostname}:{parts.port}").geturl()
    with capture_logs() as logs:
        async with rabbit_bus(url, name="test", publish_timeout_s=0.2) as bus:
            await await_state(bus, f"access refused for user {user}")
            with pytest.raises(Unavailable, match=f"access refused for user {user}") as caught:
                await bus.publish(WORK, "job", message(1))
    assert CANARY not in str(logs) + str(caught.value)
    assert len([entry for entry in logs if "refused" in str(entry)]) == 1


async def test_a_virtual_host_that_does_not_exist_is_named(broker_url: str) -> None:
    url = urlsplit(broker_url)._replace(path="/absent").geturl()
    async with rabbit_bus(url, name="test") as bus:
        await await_state(bus, "virtual host absent is absent")


async def test_what_was_confirmed_is_stored_although_the_broker_is_killed_under_load(
    own_broker: Broker,
) -> None:
    confirmed: set[int] = set()
    unknown: set[int] = set()
    stop = asyncio.Event()

    async def send(bus: Bus, numbers: "asyncio.Queue[int]") -> None:
        while not stop.is_set():
            number = numbers.get_nowait()
            try:
                await bus.publish(WORK, "job", message(number))
                confirmed.add(number)
            except Unavailable:
                unknown.add(number)

    numbers: asyncio.Queue[int] = asyncio.Queue()
    for number in range(500_000):
        numbers.put_nowait(number)
    async with opened(own_broker.url, publish_timeout_s=2.0) as bus:
        async with asyncio.TaskGroup() as group:
            for _ in range(100):
                group.create_task(send(bus, numbers))
            for _ in range(2):
                enough = len(confirmed) + 300

                async def went_on(enough: int = enough) -> None:
                    assert len(confirmed) >= enough

                await eventually(went_on)
                await asyncio.to_thread(own_broker.kill)
                await asyncio.to_thread(own_broker.start)
            await eventually(lambda: bus.publish(WORK, "job", message(-1)))
            stop.set()
        assert unknown, "the kill hit nothing under way"
        stored: list[int] = []
        async with bus.consume("jobs", prefetch=200) as consumer:
            with contextlib.suppress(TimeoutError):
                while True:
                    delivery = await asyncio.wait_for(consumer.receive(), 3)
                    stored.append(int(delivery.message.body))
                    await consumer.ack([delivery])
    assert confirmed - set(stored) == set()
    assert set(stored) - {-1} <= confirmed | unknown


async def test_a_consumer_survives_the_broker_being_killed(own_broker: Broker) -> None:
    got: list[int] = []
    async with opened(own_broker.url) as bus, bus.consume("jobs", prefetch=10) as consumer:
        collecting = asyncio.create_task(collect(consumer, got, 40))
        for number in range(20):
            await send_until_confirmed(bus, number)
        await asyncio.to_thread(own_broker.kill)
        await await_state(bus, "connection refused")
        await asyncio.to_thread(own_broker.start)
        for number in range(20, 40):
            await send_until_confirmed(bus, number)
        await collecting
    assert set(got) == set(range(40))


async def test_publishes_end_in_a_memory_alarm_while_consumers_go_on(own_broker: Broker) -> None:
    async with opened(own_broker.url, publish_timeout_s=1.0) as bus:
        for number in range(20):
            await bus.publish(WORK, "job", message(number))
        await asyncio.to_thread(
            own_broker.management, "set_vm_memory_high_watermark", "absolute", "1"
        )
        try:
            for number in range(20, 23):
                began = time.monotonic()
                with pytest.raises(Unavailable):
                    await bus.publish(WORK, "job", message(number))
                assert time.monotonic() - began < 2
            assert bus.state() == "blocked: low on memory"
            with pytest.raises(Unavailable, match="low on memory"):
                await bus.publish(WORK, "job", message(23))
            got: list[int] = []
            async with bus.consume("jobs", prefetch=5) as consumer:
                await collect(consumer, got, 20)
                assert await bus.depth("jobs") == 0
        finally:
            await asyncio.to_thread(
                own_broker.management, "set_vm_memory_high_watermark", "absolute", "4GB"
            )
        await await_state(bus, None)
        await bus.publish(WORK, "job", message(99))
        async with bus.consume("jobs", prefetch=5) as consumer:
            async with asyncio.timeout(SOON_S):
                while (await consumer.receive()).message.body != b"99":
                    pass


async def test_a_frozen_broker_is_noticed_and_comes_back(own_broker: Broker) -> None:
    async with opened(own_broker.url, publish_timeout_s=0.5) as bus:
        await asyncio.to_thread(own_broker.freeze)
        try:
            results = await asyncio.gather(
                *(bus.publish(WORK, "job", message(n)) for n in range(600)),
                return_exceptions=True,
            )
            assert {type(result) for result in results} == {Unavailable}
        finally:
            await asyncio.to_thread(own_broker.thaw)
        await send_until_confirmed(bus, 1000)
        # Whatever went out before the freeze was noticed is at most a window.
        assert await bus.depth("jobs") <= CONFIRM_WINDOW + 1


async def test_a_bus_ends_quickly_although_the_broker_is_frozen(own_broker: Broker) -> None:
    try:
        async with opened(own_broker.url) as bus, bus.consume("jobs", prefetch=1):
            await asyncio.to_thread(own_broker.freeze)
            began = time.monotonic()
        assert time.monotonic() - began < 5
    finally:
        await asyncio.to_thread(own_broker.thaw)


async def test_after_an_operator_closed_the_connections_old_tags_are_void(
    own_broker: Broker,
) -> None:
    reconnects = counted("reconnects")
    async with opened(own_broker.url) as bus, bus.consume("jobs", prefetch=10) as consumer:
        for number in range(10):
            await bus.publish(WORK, "job", message(number))
        old = [await consumer.receive() for _ in range(5)]
        await close_connections(own_broker)

        async def has_reconnected() -> None:
            assert counted("reconnects") >= reconnects + 2

        await eventually(has_reconnected)
        async with asyncio.timeout(SOON_S):
            new = [await consumer.receive() for _ in range(10)]
        assert [d.message for d in new] == [message(n) for n in range(10)]
        assert new[0].redelivered
        await consumer.ack(old)
        await consumer.retry(old[0])
        await consumer.reject(old[1], "void")
        await consumer.ack(new[:9])
        await consumer.retry(new[9])
        async with asyncio.timeout(SOON_S):
            last = await consumer.receive()
        assert last.message == message(9)
        await consumer.ack([last])
        assert await bus.depth(DEAD_QUEUE) == 0
        assert bus.state() is None


async def test_a_consumer_whose_queue_is_deleted_takes_it_up_when_it_is_declared_again(
    own_broker: Broker,
) -> None:
    async with opened(own_broker.url) as bus, bus.consume("jobs", prefetch=1) as consumer:
        await asyncio.to_thread(own_broker.api, "DELETE", "queues/%2F/jobs")
        await await_state(bus, "not declared: queue jobs")
        with pytest.raises(Unroutable):
            await bus.publish(WORK, "job", message(1))
        await bus.declare(TOPOLOGY)
        await bus.publish(WORK, "job", message(2))
        async with asyncio.timeout(SOON_S):
            delivery = await consumer.receive()
        assert delivery.message == message(2)
        await consumer.ack([delivery])
        await await_state(bus, None)


async def test_a_subscription_that_the_broker_forgot_is_opened_again(
    broker_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bus_rabbit_consumer, "WATCH_S", 0.2)
    monkeypatch.setattr(bus_rabbit_consumer, "SECOND_LOOK_S", 0.1)
    before = counted("resubscribed")
    async with opened(broker_url) as bus, bus.consume("jobs", prefetch=1) as consumer:
        channel: Any = consumer._channel  # type: ignore[attr-defined]
        (tag,) = channel.consumers
        await channel.basic_cancel(tag)
        await bus.publish(WORK, "job", message(1))
        async with asyncio.timeout(SOON_S):
            delivery = await consumer.receive()
        await consumer.ack([delivery])
    assert counted("resubscribed") == before + 1


async def test_a_full_queue_makes_a_publish_unavailable(
    broker_server: Broker, broker_url: str
) -> None:
    virtual_host = quote(urlsplit(broker_url).path.removeprefix("/"), safe="")
    policy = {"pattern": "^jobs$", "definition": {"max-length": 2}, "apply-to": "queues"}
    nacked = counted("nacked")
    async with opened(broker_url) as bus:
        await asyncio.to_thread(broker_server.api, "PUT", f"policies/{virtual_host}/small", policy)

        async def fill() -> None:
            while True:
                await bus.publish(WORK, "job", message(1))

        with pytest.raises(Unavailable, match="full"):
            await asyncio.wait_for(fill(), SOON_S)
        assert counted("nacked") == nacked + 1
        async with bus.consume("jobs", prefetch=100) as consumer:
            while await bus.depth("jobs"):
                await consumer.ack([await consumer.receive()])
            got: list[int] = []
            await send_until_confirmed(bus, 7)
            collecting = asyncio.create_task(collect(consumer, got, 1))
            await collecting


@contextlib.asynccontextmanager
async def restricted(
    broker: Broker, url: str, write: str, topic: str | None = None
) -> AsyncIterator[Bus]:
    """A bus of a user who may only write to what matches, and only these topics of `work`."""
    parts = urlsplit(url)
    virtual_host = quote(parts.path.removeprefix("/"), safe="")
    user, password = f"u-{secrets.token_hex(4)}", secrets.token_hex(8)
    await asyncio.to_thread(broker.api, "PUT", f"users/{user}", {"password": password, "tags": ""})
    permissions = {"configure": "^$", "write": write, "read": "^$"}
    await asyncio.to_thread(broker.api, "PUT", f"permissions/{virtual_host}/{user}", permissions)
    if topic is not None:
        topics = {"exchange": WORK, "write": topic, "read": "^$"}
        await asyncio.to_thread(
            broker.api, "PUT", f"topic-permissions/{virtual_host}/{user}", topics
        )
    own_url = parts._replace(netloc=f"{user}:{password}@{parts.hostname}:{parts.port}").geturl()
    try:
        async with rabbit_bus(own_url, name="restricted", publish_timeout_s=5) as bus:
            yield bus
    finally:
        await asyncio.to_thread(broker.api, "DELETE", f"users/{user}")


async def test_a_user_who_may_not_write_is_refused(broker_server: Broker, broker_url: str) -> None:
    async with opened(broker_url), restricted(broker_server, broker_url, "^other$") as bus:
        with pytest.raises(Refused, match="work"):
            await bus.publish(WORK, "job", message(1))
        with pytest.raises(TopologyMissing, match="queue jobs"):
            await bus.declare(Topology(queues=(Queue("jobs"),)))


async def test_a_key_that_the_user_may_not_use_is_refused_and_others_go_on(
    broker_server: Broker, broker_url: str
) -> None:
    async with (
        opened(broker_url) as owner,
        restricted(broker_server, broker_url, "^work$", r"^job\.mine$") as bus,
    ):
        await bus.publish(WORK, "job.mine", message(1))
        with pytest.raises(Refused, match=r"job\.other"):
            await bus.publish(WORK, "job.other", message(2))
        await bus.publish(WORK, "job.mine", message(3))
        assert await owner.depth("jobs") == 2


async def test_what_cannot_be_encoded_is_refused_and_others_go_on(broker_url: str) -> None:
    async with opened(broker_url) as bus:
        wide = Message(b"", "text/plain", "wide", {"n": 2**70})
        with pytest.raises(Refused, match="cannot be encoded"):
            await bus.publish(WORK, "job", wide)
        await bus.publish(WORK, "job", message(1))
        assert await bus.depth("jobs") == 1


async def test_an_exchange_type_that_is_not_enabled_is_told_with_its_fix(broker_url: str) -> None:
    unknown: Any = "x-not-enabled"
    async with opened(broker_url) as bus:
        with pytest.raises(TopologyMissing, match="rabbitmq-plugins enable") as caught:
            await bus.declare(Topology(exchanges=(Exchange("spread", unknown),)))
        assert "exchange spread" in str(caught.value)
        await eventually(lambda: bus.check(TOPOLOGY))
