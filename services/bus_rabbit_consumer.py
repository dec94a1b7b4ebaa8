"""Consuming from RabbitMQ: a subscription that is opened again on every new connection."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import structlog
from aiormq import exceptions as amqp
from aiormq.abc import AbstractConnection, DeliveredMessage
from aiormq.channel import Channel
from pamqp import commands
from pamqp.common import FieldValue

from schemas.topology import DEAD
from services import bus
from services.bus import Delivery, Inbox, Message, TopologyMissing, Unavailable
from services.bus_rabbit_link import CLOSE_TIMEOUT_S, Link, ask, open_channel, translated
from services.bus_rabbit_wire import Arrival, Incoming, divert
from services.runtime import backoff_s

log = structlog.get_logger("vervet.bus")
Publish = Callable[[str, str, Message], Awaitable[None]]

WATCH_S = 30.0
"""How often an idle consumer looks whether its queue holds something after all."""

SECOND_LOOK_S = 1.0
"""A message that came in between is on its way, and no reason to doubt the subscription."""


@dataclass(frozen=True)
class Source:
    """What a consumer subscribes to: a declared queue, or with `keys` a live stream."""

    name: str
    prefetch: int = 0
    keys: tuple[str, ...] | None = None
    max_length: int = 0


class Consumer:
    """A subscription that is opened again on every new connection.

    Tags grow over all of them: those of a lost channel are at most `_base`, and void.
    """

    def __init__(self, link: Link, publish: Publish, source: Source) -> None:
        self.trouble: str | None = None
        self.standing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._link = link
        self._publish = publish
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
        await self._publish(DEAD, delivery.routing_key, letter)
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

    def note_end(self, task: "asyncio.Task[None]") -> None:
        """`run` never ends by an error of the broker; if it does by one of ours, that is told."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self.trouble = f"consuming {self._source.name} ended: {error}"
            log.error("consuming ended", source=self._source.name, exc_info=error)

    async def _stand(self, connection: AbstractConnection) -> "asyncio.Future[None]":
        """Subscribe on a channel of its own. The future is done when the broker cancels it."""
        source = self._source
        cancelled: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def cancel(_: commands.Basic.Cancel) -> None:
            if not cancelled.done():
                cancelled.set_result(None)

        kind = "queue" if source.keys is None else "exchange"
        with translated(f"{kind} {source.name}", self._link):
            channel = self._channel = await open_channel(connection, confirms=False)
            channel.on_consumer_cancel_callbacks.add(cancel)
            queue = source.name
            if source.keys is not None:
                queue = await self._declare_live(channel, source.keys)
            else:
                await ask(channel.basic_qos(prefetch_count=source.prefetch))

            def take(arrival: Arrival) -> None:
                if channel is self._channel and isinstance(arrival, Incoming):
                    self._take(arrival)

            divert(channel, take)
            no_ack = source.keys is not None
            await ask(channel.basic_consume(queue, _taken_already, no_ack=no_ack))
        return cancelled

    async def _declare_live(self, channel: Channel, keys: tuple[str, ...]) -> str:
        arguments: dict[str, FieldValue] = {
            "x-queue-type": "classic",
            "x-max-length": self._source.max_length,
            "x-overflow": "drop-head",
        }
        declared = await ask(
            channel.queue_declare(exclusive=True, auto_delete=True, arguments=arguments)
        )
        name = declared.queue or ""
        for key in keys:
            await ask(channel.queue_bind(name, self._source.name, key))
        return name

    def _take(self, arrival: Incoming) -> None:
        tag = self._newest = self._base + arrival.tag
        if self._source.keys is None:
            self._unsettled[tag] = None
        _, redelivered, exchange, key, message = arrival
        self._inbox.put(Delivery(message, exchange, key, redelivered, tag))

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
            found = await ask(channel.queue_declare(self._source.name, passive=True))
            if not found.message_count or (
                newest == self._base and (found.consumer_count or 0) > 1
            ):
                return False
        except Exception as error:  # noqa: BLE001 - whatever it is, the subscription is renewed
            log.warning("cannot look at a queue", queue=self._source.name, reason=str(error))
            return True
        await asyncio.sleep(SECOND_LOOK_S)
        return self._newest == newest

    async def _fall(self) -> None:
        """Forget the channel; the broker gives back what was unsettled on it."""
        channel, self._channel = self._channel, None
        self._base = self._newest
        self._unsettled.clear()
        self._inbox.clear()
        if channel is not None and not channel.is_closed:
            with suppress(Exception):
                await ask(channel.close(), CLOSE_TIMEOUT_S)


async def _taken_already(_: DeliveredMessage) -> None:
    """What aiormq would be told of, had messages not been diverted from it."""
    raise AssertionError("a message that was not diverted")
