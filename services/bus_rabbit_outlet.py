"""Publishing to RabbitMQ: confirmed, mandatory, pipelined.

It works on the aiormq channel beneath aio-pika: `Exchange.publish` costs 40 % more CPU per message
(docs/adr/0003-bus.md).
"""

import asyncio
import struct
import time

from aiormq import exceptions as amqp
from aiormq.channel import Channel
from pamqp import commands

from services import bus
from services.bus import BusError, Message, Refused, Unavailable, Unroutable
from services.bus_rabbit_link import Link, is_cancelled, open_channel, translated

CONFIRM_WINDOW = 256
"""Publishes of one exchange that the broker has not confirmed. Awaiting each one alone is five
times slower; more than this is hardly faster and is what has to be sent again after a crash."""

CROWDED_S = 0.05
"""How often a publish looks whether the broker has answered those that were given up."""


class Outlet:
    """The channel that one exchange is published through.

    Each exchange has its own, since a publish that the broker refuses (an absent exchange, no
    permission) closes the channel and leaves whatever is under way there without an outcome.
    """

    def __init__(self, link: Link, exchange: str) -> None:
        self._link = link
        self._exchange = exchange
        self._channel: Channel | None = None
        self._opening = asyncio.Lock()
        self._window = asyncio.Semaphore(CONFIRM_WINDOW)

    async def send(self, key: str, message: Message, timeout_s: float) -> None:
        """Returns once it is confirmed; raises Unroutable, Unavailable, Refused, TimeoutError."""
        if self._is_clear():
            await self._window.acquire()
        else:
            began = time.monotonic()
            async with asyncio.timeout(timeout_s):
                await self._clear()
            timeout_s -= time.monotonic() - began
        try:
            await self._publish(key, message, timeout_s)
        except TimeoutError:
            raise
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            bus.UNCONFIRMED.inc()
            raise Unavailable(self._link.trouble or f"lost {self._link.where}") from None
        except Exception as error:
            raise self._refusal(error, key, message) from error
        finally:
            self._window.release()

    async def _publish(self, key: str, message: Message, timeout_s: float) -> None:
        assert self._channel is not None
        await self._channel.basic_publish(
            message.body,
            exchange=self._exchange,
            routing_key=key,
            properties=commands.Basic.Properties(
                content_type=message.content_type,
                headers=dict(message.headers),
                delivery_mode=2,
                message_id=message.message_id,
            ),
            mandatory=True,
            timeout=timeout_s,
            wait=False,
        )

    def _is_clear(self) -> bool:
        """Whether a message can go out at once."""
        return (
            self._channel is not None
            and not self._channel.is_closed
            and not self._link.is_blocked()
            and not self._window.locked()
            and len(self._channel.confirmations) < CONFIRM_WINDOW
        )

    async def _clear(self) -> None:
        """Wait for an open channel that the broker reads from, and for a place in the window."""
        await self._window.acquire()
        try:
            channel = await self._open()
            # Publishes that were given up hold their places here until the broker has answered, so
            # that one which stopped answering gets no more than a window to keep.
            while len(channel.confirmations) >= CONFIRM_WINDOW:
                await asyncio.sleep(CROWDED_S)
                channel = await self._open()
        except BaseException:
            self._window.release()
            raise

    async def _open(self) -> Channel:
        async with self._opening:
            connection = await self._link.flowing()
            if self._channel is None or self._channel.is_closed:
                with translated("a channel", self._link):
                    self._channel = await open_channel(connection, confirms=True)
            return self._channel

    def _refusal(self, error: BaseException, key: str, message: Message) -> BusError:
        """What a failed publish means to its caller. A closed channel fails all that were under
        way on it, so those that the broker's words do not concern are merely unknown."""
        text = str(error)
        if isinstance(error, ValueError | TypeError | struct.error):
            return Refused(f"cannot be encoded: {text}")
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
