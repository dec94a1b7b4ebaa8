"""The bus on RabbitMQ, 3.10 to 4.x. The only module that knows AMQP.

aio-pika opens the connections. What is done per message goes to the aiormq channels beneath it:
`Exchange.publish` and `Queue.iterator` cost about half as much again (docs/adr/0003-bus.md), and
their way of reconnecting hides what a caller has to know: whether a publish was confirmed, and
which deliveries are void.
"""

import asyncio
import logging
import socket
import ssl
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import aio_pika
import structlog
from aiormq import exceptions as amqp
from aiormq.abc import AbstractConnection, DeliveredMessage
from aiormq.channel import Channel
from pamqp import commands
from pamqp.common import FieldValue
from yarl import URL

from schemas.topology import DEAD, DELIVERY_LIMIT, MAX_QUEUE_BYTES, Exchange, Queue, Topology
from services import bus
from services.bus import (
    Bus,
    BusError,
    Delivery,
    Inbox,
    Message,
    Refused,
    TopologyMissing,
    Unavailable,
    Unroutable,
)
from services.runtime import backoff_s

log = structlog.get_logger("vervet.bus")
T = TypeVar("T")
Arguments = dict[str, FieldValue]

PUBLISH_TIMEOUT_S = 10.0
"""How long a publish waits for the broker, in all. Later than that its outcome is unknown."""

CONFIRM_WINDOW = 256
"""Publishes of one exchange that the broker has not confirmed. Awaiting each one alone is five
times slower; more than this is hardly faster and is what has to be sent again after a crash."""

REQUEST_TIMEOUT_S = 10.0
"""For one request (connect, declare, consume) to be answered."""

AWAY_S = 1.0
"""How long `declare`, `check` and `depth` wait for a connection before they say that it is away."""

HEARTBEAT_S = 10
"""aiormq gives a silent broker three of them and three seconds."""

DENIED_RETRY_S = 30.0
"""A wrong password does not mend itself, and brokers lock users out or log every attempt."""

STEADY_S = 1.0
"""A connection that lasted this long starts the back-off anew when it is lost."""

CLOSE_TIMEOUT_S = 2.0
"""For the farewell to a broker, which may be frozen; a service has to end within five seconds."""

WATCH_S = 30.0
"""How often an idle consumer looks whether its queue holds something after all."""

DEAD_QUEUE_BYTES = 256 * 1024**2
"""The dead queue drops its oldest beyond this."""

UNLIMITED_DELIVERIES = 1_000_000
"""Reading the dead queue is no attempt at its messages. 3.10 knows no -1, 4.x would take 20."""

BROKER_HEADERS = {"x-delivery-count"}
"""Headers that the broker adds, which are no part of what was published."""


class ConnectionLost(Exception):
    """aiormq cancelled what was under way, although nobody here did."""


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
    sending = _Link(URL(url), f"{name}: publish")
    receiving = _Link(URL(url), f"{name}: consume")
    sending.start()
    try:
        yield RabbitBus(sending, receiving, publish_timeout_s)
    finally:
        await asyncio.gather(sending.close(), receiving.close())


async def _ask(work: Coroutine[Any, Any, T], timeout_s: float = REQUEST_TIMEOUT_S) -> T:
    """The answer to one request, awaited in a task of its own.

    aiormq ends what is pending on a lost connection with CancelledError. Awaited here, that would
    be taken for our own cancellation, and a TaskGroup would swallow it.
    """
    task = asyncio.create_task(work)
    try:
        await asyncio.wait((task,), timeout=timeout_s)
    finally:
        if not task.done():
            task.cancel()
            task.add_done_callback(_look_at)
    if not task.done():
        raise TimeoutError(f"no answer within {timeout_s:g} s")
    if task.cancelled():
        raise ConnectionLost("connection lost")
    return task.result()


async def _open_channel(connection: AbstractConnection, *, confirms: bool) -> Channel:
    """A channel; with `confirms`, an unroutable publish on it raises. (aio-pika's default is to
    report such a message as delivered.)"""
    channel = await _ask(connection.channel(publisher_confirms=confirms, on_return_raises=confirms))
    assert isinstance(channel, Channel)
    return channel


def _look_at(task: "asyncio.Task[Any]") -> None:
    """Nobody waits for this outcome any more; asyncio would warn that it was never looked at."""
    if not task.cancelled():
        task.exception()


class _Link:
    """One connection to the broker, opened again whenever it is lost, with full jitter.

    `trouble` says what is wrong, None while all is well. Publishers and consumers have a link each:
    a broker in alarm stops reading from connections that publish, acks included.
    """

    def __init__(self, url: URL, name: str) -> None:
        port = url.port or (5671 if url.scheme == "amqps" else 5672)
        self.where = f"rabbitmq at {url.host}:{port}"
        self.trouble: str | None = None
        self._url = url.update_query(
            {"heartbeat": HEARTBEAT_S, **url.query, "name": f"{name} {socket.gethostname()}"}
        )
        self._name = name
        self._connection: AbstractConnection | None = None
        self._open = asyncio.Event()
        self._flowing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._opened_before = False

    def start(self) -> None:
        """Begin to connect; again is a no-op."""
        if self._task is None:
            self.trouble = f"connecting to {self.where}"
            self._task = asyncio.create_task(self._run(), name=self._name)

    async def opened(self) -> AbstractConnection:
        """The connection, as soon as there is one."""
        while self._connection is None:
            await self._open.wait()
        return self._connection

    async def flowing(self) -> AbstractConnection:
        """The connection, as soon as there is one that the broker reads from."""
        while self._connection is None or not self._flowing.is_set():
            await self._open.wait()
            await self._flowing.wait()
        return self._connection

    def is_blocked(self) -> bool:
        return not self._flowing.is_set()

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    async def _run(self) -> None:
        attempt = 0
        while True:
            began = time.monotonic()
            pause_s = None
            connection = aio_pika.Connection(self._url)
            try:
                await _ask(connection.connect())
                lost = await self._stay(connection)
                if time.monotonic() - began > STEADY_S:
                    attempt = 0
                self._tell(f"lost {self.where}: {lost}")
            except (amqp.ProbableAuthenticationError, amqp.AuthenticationError):
                self._tell(f"access refused for user {self._url.user or 'guest'} by {self.where}")
                pause_s = DENIED_RETRY_S
            except Exception as error:  # noqa: BLE001 - aiormq raises bare Exception, too
                self._tell(f"connecting to {self.where}: {self._describe(error)}")
            finally:
                self._connection = None
                self._open.clear()
                # A frozen broker answers no farewell; what is left of it ends by itself.
                with suppress(Exception):
                    await _ask(connection.close(), CLOSE_TIMEOUT_S)
            jitter_s = backoff_s(attempt)
            attempt += 1
            await asyncio.sleep(jitter_s if pause_s is None else pause_s + jitter_s)

    async def _stay(self, connection: aio_pika.Connection) -> str:
        """Lend the connection out until it is lost; returns why."""
        if connection.transport is None:
            return "closed at once"
        raw = connection.transport.connection
        self._watch_alarms(raw)
        self._flowing.set()
        self._connection = raw
        self.trouble = None
        self._open.set()
        if self._opened_before:
            bus.RECONNECTS.inc()
            log.info("connected again", to=self.where, link=self._name)
        self._opened_before = True
        closing = raw.closing
        await asyncio.wait((closing,))
        return "closed" if closing.cancelled() else self._describe(closing.exception())

    def _watch_alarms(self, raw: AbstractConnection) -> None:
        """Hear of connection.blocked, with its reason. aiormq keeps it to itself; without these
        two, were they renamed there, publishes in an alarm would time out instead of waiting."""

        async def blocked(frame: commands.Connection.Blocked) -> None:
            self._flowing.clear()
            self._tell(f"blocked: {frame.reason}")

        async def unblocked(_: commands.Connection.Unblocked) -> None:
            self._flowing.set()
            self.trouble = None
            log.info("unblocked", by=self.where)

        raw._Connection__handle_connection_blocked = blocked  # type: ignore[attr-defined]
        raw._Connection__handle_connection_unblocked = unblocked  # type: ignore[attr-defined]

    def _tell(self, trouble: str) -> None:
        if trouble != self.trouble:
            log.warning("no connection to the broker", reason=trouble, link=self._name)
        self.trouble = trouble

    def _describe(self, error: BaseException | None) -> str:
        """An error in few words, and without the password that a URL in it might carry."""
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, ssl.SSLCertVerificationError):
                return f"its certificate is not trusted: {cause.verify_message}"
            if isinstance(cause, ConnectionRefusedError) or "Errno 111" in str(cause):
                return "connection refused"
            if isinstance(cause, socket.gaierror):
                return "the host name is not known"
            cause = cause.__cause__
        text = str(error) or type(error).__name__
        return text.replace(self._url.password, "***") if self._url.password else text


class _Outlet:
    """The channel that one exchange is published through.

    Each exchange has its own, since a publish that the broker refuses (an absent exchange, no
    permission) closes the channel and leaves whatever is under way there without an outcome.
    """

    def __init__(self, link: _Link, exchange: str) -> None:
        self._link = link
        self._exchange = exchange
        self._channel: Channel | None = None
        self._window = asyncio.Semaphore(CONFIRM_WINDOW)
        self._opening = asyncio.Lock()

    async def send(self, key: str, message: Message) -> None:
        """Returns once it is confirmed; raises Unroutable, Unavailable, Refused."""
        channel = self._channel
        if channel is None or channel.is_closed or self._link.is_blocked():
            channel = await self._open()
        window = self._window
        await window.acquire()
        properties = commands.Basic.Properties(
            content_type=message.content_type,
            headers=dict(message.headers),
            delivery_mode=2,
            message_id=message.message_id,
        )
        # In a task of its own for the reason given at `_ask`. And it outlives a caller that gives
        # up: its place in the window is free when the broker has answered, not sooner, so that no
        # more than a window is ever under way to a broker that stopped answering.
        task = asyncio.create_task(
            channel.basic_publish(
                message.body,
                exchange=self._exchange,
                routing_key=key,
                properties=properties,
                mandatory=True,
                wait=False,
            )
        )
        task.add_done_callback(_look_at)
        task.add_done_callback(lambda _: window.release())
        await asyncio.wait((task,))
        if task.cancelled():
            bus.UNCONFIRMED.inc()
            raise Unavailable(self._link.trouble or f"lost {self._link.where}")
        if (error := task.exception()) is not None:
            raise self._refusal(error, key, message) from error

    async def _open(self) -> Channel:
        async with self._opening:
            connection = await self._link.flowing()
            if self._channel is None or self._channel.is_closed:
                with _translated("a channel", self._link):
                    self._channel = await _open_channel(connection, confirms=True)
                self._window = asyncio.Semaphore(CONFIRM_WINDOW)
            return self._channel

    def _refusal(self, error: BaseException, key: str, message: Message) -> BusError:
        """What a failed publish means to its caller. A closed channel fails all that were under
        way on it, so those that the broker's words do not concern are merely unknown."""
        text = str(error)
        if isinstance(error, amqp.PublishError):
            bus.UNROUTABLE.inc()
            return Unroutable(f"no queue is bound to {self._exchange} for key {key}")
        if isinstance(error, amqp.ChannelNotFoundEntity):
            bus.UNROUTABLE.inc()
            return Unroutable(f"exchange {self._exchange} is not declared")
        if isinstance(error, amqp.DeliveryError):
            bus.NACKED.inc()
            return Unavailable(f"a queue bound to {self._exchange} is full")
        bus.UNCONFIRMED.inc()
        refused = isinstance(error, amqp.ChannelAccessRefused)
        if refused and ("topic" not in text or f"'{key}'" in text):
            return Refused(text)
        too_large = isinstance(error, amqp.ChannelPreconditionFailed)
        if too_large and f"size {len(message.body)} " in text:
            return Refused(text)
        return Unavailable(self._link.trouble or f"{self._link.where}: {text}")


@dataclass(frozen=True)
class _Source:
    """What a consumer subscribes to: a declared queue, or with `keys` a live stream."""

    name: str
    prefetch: int = 0
    keys: tuple[str, ...] | None = None
    max_length: int = 0


class _Consumer:
    """A subscription that is opened again on every new connection.

    Tags grow over all of them: those of a lost channel are at most `_base`, and void.
    """

    def __init__(self, link: _Link, publisher: "RabbitBus", source: _Source) -> None:
        self.trouble: str | None = None
        self.standing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._link = link
        self._publisher = publisher
        self._source = source
        self._inbox = Inbox(source.max_length)
        self._channel: Channel | None = None
        self._base = 0
        self._newest = 0
        self._unsettled: OrderedDict[int, None] = OrderedDict()

    def __aiter__(self) -> AsyncIterator[Delivery]:
        return self

    async def __anext__(self) -> Delivery:
        return await self._inbox.receive()

    async def receive(self) -> Delivery:
        return await self._inbox.receive()

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        tags = sorted(d.tag for d in deliveries if d.tag in self._unsettled)
        for tag in tags:
            del self._unsettled[tag]
        # All that is older than the eldest still unsettled one goes in one frame.
        eldest = next(iter(self._unsettled), self._newest + 1)
        together = [tag for tag in tags if tag < eldest]
        if together:
            await self._settle(together[-1], "ack", multiple=True)
        for tag in tags[len(together) :]:
            await self._settle(tag, "ack")

    async def reject(self, delivery: Delivery, reason: str) -> None:
        if delivery.tag not in self._unsettled:
            return
        letter = bus.dead_letter(delivery, self._source.name, reason)
        await self._publisher.publish(DEAD, delivery.routing_key, letter)
        bus.REJECTED.inc()
        await self.ack((delivery,))

    async def retry(self, delivery: Delivery) -> None:
        # basic.reject, since basic.nack does not count towards the delivery limit from 4.3 on.
        if delivery.tag in self._unsettled:
            del self._unsettled[delivery.tag]
            await self._settle(delivery.tag, "retry")

    async def _settle(
        self, tag: int, how: Literal["ack", "retry"], *, multiple: bool = False
    ) -> None:
        channel = self._channel
        if channel is None:
            return
        # A channel that closed meanwhile gives back all that was unsettled on it.
        with suppress(amqp.ChannelInvalidStateError, amqp.AMQPError):
            if how == "ack":
                await channel.basic_ack(tag - self._base, multiple=multiple, wait=False)
            else:
                await channel.basic_reject(tag - self._base, requeue=True, wait=False)

    async def run(self) -> None:
        """Keep the subscription standing. Ends only when the first one meets TopologyMissing."""
        attempt = 0
        while True:
            connection = await self._link.opened()
            try:
                cancelled = await self._stand(connection)
            except TopologyMissing as missing:
                if not self.standing.done():
                    self.standing.set_exception(missing)
                    return
                self.trouble = str(missing)
            except Unavailable as error:
                self.trouble = str(error)
            else:
                attempt = 0
                self.trouble = None
                if not self.standing.done():
                    self.standing.set_result(None)
                await self._until_lost(cancelled)
            finally:
                await self._fall()
            await asyncio.sleep(backoff_s(attempt))
            attempt += 1

    async def _stand(self, connection: AbstractConnection) -> "asyncio.Future[None]":
        """Subscribe on a channel of its own. The future is done when the broker cancels it."""
        source = self._source
        cancelled: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def cancel(_: commands.Basic.Cancel) -> None:
            if not cancelled.done():
                cancelled.set_result(None)

        kind = "queue" if source.keys is None else "exchange"
        with _translated(f"{kind} {source.name}", self._link):
            channel = self._channel = await _open_channel(connection, confirms=False)
            channel.on_consumer_cancel_callbacks.add(cancel)
            queue = source.name
            if source.keys is not None:
                queue = await self._declare_live(channel, source.keys)
            else:
                await _ask(channel.basic_qos(prefetch_count=source.prefetch))

            async def take(message: DeliveredMessage) -> None:
                if channel is self._channel:
                    self._take(message)

            await _ask(channel.basic_consume(queue, take, no_ack=source.keys is not None))
        return cancelled

    async def _declare_live(self, channel: Channel, keys: tuple[str, ...]) -> str:
        arguments: Arguments = {
            "x-queue-type": "classic",
            "x-max-length": self._source.max_length,
            "x-overflow": "drop-head",
        }
        declared = await _ask(
            channel.queue_declare(exclusive=True, auto_delete=True, arguments=arguments)
        )
        name = declared.queue or ""
        for key in keys:
            await _ask(channel.queue_bind(name, self._source.name, key))
        return name

    def _take(self, message: DeliveredMessage) -> None:
        frame = message.delivery
        properties = message.header.properties
        assert isinstance(frame, commands.Basic.Deliver)
        tag = self._newest = self._base + (frame.delivery_tag or 0)
        if self._source.keys is None:
            self._unsettled[tag] = None
        headers = {
            name: value
            for name, value in (properties.headers or {}).items()
            if isinstance(value, str | int) and name not in BROKER_HEADERS
        }
        self._inbox.put(
            Delivery(
                Message(
                    message.body,
                    properties.content_type or "",
                    properties.message_id or "",
                    headers,
                ),
                frame.exchange,
                frame.routing_key or "",
                bool(frame.redelivered),
                tag,
            )
        )

    async def _until_lost(self, cancelled: "asyncio.Future[None]") -> None:
        """Wait until the subscription is gone, or stands idle before a queue that is not empty."""
        assert self._channel is not None
        closing = self._channel.closing
        newest = self._newest
        while True:
            done, _ = await asyncio.wait(
                (closing, cancelled), timeout=WATCH_S, return_when=asyncio.FIRST_COMPLETED
            )
            if done:
                return
            if self._newest == newest and await self._is_passed_over(self._channel, newest):
                bus.RESUBSCRIBED.inc()
                log.warning("subscribing again: idle before a full queue", queue=self._source.name)
                return
            newest = self._newest

    async def _is_passed_over(self, channel: Channel, newest: int) -> bool:
        """Whether messages wait although this consumer holds none. One that never got any may be
        the standby of a single active consumer, so it has to be alone to say that."""
        if self._unsettled or self._source.keys is not None:
            return False
        try:
            found = await _ask(channel.queue_declare(self._source.name, passive=True))
            if not found.message_count or (
                newest == self._base and (found.consumer_count or 0) > 1
            ):
                return False
        except Exception as error:  # noqa: BLE001 - whatever it is, the subscription is renewed
            log.warning("cannot look at a queue", queue=self._source.name, reason=str(error))
            return True
        await asyncio.sleep(STEADY_S)
        return self._newest == newest

    async def _fall(self) -> None:
        """Forget the channel; the broker gives back what was unsettled on it."""
        channel, self._channel = self._channel, None
        self._base = self._newest
        self._unsettled.clear()
        self._inbox.clear()
        if channel is not None and not channel.is_closed:
            with suppress(Exception):
                await _ask(channel.close(), CLOSE_TIMEOUT_S)


class RabbitBus:
    """The bus on two links; made by `rabbit_bus`."""

    def __init__(self, sending: _Link, receiving: _Link, publish_timeout_s: float) -> None:
        self._sending = sending
        self._receiving = receiving
        self._publish_timeout_s = publish_timeout_s
        self._outlets: dict[str, _Outlet] = {}
        self._consumers: set[_Consumer] = set()

    async def publish(self, exchange: str, key: str, message: Message) -> None:
        bus.check_size(key, message)
        outlet = self._outlets.get(exchange)
        if outlet is None:
            outlet = self._outlets[exchange] = _Outlet(self._sending, exchange)
        try:
            async with asyncio.timeout(self._publish_timeout_s):
                await outlet.send(key, message)
        except TimeoutError:
            bus.UNCONFIRMED.inc()
            slow = f"{self._sending.where} did not confirm in {self._publish_timeout_s:g} s"
            raise Unavailable(self._sending.trouble or slow) from None
        bus.PUBLISHED.inc()

    @asynccontextmanager
    async def consume(self, queue: str, *, prefetch: int) -> AsyncIterator[_Consumer]:
        async with self._subscription(_Source(queue, prefetch)) as consumer:
            yield consumer

    @asynccontextmanager
    async def subscribe(
        self, exchange: str, keys: Sequence[str], *, max_length: int
    ) -> AsyncIterator[_Consumer]:
        source = _Source(exchange, keys=tuple(keys), max_length=max_length)
        async with self._subscription(source) as consumer:
            yield consumer

    @asynccontextmanager
    async def _subscription(self, source: _Source) -> AsyncIterator[_Consumer]:
        self._receiving.start()
        consumer = _Consumer(self._receiving, self, source)
        self._consumers.add(consumer)
        task = asyncio.create_task(consumer.run(), name=f"consume {source.name}")
        try:
            await consumer.standing
            yield consumer
        finally:
            self._consumers.discard(consumer)
            task.cancel()
            await asyncio.wait((task,))

    async def declare(self, topology: Topology) -> None:
        async with self._requests() as channel:
            for exchange in topology.exchanges:
                with _translated(f"exchange {exchange.name}", self._receiving):
                    await _ask(
                        channel.exchange_declare(
                            exchange.name,
                            exchange_type=exchange.kind,
                            durable=True,
                            arguments=exchange_arguments(exchange),
                        )
                    )
            for queue in topology.queues:
                with _translated(f"queue {queue.name}", self._receiving):
                    arguments = queue_arguments(queue)
                    await _ask(channel.queue_declare(queue.name, durable=True, arguments=arguments))
            for binding in topology.bindings:
                with _translated(f"{binding.target} or {binding.exchange}", self._receiving):
                    names = (binding.target, binding.exchange, binding.key)
                    if binding.to_exchange:
                        await _ask(channel.exchange_bind(*names))
                    else:
                        await _ask(channel.queue_bind(*names))

    async def check(self, topology: Topology) -> None:
        names = [("exchange", exchange.name) for exchange in topology.exchanges]
        names += [("queue", queue.name) for queue in topology.queues]
        absent = [f"{kind} {name}" for kind, name in names if await self._look(kind, name) is None]
        if absent:
            raise TopologyMissing.absent(*absent)

    async def depth(self, queue: str) -> int:
        found = await self._look("queue", queue)
        if found is None:
            raise TopologyMissing.absent(f"queue {queue}")
        return found

    async def _look(self, kind: str, name: str) -> int | None:
        """Messages that wait in a queue, 0 for an exchange, None when it is not declared."""
        async with self._requests() as channel:
            with _translated(f"{kind} {name}", self._receiving):
                try:
                    if kind == "exchange":
                        await _ask(channel.exchange_declare(name, passive=True))
                        return 0
                    found = await _ask(channel.queue_declare(name, passive=True))
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
        with _translated("a channel", self._receiving):
            channel = await _open_channel(connection, confirms=False)
        try:
            yield channel
        finally:
            if not channel.is_closed:
                with suppress(Exception):
                    await _ask(channel.close(), CLOSE_TIMEOUT_S)

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


@contextmanager
def _translated(name: str, link: _Link) -> Iterator[None]:
    """What aiormq raises for a request about `name`, in the port's words."""
    try:
        yield
    except BusError:
        raise
    except amqp.ChannelNotFoundEntity as error:
        raise TopologyMissing.absent(name) from error
    except Exception as error:
        text = str(error)
        if "exchange type" in text:
            # 3.x ends the connection for it, 4.x the channel.
            fix = "run `rabbitmq-plugins enable rabbitmq_consistent_hash_exchange`"
            raise TopologyMissing(f"{name} is of a type that the broker lacks: {fix}") from error
        if isinstance(error, amqp.ChannelPreconditionFailed):
            raise TopologyMissing.otherwise(name, text) from error
        if isinstance(error, amqp.ChannelAccessRefused):
            raise TopologyMissing(f"{name}: {text}") from error
        raise Unavailable(
            link.trouble or f"{link.where}: {text or type(error).__name__}"
        ) from error
