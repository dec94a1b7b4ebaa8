"""The bus in memory: a whole broker for one process, behind the same port as RabbitMQ.

Nothing here survives a crash, so a publish is confirmed only when every bound queue's consumer has
acked the message (or rejected it into the dead queue): until then the publisher keeps it, and the
agent's spool covers a crash as it covers RabbitMQ's. Everything runs on one event loop; between two
awaits the broker's state is consistent.
"""

import asyncio
import heapq
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from itertools import count

import structlog

from schemas.topology import DEAD, DELIVERY_LIMIT, Binding, Exchange, Queue, Topology
from services import bus
from services.bus import Bus, Delivery, Inbox, Message, TopologyMissing, Unavailable, Unroutable

log = structlog.get_logger("vervet.bus")

PUBLISH_TIMEOUT_S = 10.0
"""How long a publish waits for room and for its consumers, as with RabbitMQ."""

QUEUE_BYTES = 64 * 1024**2
"""Bodies that one queue holds. The queues share the process' memory; the spool holds the rest."""


@asynccontextmanager
async def memory_bus(
    *,
    publish_timeout_s: float = PUBLISH_TIMEOUT_S,
    queue_bytes: int = QUEUE_BYTES,
) -> AsyncIterator[Bus]:
    """A broker that lives as long as this context; every service of the process shares it."""
    broker = MemoryBus(publish_timeout_s, queue_bytes)
    try:
        yield broker
    finally:
        broker.close()


@lru_cache(maxsize=4096)
def topic_matches(pattern: str, key: str) -> bool:
    """Whether a topic binding takes a routing key: `*` is one word, `#` any number of words."""
    return _words_match(tuple(pattern.split(".")), tuple(key.split(".")) if key else ())


def _words_match(pattern: tuple[str, ...], words: tuple[str, ...]) -> bool:
    if not pattern:
        return not words
    if pattern[0] == "#":
        return _words_match(pattern[1:], words) or (
            bool(words) and _words_match(pattern, words[1:])
        )
    return bool(words) and pattern[0] in ("*", words[0]) and _words_match(pattern[1:], words[1:])


@dataclass(slots=True, eq=False)
class _Confirm:
    """What a publisher waits for: the queues that have not settled its message yet."""

    queues: dict[str, "_Queue"]
    settled: asyncio.Future[None]

    def settle(self, queue: "_Queue") -> None:
        self.queues.pop(queue.name, None)
        if not self.queues and not self.settled.done():
            self.settled.set_result(None)


@dataclass(slots=True, eq=False)
class _Entry:
    """A message in one queue. `position` is its order there; `returns` counts giving it back."""

    position: int
    message: Message
    exchange: str
    key: str
    confirm: _Confirm | None
    returns: int = 0

    def __lt__(self, other: "_Entry") -> bool:
        return self.position < other.position


class _Queue:
    """A queue: what waits, in order, and who consumes it. Bounded by the bytes of its bodies."""

    def __init__(self, broker: "MemoryBus", declared: Queue, max_bytes: int) -> None:
        self.declared = declared
        self.name = declared.name
        self.waiting: list[_Entry] = []
        self._broker = broker
        self._max_bytes = max_bytes
        self._bytes = 0
        self._positions = count()
        self._consumers: deque[_QueueConsumer] = deque()

    def has_room(self, size: int) -> bool:
        """The queue of dead letters always has, since it drops its oldest; so has an empty one."""
        return (
            not self.declared.dead_letters
            or not self._bytes
            or self._bytes + size <= self._max_bytes
        )

    def put(self, message: Message, exchange: str, key: str, confirm: _Confirm | None) -> None:
        entry = _Entry(next(self._positions), message, exchange, key, confirm)
        self._bytes += len(message.body)
        heapq.heappush(self.waiting, entry)
        while not self.declared.dead_letters and self._bytes > self._max_bytes and self.waiting:
            self.settle(heapq.heappop(self.waiting))
            bus.DROPPED.inc()
        self.hand_out()

    def settle(self, entry: _Entry) -> None:
        self._bytes -= len(entry.message.body)
        if entry.confirm is not None:
            entry.confirm.settle(self)
        self._broker.wake_publishers()

    def give_back(self, entries: Iterable[_Entry]) -> None:
        """Return unsettled entries to their place; one returned too often becomes a dead letter."""
        for entry in entries:
            entry.returns += 1
            if self.declared.dead_letters and entry.returns > DELIVERY_LIMIT:
                self._broker.dead_letter(self, entry)
            else:
                heapq.heappush(self.waiting, entry)
        self.hand_out()

    def add(self, consumer: "_QueueConsumer") -> None:
        self._consumers.append(consumer)
        self.hand_out()

    def remove(self, consumer: "_QueueConsumer", unsettled: Iterable[_Entry]) -> None:
        self._consumers.remove(consumer)
        self.give_back(unsettled)

    def hand_out(self) -> None:
        """Give what waits to the consumers that have room."""
        while self.waiting and (consumer := self._next_consumer()) is not None:
            consumer.take(heapq.heappop(self.waiting))

    def _next_consumer(self) -> "_QueueConsumer | None":
        """Who gets the next message: with `single_active` the eldest alone, else each in turn."""
        if self.declared.single_active:
            return self._consumers[0] if self._consumers and self._consumers[0].has_room() else None
        for _ in range(len(self._consumers)):
            consumer = self._consumers[0]
            self._consumers.rotate(-1)
            if consumer.has_room():
                return consumer
        return None


class _QueueConsumer:
    """A subscription to a queue, with at most `prefetch` unsettled entries, by tag."""

    def __init__(self, broker: "MemoryBus", queue: _Queue, prefetch: int) -> None:
        self._broker = broker
        self._queue = queue
        self._prefetch = prefetch
        self._tags = count(1)
        self._unsettled: dict[int, _Entry] = {}
        self._inbox = Inbox()

    def has_room(self) -> bool:
        return len(self._unsettled) < self._prefetch

    def take(self, entry: _Entry) -> None:
        tag = next(self._tags)
        self._unsettled[tag] = entry
        self._inbox.put(Delivery(entry.message, entry.exchange, entry.key, entry.returns > 0, tag))

    def close(self) -> None:
        self._inbox.clear()
        unsettled, self._unsettled = self._unsettled, {}
        self._queue.remove(self, unsettled.values())

    def __aiter__(self) -> AsyncIterator[Delivery]:
        return self

    async def __anext__(self) -> Delivery:
        return await self._inbox.receive()

    async def receive(self) -> Delivery:
        return await self._inbox.receive()

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            if (entry := self._unsettled.pop(delivery.tag, None)) is not None:
                self._queue.settle(entry)
        self._queue.hand_out()
        # Otherwise a loop that acks would never yield as long as its queue is not empty.
        await asyncio.sleep(0)

    async def reject(self, delivery: Delivery, reason: str) -> None:
        if delivery.tag not in self._unsettled:
            return
        letter = bus.dead_letter(delivery, self._queue.name, reason)
        self._broker.put_at_once(DEAD, delivery.routing_key, letter)
        bus.REJECTED.inc()
        self._queue.settle(self._unsettled.pop(delivery.tag))
        self._queue.hand_out()

    async def retry(self, delivery: Delivery) -> None:
        if (entry := self._unsettled.pop(delivery.tag, None)) is not None:
            self._queue.give_back((entry,))


class _LiveConsumer:
    """A live stream: what it is too slow for is dropped, the oldest first. Nothing to settle."""

    def __init__(self, exchange: str, keys: Sequence[str], max_length: int) -> None:
        self.bindings = [Binding(exchange, "", key) for key in keys]
        self._inbox = Inbox(max_length)
        self._tags = count(1)

    def put(self, message: Message, exchange: str, key: str) -> None:
        self._inbox.put(Delivery(message, exchange, key, False, next(self._tags)))

    def __aiter__(self) -> AsyncIterator[Delivery]:
        return self

    async def __anext__(self) -> Delivery:
        return await self._inbox.receive()

    async def receive(self) -> Delivery:
        return await self._inbox.receive()

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        pass

    async def reject(self, delivery: Delivery, reason: str) -> None:
        pass

    async def retry(self, delivery: Delivery) -> None:
        pass


@dataclass(slots=True)
class _Route:
    """Where a message goes."""

    queues: dict[str, _Queue] = field(default_factory=dict)
    live: list[_LiveConsumer] = field(default_factory=list)


class MemoryBus:
    """The broker and the bus in one; made by `memory_bus`."""

    def __init__(self, publish_timeout_s: float, queue_bytes: int) -> None:
        self._publish_timeout_s = publish_timeout_s
        self._queue_bytes = queue_bytes
        self._exchanges: dict[str, Exchange] = {}
        self._bindings: defaultdict[str, list[Binding]] = defaultdict(list)
        self._queues: dict[str, _Queue] = {}
        self._live: list[_LiveConsumer] = []
        self._unsettled: dict[tuple[str, str, object], _Confirm] = {}
        self._room = asyncio.Event()
        self._closed = False

    async def publish(self, exchange: str, key: str, message: Message) -> None:
        bus.check_size(key, message)
        confirm: _Confirm | None = None
        try:
            async with asyncio.timeout(self._publish_timeout_s):
                confirm = await self._put(exchange, key, message)
                if confirm.queues:
                    # Others may wait for the same future: a plain await would cancel it for them.
                    await asyncio.wait((confirm.settled,))
        except TimeoutError:
            if confirm is None:
                bus.NACKED.inc()
                raise Unavailable(f"a queue bound to {exchange} stayed full") from None
        if confirm.queues:
            bus.UNCONFIRMED.inc()
            waited = ", ".join(confirm.queues)
            raise Unavailable(f"not settled yet by the consumers of {waited}")
        bus.PUBLISHED.inc()

    async def _put(self, exchange: str, key: str, message: Message) -> _Confirm:
        """Put it into all its queues at once, as soon as all have room.

        One that was sent before and is still in its queues is not put there again: its sender
        goes on waiting for the first."""
        identity = (exchange, key, message.message_id or object())
        while True:
            if self._closed:
                raise Unavailable("the bus is closed")
            if (sent := self._unsettled.get(identity)) is not None:
                return sent
            route = self._route(exchange, key, message)
            if all(queue.has_room(len(message.body)) for queue in route.queues.values()):
                break
            await self._room.wait()
        confirming = {n: queue for n, queue in route.queues.items() if queue.declared.dead_letters}
        confirm = _Confirm(dict(confirming), asyncio.get_running_loop().create_future())
        if confirming:
            self._unsettled[identity] = confirm
            confirm.settled.add_done_callback(lambda _: self._unsettled.pop(identity, None))
        for live in route.live:
            live.put(message, exchange, key)
        for queue in route.queues.values():
            queue.put(message, exchange, key, confirm if queue.name in confirming else None)
        return confirm

    def _route(self, exchange: str, key: str, message: Message) -> _Route:
        route = _Route()
        if exchange not in self._exchanges:
            bus.UNROUTABLE.inc()
            raise Unroutable(f"exchange {exchange} is not declared")
        self._follow(exchange, key, message.headers, route, set())
        if not route.queues and not route.live:
            bus.UNROUTABLE.inc()
            raise Unroutable(f"no queue is bound to {exchange} for key {key}")
        return route

    def _follow(
        self,
        name: str,
        key: str,
        headers: Mapping[str, str | int],
        route: _Route,
        seen: set[str],
    ) -> None:
        if name in seen:
            return
        seen.add(name)
        exchange = self._exchanges[name]
        bindings = self._bindings[name]
        if exchange.kind == "topic":
            bindings = [binding for binding in bindings if topic_matches(binding.key, key)]
        elif exchange.kind == "x-consistent-hash":
            bindings = _by_hash(bindings, str(headers.get(exchange.hash_header or "", "")))
        for binding in bindings:
            if binding.to_exchange:
                self._follow(binding.target, key, headers, route, seen)
            else:
                route.queues[binding.target] = self._queues[binding.target]
        for live in self._live:
            if live not in route.live and any(
                binding.exchange == name
                and (exchange.kind == "fanout" or topic_matches(binding.key, key))
                for binding in live.bindings
            ):
                route.live.append(live)

    def put_at_once(self, exchange: str, key: str, message: Message) -> None:
        """Publish without waiting, for dead letters. Raises Unroutable."""
        for queue in self._route(exchange, key, message).queues.values():
            queue.put(message, exchange, key, None)

    def dead_letter(self, queue: _Queue, entry: _Entry) -> None:
        """Move an entry that came back too often, with the headers that RabbitMQ gives it."""
        headers = {
            **entry.message.headers,
            "x-first-death-reason": "delivery_limit",
            "x-first-death-queue": queue.name,
            "x-first-death-exchange": entry.exchange,
        }
        old = entry.message
        letter = Message(old.body, old.content_type, old.message_id, headers)
        try:
            self.put_at_once(DEAD, entry.key, letter)
        except Unroutable:
            bus.DROPPED.inc()
            log.error("dropped a poison message: no dead queue", queue=queue.name)
        queue.settle(entry)

    def wake_publishers(self) -> None:
        """Something was settled: whoever waits for room looks again."""
        self._room.set()
        self._room.clear()

    @asynccontextmanager
    async def consume(self, queue: str, *, prefetch: int) -> AsyncIterator[_QueueConsumer]:
        if queue not in self._queues:
            raise TopologyMissing.absent(f"queue {queue}")
        consumer = _QueueConsumer(self, self._queues[queue], prefetch)
        self._queues[queue].add(consumer)
        try:
            yield consumer
        finally:
            consumer.close()

    @asynccontextmanager
    async def subscribe(
        self, exchange: str, keys: Sequence[str], *, max_length: int
    ) -> AsyncIterator[_LiveConsumer]:
        if exchange not in self._exchanges:
            raise TopologyMissing.absent(f"exchange {exchange}")
        consumer = _LiveConsumer(exchange, keys, max_length)
        self._live.append(consumer)
        try:
            yield consumer
        finally:
            self._live.remove(consumer)

    async def declare(self, topology: Topology) -> None:
        for exchange in topology.exchanges:
            if self._exchanges.setdefault(exchange.name, exchange) != exchange:
                raise TopologyMissing.otherwise(
                    f"exchange {exchange.name}", f"{self._exchanges[exchange.name]}"
                )
        for queue in topology.queues:
            if queue.name not in self._queues:
                self._queues[queue.name] = _Queue(self, queue, self._queue_bytes)
            elif self._queues[queue.name].declared != queue:
                raise TopologyMissing.otherwise(
                    f"queue {queue.name}", f"{self._queues[queue.name].declared}"
                )
        for binding in topology.bindings:
            targets = self._exchanges if binding.to_exchange else self._queues
            if binding.exchange not in self._exchanges or binding.target not in targets:
                raise TopologyMissing.absent(f"{binding.exchange} or {binding.target}")
            if binding not in self._bindings[binding.exchange]:
                self._bindings[binding.exchange].append(binding)

    async def check(self, topology: Topology) -> None:
        missing = [
            f"exchange {e.name}" for e in topology.exchanges if e.name not in self._exchanges
        ]
        missing += [f"queue {q.name}" for q in topology.queues if q.name not in self._queues]
        if missing:
            raise TopologyMissing.absent(*missing)

    async def depth(self, queue: str) -> int:
        if queue not in self._queues:
            raise TopologyMissing.absent(f"queue {queue}")
        return len(self._queues[queue].waiting)

    def state(self) -> str | None:
        return "the bus is closed" if self._closed else None

    def close(self) -> None:
        """Let whoever still waits go, with Unavailable: nothing will settle a message any more."""
        self._closed = True
        self.wake_publishers()
        for confirm in list(self._unsettled.values()):
            if not confirm.settled.done():
                confirm.settled.set_result(None)


def _by_hash(bindings: Sequence[Binding], value: str) -> list[Binding]:
    """The one binding that a hash exchange chooses for a header's value; `key` is a weight."""
    weighted = [binding for binding in bindings for _ in range(int(binding.key))]
    if not weighted:
        return []
    digest = blake2b(value.encode(), digest_size=8).digest()
    return [weighted[int.from_bytes(digest) % len(weighted)]]
