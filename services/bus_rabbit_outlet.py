"""Publishing to RabbitMQ: confirmed, mandatory, pipelined.

The channel is aiormq's; messages and confirms go past it (services/bus_rabbit_wire.py).
"""

import asyncio
import struct
import time
from collections import OrderedDict
from itertools import takewhile

from aiormq import exceptions as amqp
from aiormq.channel import Channel

from services import bus
from services.bus import BusError, Message, Refused, Unavailable, Unroutable
from services.bus_rabbit_link import ConnectionLost, Link, open_channel, translated
from services.bus_rabbit_wire import Arrival, Confirmed, Returned, Writer, divert, publish_frames

CONFIRM_WINDOW = 256
"""Publishes of one exchange that the broker has not confirmed. Awaiting each one alone is five
times slower; more than this is hardly faster and is what has to be sent again after a crash."""

CROWDED_S = 0.05
"""How often a publish looks whether the broker has answered those that were given up."""


class Window:
    """Publishes on one channel that the broker has not answered, by their tags."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self._writer = Writer(channel)
        self._newest = 0
        self._open: OrderedDict[int, tuple[str, asyncio.Future[None]]] = OrderedDict()
        divert(channel, self._take)
        channel.closing.add_done_callback(self._fail)

    def __len__(self) -> int:
        return len(self._open)

    def publish(self, exchange: str, key: str, message: Message) -> "asyncio.Future[None]":
        """A future that is done once the broker has stored it. Raises what cannot be encoded.

        Given up, a publish keeps its place until the broker has answered.
        """
        number, frame_max = self.channel.number, self._writer.frame_max
        self._writer.write(publish_frames(number, frame_max, exchange, key, message))
        self._newest += 1
        outcome: asyncio.Future[None] = self.channel.loop.create_future()
        self._open[self._newest] = (message.message_id, outcome)
        return outcome

    def _take(self, arrival: Arrival) -> None:
        if isinstance(arrival, Confirmed):
            if arrival.multiple:
                for tag in takewhile(lambda tag: tag <= arrival.tag, list(self._open)):
                    self._settle(tag, arrival.stored)
            else:
                self._settle(arrival.tag, arrival.stored)
        elif isinstance(arrival, Returned):
            outcomes = (known for id_, known in self._open.values() if id_ == arrival.message_id)
            for outcome in outcomes:
                if not outcome.done():
                    outcome.set_exception(NotRouted())
                    return

    def _settle(self, tag: int, stored: bool) -> None:
        _, outcome = self._open.pop(tag, ("", None))
        if outcome is None or outcome.done():
            return
        if stored:
            outcome.set_result(None)
        else:
            outcome.set_exception(NotStored())

    def _fail(self, closing: "asyncio.Future[None]") -> None:
        """The channel is closed: the outcome of all that was under way stays unknown."""
        error = None if closing.cancelled() else closing.exception()
        for _, outcome in self._open.values():
            if not outcome.done():
                outcome.set_exception(error or ConnectionLost("connection lost"))
        self._open.clear()


class NotRouted(Exception):
    """The broker gave the message back: no queue is bound for it."""


class NotStored(Exception):
    """A queue refused the message: it is full."""


class Outlet:
    """The channel that one exchange is published through.

    Each exchange has its own, since a publish that the broker refuses (an absent exchange, no
    permission) closes the channel and leaves whatever is under way there without an outcome.
    """

    def __init__(self, link: Link, exchange: str) -> None:
        self._link = link
        self._exchange = exchange
        self._window: Window | None = None
        self._opening = asyncio.Lock()
        self._places = asyncio.Semaphore(CONFIRM_WINDOW)

    async def send(self, key: str, message: Message, timeout_s: float) -> None:
        """Returns once it is confirmed; raises Unroutable, Unavailable, Refused, TimeoutError."""
        if self._is_clear():
            await self._places.acquire()
        else:
            began = time.monotonic()
            async with asyncio.timeout(timeout_s):
                await self._clear()
            timeout_s -= time.monotonic() - began
        try:
            assert self._window is not None
            outcome = self._window.publish(self._exchange, key, message)
            patience = outcome.get_loop().call_later(timeout_s, _give_up, outcome)
            try:
                await outcome
            finally:
                patience.cancel()
        except TimeoutError:
            raise
        except Exception as error:
            raise self._refusal(error, key, message) from error
        finally:
            self._places.release()

    def _is_clear(self) -> bool:
        """Whether a message can go out at once."""
        return (
            self._window is not None
            and not self._window.channel.is_closed
            and not self._link.is_blocked()
            and not self._places.locked()
            and len(self._window) < CONFIRM_WINDOW
        )

    async def _clear(self) -> None:
        """Wait for an open channel that the broker reads from, and for a place in the window."""
        await self._places.acquire()
        try:
            window = await self._open()
            # Publishes that were given up hold their places here until the broker has answered, so
            # that one which stopped answering gets no more than a window to keep.
            while len(window) >= CONFIRM_WINDOW:
                await asyncio.sleep(CROWDED_S)
                window = await self._open()
        except BaseException:
            self._places.release()
            raise

    async def _open(self) -> Window:
        async with self._opening:
            connection = await self._link.flowing()
            if self._window is None or self._window.channel.is_closed:
                with translated("a channel", self._link):
                    self._window = Window(await open_channel(connection, confirms=True))
            return self._window

    def _refusal(self, error: BaseException, key: str, message: Message) -> BusError:
        """What a failed publish means to its caller. A closed channel fails all that were under
        way on it, so those that the broker's words do not concern are merely unknown."""
        text = str(error)
        if isinstance(error, ValueError | TypeError | struct.error):
            return Refused(f"cannot be encoded: {text}")
        if isinstance(error, NotRouted):
            bus.UNROUTABLE.inc()
            return Unroutable(f"no queue is bound to {self._exchange} for key {key}")
        if isinstance(error, amqp.ChannelNotFoundEntity):
            bus.UNROUTABLE.inc()
            return Unroutable(f"exchange {self._exchange} is not declared")
        if isinstance(error, NotStored):
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


def _give_up(outcome: "asyncio.Future[None]") -> None:
    if not outcome.done():
        outcome.set_exception(TimeoutError())
