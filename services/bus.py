"""The bus port: what services ask of a message broker. Drivers: bus_rabbit.py and bus_memory.py.

Delivery is at least once: a publish that returned is stored by every bound queue; one that raised
`Unavailable` may or may not be, and is sent again under the same message id. A delivery that is
neither acked nor rejected comes again, to this consumer or to another.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import msgspec
from prometheus_client import Counter

from schemas.topology import Topology

PUBLISHED = Counter("vervet_bus_published", "Messages published and confirmed")
UNROUTABLE = Counter("vervet_bus_unroutable", "Publishes that no queue is bound for")
NACKED = Counter("vervet_bus_nacked", "Publishes that a full queue refused")
UNCONFIRMED = Counter("vervet_bus_unconfirmed", "Publishes whose outcome stayed unknown")
DELIVERED = Counter("vervet_bus_delivered", "Messages delivered to consumers here")
REDELIVERED = Counter("vervet_bus_redelivered", "Deliveries that were delivered before")
REJECTED = Counter("vervet_bus_rejected", "Messages moved to the dead queue, with their reason")
DROPPED = Counter(
    "vervet_bus_dropped", "Messages that a live stream or a full dead queue dropped here"
)
RECONNECTS = Counter("vervet_bus_reconnects", "Connections to the broker opened after the first")
RESUBSCRIBED = Counter(
    "vervet_bus_resubscribed", "Subscriptions opened again because the broker left them idle"
)


class BusError(Exception):
    """Anything that a bus refuses."""


class Unroutable(BusError):
    """No queue is bound for this key: the topology is not declared. Nothing was stored."""


class Unavailable(BusError):
    """The broker is away, blocked or full; the outcome is unknown. Send again, with the same id."""


class Refused(BusError):
    """The broker will never take it (too large, no permission). Sending again is useless."""


class TopologyMissing(BusError):
    """What a service needs is not declared (or otherwise than we would): the message says what."""

    @classmethod
    def absent(cls, *names: str) -> "TopologyMissing":
        """For names such as "queue ingest"."""
        return cls(f"not declared: {', '.join(names)}; run `vervet migrate`")

    @classmethod
    def otherwise(cls, name: str, difference: str) -> "TopologyMissing":
        """For a name such as "queue ingest"; `difference` in the broker's words."""
        return cls(
            f"{name} is declared otherwise ({difference}): let it run empty, delete it, "
            "then run `vervet migrate`"
        )


class Message(msgspec.Struct, frozen=True, gc=False):
    """What is published. `headers` hold short strings and integers only."""

    body: bytes
    content_type: str
    message_id: str
    headers: Mapping[str, str | int] = {}


class Delivery(msgspec.Struct, frozen=True, gc=False):
    """A message as a consumer gets it. `tag` identifies it on its consumer."""

    message: Message
    exchange: str
    routing_key: str
    redelivered: bool
    tag: int


class Consumer(Protocol):
    """An open subscription to one queue. Iterating never ends by itself: it survives reconnects.

    After a reconnect, tags of earlier deliveries are void: settling them is a no-op, since the
    broker delivers those messages again.
    """

    def __aiter__(self) -> AsyncIterator[Delivery]: ...

    async def receive(self) -> Delivery:
        """The next delivery; waits for it. Safe to cancel: a delivery is never lost by it."""
        ...

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Settle these: the broker forgets them. One frame where all earlier ones are settled."""
        ...

    async def reject(self, delivery: Delivery, reason: str) -> None:
        """Move one to the dead queue, saying why in its headers (`dead_letter`), then settle it.

        Raises as `publish`; then the delivery is still unsettled."""
        ...

    async def retry(self, delivery: Delivery) -> None:
        """Give one back, to be delivered again; counts towards the queue's delivery limit."""
        ...


class Bus(Protocol):
    """A connection to the broker that reconnects by itself."""

    async def publish(self, exchange: str, key: str, message: Message) -> None:
        """Returns once every bound queue has stored it. Concurrent calls share the confirm window.

        Raises Unroutable, Unavailable or Refused.
        """
        ...

    def consume(self, queue: str, *, prefetch: int) -> AbstractAsyncContextManager[Consumer]:
        """Consume a declared queue with at most `prefetch` unsettled deliveries.

        Entering waits until the subscription stands; `state` says what it waits for. Raises
        TopologyMissing when the queue is not declared. On leaving, what is unsettled goes back
        to the queue."""
        ...

    def subscribe(
        self, exchange: str, keys: Sequence[str], *, max_length: int
    ) -> AbstractAsyncContextManager[Consumer]:
        """A live stream: an exclusive queue that ends with the subscription. Needs no acks, drops
        its oldest beyond `max_length`, and misses what is published while the broker is away.

        Entering waits until it stands: what is published from then on arrives. Raises
        TopologyMissing when the exchange is not declared."""
        ...

    async def declare(self, topology: Topology) -> None:
        """Make the broker hold this topology. Raises TopologyMissing where something stands that is
        declared otherwise, saying what and how to mend it. Declaring twice is a no-op."""
        ...

    async def check(self, topology: Topology) -> None:
        """Raises TopologyMissing unless exchanges and queues are declared. Like `declare` and
        `depth`, raises Unavailable soon when the broker is away; whoever waits for it asks again.
        """
        ...

    async def depth(self, queue: str) -> int:
        """Messages that wait in a queue for a consumer. Raises Unavailable, TopologyMissing."""
        ...

    def state(self) -> str | None:
        """None while the connection is good, else what is wrong, in a few words for /-/ready."""
        ...


MAX_BODY_BYTES = 16 * 1024**2
"""RabbitMQ 4 closes the channel over a larger body, and with it whatever else is under way."""

MAX_NAME_BYTES = 255
"""Of a routing key and a message id, in UTF-8."""


def check_size(key: str, message: Message) -> None:
    """Raises Refused for what AMQP cannot carry."""
    if len(message.body) > MAX_BODY_BYTES:
        raise Refused(f"a body of {len(message.body)} bytes; at most {MAX_BODY_BYTES} are possible")
    for what, text in (("routing key", key), ("message id", message.message_id)):
        if len(text) * 4 > MAX_NAME_BYTES and len(text.encode()) > MAX_NAME_BYTES:
            raise Refused(f"a {what} of {len(text.encode())} bytes; at most {MAX_NAME_BYTES}")


MAX_REASON = 256
"""Characters of a reason in `x-reason`: a header has to fit into one frame with all the others."""


def dead_letter(delivery: Delivery, queue: str, reason: str) -> Message:
    """What `Consumer.reject` publishes to the dead exchange: the message, and whence and why."""
    origin = {
        "x-reason": reason[:MAX_REASON],
        "x-queue": queue,
        "x-exchange": delivery.exchange,
        "x-routing-key": delivery.routing_key,
    }
    message = delivery.message
    headers = {**message.headers, **origin}
    return Message(message.body, message.content_type, message.message_id, headers)


class Inbox:
    """What a consumer holds but has not received yet. Beyond `max_length` the oldest is dropped."""

    def __init__(self, max_length: int = 0) -> None:
        self._deliveries: asyncio.Queue[Delivery] = asyncio.Queue(max_length)

    def put(self, delivery: Delivery) -> None:
        if self._deliveries.full():
            self._deliveries.get_nowait()
            DROPPED.inc()
        self._deliveries.put_nowait(delivery)
        DELIVERED.inc()
        if delivery.redelivered:
            REDELIVERED.inc()

    def clear(self) -> None:
        """Forget what was not received: its connection is gone, so it will be delivered again."""
        while not self._deliveries.empty():
            self._deliveries.get_nowait()

    async def receive(self) -> Delivery:
        """The next delivery. Safe to cancel: one leaves the inbox only by being returned."""
        return await self._deliveries.get()
