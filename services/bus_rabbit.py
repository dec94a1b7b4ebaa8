"""The bus on RabbitMQ, 3.10 to 4.x. Only the modules bus_rabbit*.py know AMQP.

`bus_rabbit_link` keeps a connection open, `bus_rabbit_outlet` publishes, `bus_rabbit_consumer`
consumes; here they become a bus, and the topology is declared.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

from aiormq import exceptions as amqp
from aiormq.channel import Channel
from pamqp.common import FieldValue
from yarl import URL

from schemas.topology import DEAD, DELIVERY_LIMIT, MAX_QUEUE_BYTES, Exchange, Queue, Topology
from services import bus
from services.bus import Bus, Message, TopologyMissing, Unavailable
from services.bus_rabbit_consumer import Consumer, Source
from services.bus_rabbit_link import CLOSE_TIMEOUT_S, Link, ask, open_channel, translated
from services.bus_rabbit_outlet import Outlet

Arguments = dict[str, FieldValue]

PUBLISH_TIMEOUT_S = 10.0
"""How long a publish waits for the broker, in all. Later than that its outcome is unknown."""

AWAY_S = 1.0
"""How long `declare`, `check` and `depth` wait for a connection before they say that it is away."""

DEAD_QUEUE_BYTES = 256 * 1024**2
"""The dead queue drops its oldest beyond this."""

UNLIMITED_DELIVERIES = 1_000_000
"""Reading the dead queue is no attempt at its messages. 3.10 knows no -1, 4.x would take 20."""


@asynccontextmanager
async def rabbit_bus(
    url: str, *, name: str, publish_timeout_s: float = PUBLISH_TIMEOUT_S
) -> AsyncIterator[Bus]:
    """A bus on the broker at `url` (amqp:// or amqps://), shown there as `name`.

    Opens even when the broker is away, and connects in the background.
    """
    # What aiormq logs comes here as an exception as well, and is told once, with its reason.
    for library in ("aiormq", "aio_pika"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    sending = Link(URL(url), f"{name}: publish")
    receiving = Link(URL(url), f"{name}: consume")
    sending.start()
    try:
        yield RabbitBus(sending, receiving, publish_timeout_s)
    finally:
        await asyncio.gather(sending.close(), receiving.close())


class RabbitBus:
    """The bus on two links; made by `rabbit_bus`."""

    def __init__(self, sending: Link, receiving: Link, publish_timeout_s: float) -> None:
        self._sending = sending
        self._receiving = receiving
        self._publish_timeout_s = publish_timeout_s
        self._outlets: dict[str, Outlet] = {}
        self._consumers: set[Consumer] = set()

    async def publish(self, exchange: str, key: str, message: Message) -> None:
        bus.check_size(key, message)
        outlet = self._outlets.get(exchange)
        if outlet is None:
            outlet = self._outlets[exchange] = Outlet(self._sending, exchange)
        try:
            await outlet.send(key, message, self._publish_timeout_s)
        except TimeoutError:
            bus.UNCONFIRMED.inc()
            slow = f"{self._sending.where} did not confirm in {self._publish_timeout_s:g} s"
            raise Unavailable(self._sending.trouble or slow) from None
        bus.PUBLISHED.inc()

    @asynccontextmanager
    async def consume(self, queue: str, *, prefetch: int) -> AsyncIterator[Consumer]:
        async with self._subscription(Source(queue, prefetch)) as consumer:
            yield consumer

    @asynccontextmanager
    async def subscribe(
        self, exchange: str, keys: Sequence[str], *, max_length: int
    ) -> AsyncIterator[Consumer]:
        source = Source(exchange, keys=tuple(keys), max_length=max_length)
        async with self._subscription(source) as consumer:
            yield consumer

    @asynccontextmanager
    async def _subscription(self, source: Source) -> AsyncIterator[Consumer]:
        self._receiving.start()
        consumer = Consumer(self._receiving, self.publish, source)
        self._consumers.add(consumer)
        task = asyncio.create_task(consumer.run(), name=f"consume {source.name}")
        task.add_done_callback(consumer.note_end)
        try:
            await asyncio.wait((task, consumer.standing), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
            consumer.standing.result()
            yield consumer
        finally:
            self._consumers.discard(consumer)
            task.cancel()
            await asyncio.wait((task,))

    async def declare(self, topology: Topology) -> None:
        async with self._requests() as channel:
            for exchange in topology.exchanges:
                with translated(f"exchange {exchange.name}", self._receiving):
                    await ask(
                        channel.exchange_declare(
                            exchange.name,
                            exchange_type=exchange.kind,
                            durable=True,
                            arguments=exchange_arguments(exchange),
                        )
                    )
            for queue in topology.queues:
                with translated(f"queue {queue.name}", self._receiving):
                    arguments = queue_arguments(queue)
                    await ask(channel.queue_declare(queue.name, durable=True, arguments=arguments))
            for binding in topology.bindings:
                with translated(f"{binding.target} or {binding.exchange}", self._receiving):
                    names = (binding.target, binding.exchange, binding.key)
                    if binding.to_exchange:
                        await ask(channel.exchange_bind(*names))
                    else:
                        await ask(channel.queue_bind(*names))

    async def check(self, topology: Topology) -> None:
        names = [("exchange", exchange.name) for exchange in topology.exchanges]
        names += [("queue", queue.name) for queue in topology.queues]
        absent: list[str] = []
        while names:
            async with self._requests() as channel:
                # Asking for what is absent closes the channel.
                while names:
                    kind, name = names.pop(0)
                    if await self._look(channel, kind, name) is None:
                        absent.append(f"{kind} {name}")
                        break
        if absent:
            raise TopologyMissing.absent(*absent)

    async def depth(self, queue: str) -> int:
        async with self._requests() as channel:
            found = await self._look(channel, "queue", queue)
        if found is None:
            raise TopologyMissing.absent(f"queue {queue}")
        return found

    async def _look(self, channel: Channel, kind: str, name: str) -> int | None:
        """Messages that wait in a queue, 0 for an exchange, None when it is not declared."""
        with translated(f"{kind} {name}", self._receiving):
            try:
                if kind == "exchange":
                    await ask(channel.exchange_declare(name, passive=True))
                    return 0
                found = await ask(channel.queue_declare(name, passive=True))
                return found.message_count or 0
            except amqp.ChannelNotFoundEntity:
                return None

    @asynccontextmanager
    async def _requests(self) -> AsyncIterator[Channel]:
        """A channel for requests: one that the broker refuses closes its channel."""
        self._receiving.start()
        try:
            async with asyncio.timeout(AWAY_S):
                connection = await self._receiving.opened()
        except TimeoutError:
            raise Unavailable(self._receiving.trouble or self._receiving.where) from None
        with translated("a channel", self._receiving):
            channel = await open_channel(connection, confirms=False)
        try:
            yield channel
        finally:
            if not channel.is_closed:
                with suppress(Exception):
                    await ask(channel.close(), CLOSE_TIMEOUT_S)

    def state(self) -> str | None:
        troubles = (self._sending.trouble, self._receiving.trouble)
        waits = (consumer.trouble for consumer in self._consumers)
        return next((trouble for trouble in (*troubles, *waits) if trouble), None)


def exchange_arguments(exchange: Exchange) -> Arguments:
    """What an exchange is declared with."""
    return {"hash-header": exchange.hash_header} if exchange.hash_header else {}


def queue_arguments(queue: Queue) -> Arguments:
    """What a queue is declared with: the same on every version, or declaring again would fail."""
    if not queue.dead_letters:
        return {
            "x-queue-type": "quorum",
            "x-max-length-bytes": DEAD_QUEUE_BYTES,
            "x-overflow": "drop-head",
            "x-delivery-limit": UNLIMITED_DELIVERIES,
        }
    arguments: Arguments = {
        "x-queue-type": "quorum",
        "x-delivery-limit": DELIVERY_LIMIT,
        "x-dead-letter-exchange": DEAD,
        # At-least-once needs reject-publish: the default overflow drops what it cannot move.
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
        "x-max-length-bytes": MAX_QUEUE_BYTES,
    }
    if queue.single_active:
        arguments["x-single-active-consumer"] = True
    return arguments
