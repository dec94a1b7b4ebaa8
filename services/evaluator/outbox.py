"""Publishing saved transitions: in the order of each alert's changes, until it is done."""

import asyncio
from collections.abc import Sequence
from functools import partial

import structlog
from prometheus_client import Counter

from schemas.topology import ALERTS
from schemas.transitions import TRANSITION_JSON, Transition, encode_transition
from services.bus import BusError, Message, Refused
from services.database import until_done
from services.evaluator.store import Store
from services.runtime import Context, backoff_s

log = structlog.get_logger("vervet.evaluator")

TRANSITIONS = Counter("vervet_evaluator_transitions_total", "Transitions by state", ["to_state"])
REFUSED = Counter("vervet_evaluator_refused_total", "Transitions that the broker will never take")

PUBLISH_AT_ONCE = 64
"""Publishes under way together."""


class Outbox:
    """What stands between a saved transition and the alerts' exchange."""

    def __init__(self, store: Store, context: Context) -> None:
        self._store = store
        self._context = context

    async def publish(self, transitions: Sequence[Transition]) -> None:
        """Publish, however long the broker is away, and note in the database that it was done."""
        for wave in waves(transitions):
            async with asyncio.TaskGroup() as group:
                for one in wave:
                    group.create_task(self._publish_one(one), name=f"publish {one.id}")
            done = partial(self._store.mark_published, [one.id for one in wave])
            await until_done(done, self._context.health)

    async def _publish_one(self, one: Transition) -> None:
        message = Message(encode_transition(one), TRANSITION_JSON, one.id)
        attempt = 0
        while True:
            try:
                await self._context.bus.publish(ALERTS, one.routing_key, message)
                break
            except Refused as error:
                REFUSED.inc()
                log.error("the broker refuses a transition", id=one.id, reason=str(error))
                break
            except BusError as error:
                if self._context.health.waiting("alerts", str(error)):
                    log.warning("publishing again", reason=str(error))
            await asyncio.sleep(backoff_s(attempt))
            attempt += 1
        self._context.health.ready("alerts")
        TRANSITIONS.labels(one.to_state).inc()


def waves(transitions: Sequence[Transition]) -> list[list[Transition]]:
    """Cut so that no wave holds two changes of one alert: waves are published one after another."""
    cut: list[list[Transition]] = []
    seen: set[str] = set()
    for one in transitions:
        if not cut or one.fingerprint in seen or len(cut[-1]) == PUBLISH_AT_ONCE:
            cut.append([])
            seen = set()
        seen.add(one.fingerprint)
        cut[-1].append(one)
    return cut
