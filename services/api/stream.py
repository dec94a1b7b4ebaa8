"""Live samples and transitions as server-sent events.

One subscription to the bus per process feeds all clients. Each client has a bounded queue; who does
not keep up is cut off with the event `lagged`, and resumes by its Last-Event-ID.
"""

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import structlog
from prometheus_client import Counter, Gauge

from schemas.errors import Invalid
from schemas.layouts import Series, decode_layout
from schemas.samples import SampleMessage, decode, from_little
from schemas.topology import ALERTS, SAMPLES
from schemas.transitions import Transition, decode_transition
from schemas.values import ABSENT_BITS, STALE_BITS, bits
from services.bus import Bus, BusError, Delivery
from services.clock import rfc3339
from services.runtime import backoff_s

log = structlog.get_logger("vervet.api")

CLIENT_QUEUE = 200
"""Messages that wait for one client before it counts as too slow: seconds of a large fleet."""

SUBSCRIPTION_LENGTH = 2000
"""Messages that wait in the broker for this process; older ones are dropped there."""

CLIENTS = Gauge("vervet_api_stream_clients", "Clients of the live stream")
LAGGED = Counter("vervet_api_stream_lagged_total", "Clients cut off since they were too slow")


@dataclass(eq=False)
class Listener:
    """One client's queue of messages and transitions; None in it ends the stream."""

    queue: asyncio.Queue[SampleMessage | Transition | None] = field(
        default_factory=lambda: asyncio.Queue(CLIENT_QUEUE)
    )
    lagged: bool = False

    def offer(self, item: SampleMessage | Transition | None) -> None:
        """Queue an item; a client whose queue is full has lagged, and gets no more."""
        try:
            if not self.lagged:
                self.queue.put_nowait(item)
        except asyncio.QueueFull:
            self.lagged = True
            LAGGED.inc()


Parse = Callable[[Delivery], SampleMessage | Transition]


class Hub:
    """The live streams of this process; subscribed to the bus while there is a client."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._listeners: set[Listener] = set()
        self._wanted = asyncio.Event()

    @contextmanager
    def listen(self) -> Iterator[Listener]:
        """A listener that gets everything from now on."""
        listener = Listener()
        self._listeners.add(listener)
        self._wanted.set()
        CLIENTS.inc()
        try:
            yield listener
        finally:
            CLIENTS.dec()
            self._listeners.discard(listener)
            if not self._listeners:
                self._wanted.clear()

    def close(self) -> None:
        """End every stream."""
        for listener in self._listeners:
            listener.offer(None)

    async def run(self) -> None:
        """Feed the listeners until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._feed(SAMPLES, _parse_samples), name="api samples")
            group.create_task(self._feed(ALERTS, _parse_transition), name="api transitions")

    async def _feed(self, exchange: str, parse: Parse) -> None:
        attempt = 0
        while True:
            await self._wanted.wait()
            try:
                async with self._bus.subscribe(
                    exchange, ["#"], max_length=SUBSCRIPTION_LENGTH
                ) as consumer:
                    while self._wanted.is_set():
                        self._hand_out(await consumer.receive(), parse)
                        attempt = 0
            except BusError as error:
                log.warning("no live stream", exchange=exchange, reason=str(error))
                await asyncio.sleep(backoff_s(attempt))
                attempt += 1

    def _hand_out(self, delivery: Delivery, parse: Parse) -> None:
        try:
            item = parse(delivery)
        except Invalid:
            return  # the consumer of the durable queue rejects it, with its reason
        for listener in self._listeners:
            listener.offer(item)


def _parse_samples(delivery: Delivery) -> SampleMessage:
    return decode(delivery.message.body, delivery.message.content_type)


def _parse_transition(delivery: Delivery) -> Transition:
    return decode_transition(delivery.message.body)


@lru_cache(maxsize=10_000)
def _series(layout: bytes) -> tuple[Series, ...]:
    return decode_layout(layout)


def samples_event(
    message: SampleMessage, instance: str | None, metrics: frozenset[str]
) -> dict[str, Any] | None:
    """What a client gets of a message; None when it asked for another instance."""
    source = message.source
    if instance is not None and source["instance"] != instance:
        return None
    last_us = max(from_little("q", frame.at)[-1] for frame in message.frames)
    event: dict[str, Any] = {
        "job": source["job"],
        "instance": source["instance"],
        "at": rfc3339(last_us),
    }
    if metrics:
        event["values"] = values = {}
        for frame in message.frames:
            try:
                series = _series(frame.layout)
            except Invalid:
                continue  # ingest rejects the message, with its reason
            newest = from_little("d", frame.values)[-len(series) :]
            for one, value in zip(series, newest, strict=False):
                if one.name in metrics and bits(value) not in (ABSENT_BITS, STALE_BITS):
                    values[series_text(one)] = value if math.isfinite(value) else None
    return event


def series_text(series: Series) -> str:
    """`name{label="value",…}`, labels sorted, without the source's labels."""
    if not series.labels:
        return series.name
    return f"{series.name}{{{_labels(sorted(series.labels.items()))}}}"


def _labels(pairs: Sequence[tuple[str, str]]) -> str:
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in pairs)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
