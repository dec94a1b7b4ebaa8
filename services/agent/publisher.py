"""Publishes what the spool holds: in order, many at a time, each until the broker has confirmed it.

A message whose outcome is unknown is sent again under the same id. Nothing newer is begun before
that, so that a consumer sees a host's messages in order.
"""

import asyncio
from collections.abc import Sequence
from enum import Enum

import structlog

from schemas.topology import INTAKE
from services.agent.collectors import AgentFacts
from services.agent.outgoing import open_envelope
from services.agent.records import Record
from services.agent.store import Store
from services.bus import Refused, TopologyMissing, Unavailable, Unroutable
from services.runtime import Context, backoff_s

log = structlog.get_logger("vervet.agent")

WINDOW = 64
"""Messages that may be unconfirmed at a time: some thousand a second over a local network."""

WINDOW_BYTES = 4 * 1024**2
"""What they may hold together; they are in memory until they are confirmed."""


class Outcome(Enum):
    """What became of one attempt to publish."""

    CONFIRMED = "confirmed"
    REFUSED = "refused"
    UNAVAILABLE = "unavailable"
    UNROUTABLE = "unroutable"


AGAIN = (Outcome.UNAVAILABLE, Outcome.UNROUTABLE)


class Publisher:
    """Moves messages from the store to the broker."""

    def __init__(self, store: Store, context: Context, facts: AgentFacts) -> None:
        self._store = store
        self._context = context
        self._facts = facts
        self._under_way: dict[asyncio.Task[Outcome], Record] = {}

    async def run(self) -> None:
        """Returns once it was told to stop, and all is sent or the broker is away."""
        stopping = self._context.stopping
        failures = 0
        again: list[Record] = []
        async with asyncio.TaskGroup() as group:
            while True:
                if again:
                    self._begin(group, again)
                elif not failures or not self._under_way:
                    failures = 0
                    self._begin(group, await self._store.take(WINDOW, WINDOW_BYTES))
                if self._under_way:
                    again = await self._progress(listen=not failures)
                elif stopping.is_set():
                    return
                else:
                    await first_of(self._store.arrived, stopping)
                if again and stopping.is_set():
                    return
                if again:
                    await first_of(stopping, timeout_s=backoff_s(failures))
                    failures += 1

    def _begin(self, group: asyncio.TaskGroup, records: Sequence[Record]) -> None:
        for record in records:
            task = group.create_task(self._attempt(record), name=f"publish {record.seq}")
            self._under_way[task] = record

    async def _progress(self, *, listen: bool) -> list[Record]:
        """Wait for an outcome, or with `listen` for something new to send. What has to be sent
        again, in order: when there is any, nothing is under way any more."""
        arrived = asyncio.create_task(self._store.arrived.wait(), name="arrived")
        try:
            events = {*self._under_way, arrived} if listen else self._under_way
            await asyncio.wait(events, return_when=asyncio.FIRST_COMPLETED)
        finally:
            arrived.cancel()
        done = [task for task in self._under_way if task.done()]
        if any(task.cancelled() or task.result() in AGAIN for task in done):
            for task in self._under_way:  # one that waits for a connection would overtake
                task.cancel()
            await asyncio.wait(self._under_way)
        return await self._settle_done()

    async def _settle_done(self) -> list[Record]:
        by_outcome: dict[Outcome, list[Record]] = {outcome: [] for outcome in Outcome}
        for task in [task for task in self._under_way if task.done()]:
            outcome = Outcome.UNAVAILABLE if task.cancelled() else task.result()
            by_outcome[outcome].append(self._under_way.pop(task))
        confirmed, refused, unavailable, unroutable = by_outcome.values()
        if confirmed or refused:
            await self._store.settle([r.seq for r in confirmed], [r.seq for r in refused])
        return sorted(unavailable + unroutable, key=lambda record: record.seq)

    async def _attempt(self, record: Record) -> Outcome:
        envelope = open_envelope(record)
        try:
            await self._context.bus.publish(INTAKE, envelope.key, envelope.message())
        except Refused as error:
            log.error("message refused", message=envelope.message_id, reason=str(error))
            return self._failed(Outcome.REFUSED)
        except (Unroutable, TopologyMissing) as error:
            self._wait_for_broker(f"{error}; `vervet migrate` declares the topology")
            return self._failed(Outcome.UNROUTABLE)
        except Unavailable as error:
            self._wait_for_broker(str(error))
            return self._failed(Outcome.UNAVAILABLE)
        self._context.health.ready("broker")
        return Outcome.CONFIRMED

    def _failed(self, outcome: Outcome) -> Outcome:
        self._facts.publish_failures[outcome.value] += 1
        return outcome

    def _wait_for_broker(self, why: str) -> None:
        if self._context.health.waiting("broker", why):
            log.warning("cannot publish; messages stay in the spool", reason=why)


async def first_of(*events: asyncio.Event, timeout_s: float | None = None) -> None:
    """Returns once one of these is set, or after the time."""
    tasks = [asyncio.create_task(event.wait(), name="wait") for event in events]
    try:
        await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
