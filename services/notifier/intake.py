"""Transitions from the bus into the database: a batch in one transaction, then its acks."""

import asyncio
from collections.abc import Sequence

import structlog
from prometheus_client import Counter

from schemas.errors import Invalid
from schemas.routing import Node
from schemas.transitions import Transition, decode_transition
from services.bus import BusError, Consumer, Delivery
from services.database import Poisoned, until_done
from services.notifier.store import Recorded, Store
from services.notifier.timer import Timer
from services.runtime import Health, backoff_s

log = structlog.get_logger("vervet.notifier")

TRANSITIONS = Counter(
    "vervet_notifier_transitions_total",
    "Transitions by what became of them: applied, stale (repeated, older or pending) or rejected",
    ["result"],
)

MAX_BATCH = 200
"""Transitions in one transaction."""

LINGER_S = 0.01
"""How long a first transition waits for more: a storm comes in batches, one alert hardly waits."""

MAX_KEY_CHARS = 600
"""Of a rule's name or a fingerprint: both stand in an index, whose rows are bounded."""


class Intake:
    """Consumes the notify queue. Rings `groups` when there may be something new to decide."""

    def __init__(
        self, consumer: Consumer, store: Store, root: Node, health: Health, groups: Timer
    ) -> None:
        self._consumer = consumer
        self._store = store
        self._root = root
        self._health = health
        self._groups = groups

    async def run(self) -> None:
        """Until cancelled; what is not acked then is delivered again, here or elsewhere."""
        while True:
            await self._handle(await self._receive())

    async def _receive(self) -> list[Delivery]:
        """A first delivery and what follows at once. One that came before comes alone: if it made
        a notifier crash, it must not take others with it to the delivery limit."""
        batch = [await self._consumer.receive()]
        try:
            async with asyncio.timeout(LINGER_S):
                while len(batch) < MAX_BATCH and not batch[-1].redelivered:
                    batch.append(await self._consumer.receive())
        except TimeoutError:
            pass  # nothing more came in time
        return batch

    async def _handle(self, batch: Sequence[Delivery]) -> None:
        good: list[tuple[Delivery, Transition]] = []
        for delivery in batch:
            try:
                good.append((delivery, checked(delivery)))
            except Invalid as error:
                await self._reject(delivery, str(error))
        redelivered = [pair for pair in good if pair[0].redelivered]
        for pairs in (
            [pair for pair in good if not pair[0].redelivered],
            *([p] for p in redelivered),
        ):
            await self._record(pairs)

    async def _record(self, pairs: Sequence[tuple[Delivery, Transition]]) -> None:
        """One transaction, then acks; what the database can't hold is found one by one."""
        if not pairs:
            return
        try:
            recorded = await until_done(lambda: self._apply([t for _, t in pairs]), self._health)
        except Poisoned as error:
            if len(pairs) == 1:
                await self._reject(pairs[0][0], str(error))
            for pair in pairs if len(pairs) > 1 else ():
                await self._record([pair])
            return
        TRANSITIONS.labels("applied").inc(recorded.applied)
        TRANSITIONS.labels("stale").inc(len(pairs) - recorded.applied)
        await self._consumer.ack([delivery for delivery, _ in pairs])
        self._groups.ring()

    async def _apply(self, transitions: Sequence[Transition]) -> Recorded:
        return await self._store.record(transitions, self._root, await self._store.now())

    async def _reject(self, delivery: Delivery, reason: str) -> None:
        log.warning("rejected a transition", reason=reason, id=delivery.message.message_id)
        TRANSITIONS.labels("rejected").inc()
        attempt = 0
        while True:
            try:
                await self._consumer.reject(delivery, reason)
                return
            except BusError as error:
                log.warning("cannot reach the dead queue", reason=str(error))
                await asyncio.sleep(backoff_s(attempt))
                attempt += 1


def checked(delivery: Delivery) -> Transition:
    """The transition of a delivery. Raises Invalid with the reason."""
    transition = decode_transition(delivery.message.body)
    for name in ("rule", "fingerprint"):
        length = len(getattr(transition, name))
        if not 0 < length <= MAX_KEY_CHARS:
            raise Invalid(f"transition: {name}: {length} characters; expected 1 to {MAX_KEY_CHARS}")
    return transition
