"""One connection to RabbitMQ that is kept open, and how to ask something of it.

aio-pika opens it; its own reconnecting (`connect_robust`) is not used, since it hides what a caller
has to know: whether a publish was confirmed, and which deliveries are void.
"""

import asyncio
import socket
import ssl
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import aio_pika
import structlog
from aiormq import exceptions as amqp
from aiormq.abc import AbstractConnection
from aiormq.channel import Channel
from pamqp import commands
from yarl import URL

from services import bus
from services.bus import BusError, TopologyMissing, Unavailable
from services.bus_rabbit_wire import quick_frames
from services.runtime import backoff_s

log = structlog.get_logger("vervet.bus")
T = TypeVar("T")

REQUEST_TIMEOUT_S = 10.0
"""For one request (connect, declare, consume) to be answered."""

HEARTBEAT_S = 10
"""aiormq gives a silent broker three of them and three seconds."""

DENIED_RETRY_S = 30.0
"""A wrong password does not mend itself, and brokers lock users out or log every attempt."""

STEADY_S = 1.0
"""A connection that lasted this long starts the back-off anew when it is lost."""

CLOSE_TIMEOUT_S = 1.0
"""For the farewell to a broker, which may be frozen; a service has to end within five seconds."""

CANCEL_S = 0.2
"""For what was given up to clean up after itself."""

MAX_PAUSE_S = 8.0
"""Upper end of the random pause between two attempts to connect."""


class ConnectionLost(Exception):
    """aiormq cancelled what was under way, although nobody here did."""


class Link:
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
        self._user = url.user or "guest"
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
                with quick_frames():
                    await ask(connection.connect())
                lost = await self._stay(connection)
                if time.monotonic() - began > STEADY_S:
                    attempt = 0
                self._tell(f"lost {self.where}: {lost}")
            except (amqp.ProbableAuthenticationError, amqp.AuthenticationError):
                self._tell(f"access refused for user {self._user} by {self.where}")
                pause_s = DENIED_RETRY_S
            except Exception as error:  # noqa: BLE001 - aiormq raises bare Exception, too
                self._tell(f"connecting to {self.where}: {self._describe(error)}")
            finally:
                self._connection = None
                self._open.clear()
                # A frozen broker answers no farewell; what is left of it ends by itself.
                with suppress(Exception):
                    await ask(connection.close(), CLOSE_TIMEOUT_S)
            jitter_s = backoff_s(attempt, most_s=MAX_PAUSE_S)
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
            log.warning("the broker is not available", reason=trouble, link=self._name)
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
        if isinstance(error, amqp.InvalidFrameError) and "Connection.OpenOk" in text:
            # aiormq drops the broker's words for this one.
            host = self._url.path.removeprefix("/") or "/"
            return f"virtual host {host} is absent, full, or closed to {self._user}"
        return text.replace(self._url.password, "***") if self._url.password else text


async def ask(work: Coroutine[Any, Any, T], timeout_s: float | None = None) -> T:
    """The answer to one request, awaited in a task of its own.

    aiormq ends what is pending on a lost connection with CancelledError. Awaited here, that would
    be taken for our own cancellation, and a TaskGroup would swallow it.
    """
    timeout_s = REQUEST_TIMEOUT_S if timeout_s is None else timeout_s
    task = asyncio.create_task(work)
    try:
        await asyncio.wait((task,), timeout=timeout_s)
        if not task.done():
            raise TimeoutError(f"no answer within {timeout_s:g} s")
    finally:
        if not task.done():
            task.cancel()
            task.add_done_callback(look_at)
            await asyncio.wait((task,), timeout=CANCEL_S)
    if task.cancelled():
        raise ConnectionLost("connection lost")
    return task.result()


async def open_channel(connection: AbstractConnection, *, confirms: bool) -> Channel:
    """A channel; with `confirms`, an unroutable publish on it raises. (aio-pika's default is to
    report such a message as delivered.)"""
    channel = await ask(connection.channel(publisher_confirms=confirms, on_return_raises=confirms))
    assert isinstance(channel, Channel)
    return channel


def look_at(task: "asyncio.Task[Any]") -> None:
    """Nobody waits for this outcome any more; asyncio would warn that it was never looked at."""
    if not task.cancelled():
        task.exception()


@contextmanager
def translated(name: str, link: Link) -> Iterator[None]:
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
