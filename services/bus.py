"""The bus port: what services ask of a message broker. Drivers: bus_rabbit.py and bus_memory.py.

Delivery is at least once: a publish that returned is stored by every bound queue; one that raised
`Unavailable` may or may not be, and is sent again under the same message id. A delivery that is
neither acked nor rejected comes again, to this consumer or to another.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from schemas.topology import Topology


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


@dataclass(frozen=True, slots=True)
class Message:
    """What is published. `headers` hold short strings and integers only."""

    body: bytes
    content_type: str
    message_id: str
    headers: Mapping[str, str | int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Delivery:
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
        """Settle these: the broker forgets them. One frame where all earlier ones are settled too."""
        ...

    async def reject(self, delivery: Delivery, reason: str) -> None:
        """Move one to the dead queue with headers `x-reason`, `x-queue`, then settle it."""
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
        """Consume a declared queue with at most `prefetch` unsettled deliveries."""
        ...

    def subscribe(
        self, exchange: str, keys: Sequence[str], *, max_length: int
    ) -> AbstractAsyncContextManager[Consumer]:
        """A live stream: an exclusive queue that ends with the subscription. Needs no acks, drops its
        oldest beyond `max_length`, and misses what is published while the broker is away."""
        ...

    async def declare(self, topology: Topology) -> None:
        """Make the broker hold this topology. Raises TopologyMissing where something stands that is
        declared otherwise, saying what and how to mend it. Declaring twice is a no-op."""
        ...

    async def check(self, topology: Topology) -> None:
        """Raises TopologyMissing unless exchanges and queues are declared; Unavailable when away."""
        ...

    async def depth(self, queue: str) -> int:
        """Messages that wait in a queue for a consumer. Raises Unavailable, TopologyMissing."""
        ...

    def state(self) -> str | None:
        """None while the connection is good, else what is wrong, in a few words for /-/ready."""
        ...
