"""One partition: consume, evaluate, save in one transaction, publish, ack; in that order.

A crash between any two of these repeats no transition: what was not saved is evaluated again from
the saved state, and what was saved stands in the outbox under its id.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TypeVar

import structlog
from prometheus_client import Counter, Histogram

from schemas.errors import Invalid
from schemas.samples import SampleMessage, decode
from schemas.topology import PARTITION_HEADER, partition_queue
from services.bus import BusError, Consumer, Delivery
from services.clock import now_us
from services.database import Poisoned, describe, until_done
from services.evaluator.evaluation import (
    Changes,
    Instance,
    Outcome,
    Source,
    fall_silent,
    receive,
    retire,
)
from services.evaluator.outbox import Outbox
from services.evaluator.rules import RuleSet
from services.evaluator.settings import EvaluatorSettings
from services.evaluator.silence import Watch, Watches
from services.evaluator.store import AgentState, Fenced, Store
from services.failpoints import failpoint
from services.runtime import Context

log = structlog.get_logger("vervet.evaluator")

MESSAGES = Counter(
    "vervet_evaluator_messages_total", "Messages by what became of them", ["outcome"]
)
FAILURES = Counter("vervet_evaluator_failures_total", "Evaluations that failed", ["rule"])
FENCED = Counter("vervet_evaluator_fenced_total", "Partitions lost to another evaluator")
WITHHELD = Counter("vervet_evaluator_withheld_total", "Verdicts of silence put off, for a backlog")
SAVE_SECONDS = Histogram("vervet_evaluator_save_seconds", "Time of one transaction")
LAG_SECONDS = Histogram(
    "vervet_evaluator_lag_seconds",
    "Age of a source's newest sample when it was evaluated; a wrong clock shows here too",
    buckets=(0.05, 0.25, 1, 5, 15, 60, 300, 3600),
)

INTERVALS = 3
"""Silence is at least this many of an agent's intervals, however short the rule's span."""

DEFAULT_INTERVAL_US = 15_000_000
"""The interval of an agent that has not said it."""

LOOK_AGAIN_S = 5.0
"""When a verdict that was withheld is tried again."""

TURN_S = 1.0
"""Longest pause between two looks at the watches."""

STALL_S = 10.0
"""A longer pause means that this process, the database or the broker stood still: nothing that was
not heard meanwhile counts as silence."""

LOAD_AT_ONCE = 200
"""Instances that one query loads."""

FORGET_EVERY_S = 60.0

T = TypeVar("T")


class Partition:
    """A partition that this evaluator owns, from its claim until it is fenced or told to stop."""

    def __init__(
        self,
        number: int,
        owner: str,
        rules: RuleSet,
        store: Store,
        settings: EvaluatorSettings,
        context: Context,
    ) -> None:
        self._number = number
        self._owner = owner
        self._rules = rules
        self._store = store
        self._settings = settings
        self._context = context
        self._outbox = Outbox(store, context)
        self._ahead_us = int(settings.evaluate_ahead.total_seconds() * 1_000_000)
        self._instances: dict[str, Instance] = {}
        self._watches = Watches()
        self._waiting: deque[Delivery] = deque()
        self._wake = asyncio.Event()
        self._stopping = False
        self._failing: dict[str, str] = {}
        self._epoch = 0
        self._heard_since_s = 0.0
        self._turned_s = 0.0

    def stop(self) -> None:
        """Finish what is under way, then return from `run`."""
        self._stopping = True
        self._wake.set()

    async def run(self) -> None:
        """Own the partition until it is lost or given up. What was not saved is delivered again."""
        queue = partition_queue(self._number)
        try:
            await self._claim()
            async with (
                self._context.bus.consume(queue, prefetch=self._settings.prefetch) as consumer,
                asyncio.TaskGroup() as group,
            ):
                reader = group.create_task(self._read(consumer), name=f"read {queue}")
                try:
                    await self._work(consumer)
                except Fenced as error:
                    self._lost(error)
                reader.cancel()
        except Fenced as error:
            self._lost(error)

    def _lost(self, error: Fenced) -> None:
        FENCED.inc()
        log.warning("lost a partition to another evaluator", reason=str(error))

    async def _claim(self) -> None:
        """Become the only writer, and take over what the one before has saved."""
        self._epoch = await self._done(lambda: self._store.claim(self._number, self._owner))
        while unpublished := await self._done(lambda: self._store.unpublished(self._number)):
            await self._outbox.publish(unpublished)
        names = await self._done(lambda: self._store.instances_of(self._number))
        for start in range(0, len(names), LOAD_AT_ONCE):
            await self._load(names[start : start + LOAD_AT_ONCE])
        self._heard_since_s = self._turned_s = self._now_s()
        for instance in self._instances.values():
            for source in instance.sources.values():
                self._watch(instance, source)

    async def _load(self, names: Sequence[str]) -> None:
        """Take instances over from the database; alerts whose rule is gone end now."""
        instances, orphans = await self._done(lambda: self._store.load(self._rules, names))
        self._instances |= {instance.name: instance for instance in instances}
        if orphans:
            changes = Changes()
            for instance, key, alert in orphans:
                retire(key.rule, key.fingerprint, instance, alert, changes)
            await self._save(changes)
            await self._outbox.publish(changes.transitions)

    async def _read(self, consumer: Consumer) -> None:
        """Move deliveries to where a batch is taken from; the prefetch bounds them."""
        async for delivery in consumer:
            self._waiting.append(delivery)
            self._wake.set()

    async def _work(self, consumer: Consumer) -> None:
        loop = asyncio.get_running_loop()
        forget_s = self._now_s() + FORGET_EVERY_S
        while not self._stopping:
            timer = loop.call_later(TURN_S, self._wake.set)
            await self._wake.wait()
            timer.cancel()
            self._wake.clear()
            while self._waiting and not self._stopping:
                await self._batch(consumer, self._take())
            await self._look_for_silence()
            if self._now_s() >= forget_s:
                forget_s = self._now_s() + FORGET_EVERY_S
                await self._done(partial(self._store.forget, self._number, self._rules.window_us))

    def _take(self) -> list[Delivery]:
        """What is there, up to a batch."""
        count = min(len(self._waiting), self._settings.batch_messages)
        return [self._waiting.popleft() for _ in range(count)]

    async def _batch(self, consumer: Consumer, deliveries: Sequence[Delivery]) -> None:
        """Evaluate, save, publish, ack. What is malformed is rejected, one message at a time."""
        changes = Changes()
        good: list[tuple[Delivery, SampleMessage]] = []
        for delivery in deliveries:
            try:
                good.append((delivery, _decoded(delivery)))
            except Invalid as error:
                await self._reject(consumer, delivery, str(error))
        names = {message.source["instance"] for _, message in good}
        if unknown := sorted(names - self._instances.keys()):
            await self._load(unknown)
        done: list[Delivery] = []
        arrived_us = now_us()
        limit_us = arrived_us + self._ahead_us
        for delivery, message in good:
            try:
                self._receive(message, changes, limit_us)
            except Invalid as error:
                await self._reject(consumer, delivery, str(error))
            except Exception as error:
                log.exception("a defect of the evaluator", message_id=delivery.message.message_id)
                rest = [one for one, _ in good[good.index((delivery, message)) :]]
                await self._isolate(consumer, [*done, *rest], names, describe(error))
                return
            else:
                done.append(delivery)
        try:
            await self._save(changes)
        except Poisoned as error:
            await self._isolate(consumer, done, names, str(error))
            return
        await self._outbox.publish(changes.transitions)
        for source in changes.sources.values():
            LAG_SECONDS.observe((arrived_us - source.at_us) / 1_000_000)
        failpoint("evaluator.after_publish")
        if done:
            with suppress(BusError):  # they come again, and change nothing then
                await consumer.ack(done)

    def _receive(self, message: SampleMessage, changes: Changes, limit_us: int) -> None:
        instance = self._instances[message.source["instance"]]
        outcome = receive(self._rules, instance, message, changes, limit_us)
        MESSAGES.labels(outcome).inc()
        if outcome is not Outcome.AHEAD:
            source = instance.sources[message.source["job"]]
            source.heard_s = self._now_s()
            self._watch(instance, source)

    async def _isolate(
        self,
        consumer: Consumer,
        deliveries: Sequence[Delivery],
        names: set[str],
        reason: str,
    ) -> None:
        """This batch can never be worked off: do it anew, one by one, and reject the culprit.

        What was evaluated is forgotten; it stands in the database as it was before the batch.
        """
        for name in names:
            self._instances.pop(name, None)
        if len(deliveries) == 1:
            await self._reject(consumer, deliveries[0], reason)
            return
        for delivery in deliveries:
            await self._batch(consumer, [delivery])

    async def _reject(self, consumer: Consumer, delivery: Delivery, reason: str) -> None:
        MESSAGES.labels("rejected").inc()
        log.warning("rejected", message_id=delivery.message.message_id, reason=reason)
        try:
            await consumer.reject(delivery, reason)
        except BusError as error:
            log.warning("not rejected: it will come again", reason=str(error))

    async def _save(self, changes: Changes) -> None:
        """Returns once it is committed. Raises Fenced, Poisoned."""
        for rule, reason in changes.failures:
            FAILURES.labels(rule).inc()
            if self._failing.get(rule) != reason:
                self._failing[rule] = reason
                log.warning("evaluation failed; alerts stay as they were", rule=rule, reason=reason)
        if not changes:
            return
        failpoint("evaluator.before_commit")
        with SAVE_SECONDS.time():
            await self._done(lambda: self._store.save(self._number, self._epoch, changes))
        failpoint("evaluator.after_commit")
        for _, tracked in changes.layouts.values():
            tracked.saved = True

    async def _done(self, work: Callable[[], Awaitable[T]]) -> T:
        """The result of work on the database, however long it is away. Raises Poisoned."""
        return await until_done(work, self._context.health)

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time()

    def _watch(self, instance: Instance, source: Source) -> None:
        """See to it that the source's silence is noticed."""
        heard_s = max(source.heard_s, self._heard_since_s)
        for index in self._rules.no_data:
            watch = Watch(instance.name, source.labels["job"], index)
            span_us = self._rules.rules[index].no_data_us or 0
            self._watches.add(watch, heard_s + span_us / 1_000_000)

    async def _look_for_silence(self) -> None:
        """Tell which sources have fallen silent, unless something else explains it."""
        now_s = self._now_s()
        if now_s - self._turned_s > STALL_S or self._context.bus.state() is not None:
            self._heard_since_s = now_s
        self._turned_s = now_s
        due = self._watches.due(now_s)
        if not due:
            return
        if not await self._is_caught_up():
            WITHHELD.inc(len(due))
            for watch in due:
                self._watches.add(watch, now_s + LOOK_AGAIN_S)
            return
        sources = sorted({(watch.instance, watch.job) for watch in due})
        states = await self._done(lambda: self._store.agent_states(sources))
        changes = Changes()
        for watch in due:
            self._judge(watch, states.get((watch.instance, watch.job)), now_s, changes)
        await self._save(changes)
        await self._outbox.publish(changes.transitions)

    async def _is_caught_up(self) -> bool:
        """Whether everything that was published for this partition has been evaluated."""
        if self._waiting:
            return False
        try:
            return await self._context.bus.depth(partition_queue(self._number)) == 0
        except BusError:
            return False

    def _judge(
        self, watch: Watch, state: AgentState | None, now_s: float, changes: Changes
    ) -> None:
        """Fire for a source that has been silent for the rule's span; else look again later."""
        instance = self._instances.get(watch.instance)
        source = instance.sources.get(watch.job) if instance else None
        if instance is None or source is None:
            return
        interval_us = state.interval_us if state else DEFAULT_INTERVAL_US
        span_us = max(self._rules.rules[watch.rule].no_data_us or 0, INTERVALS * interval_us)
        span_s = span_us / 1_000_000
        due_s = max(source.heard_s, self._heard_since_s) + span_s
        if due_s > now_s:
            self._watches.add(watch, due_s)
        elif state is not None and state.stopping and state.at_us >= source.at_us - interval_us:
            self._watches.add(watch, now_s + span_s)  # it said goodbye; it may come back unheard
        elif not _is_silent(instance, watch):
            fall_silent(self._rules, instance, source, watch.rule, span_us, changes)


def _decoded(delivery: Delivery) -> SampleMessage:
    """The message of a delivery. Raises Invalid, also where the partition was chosen by another
    name than the source's: an instance in two partitions would have two histories."""
    message = decode(delivery.message.body, delivery.message.content_type)
    header = delivery.message.headers.get(PARTITION_HEADER)
    if header != message.source["instance"]:
        raise Invalid(
            f"header {PARTITION_HEADER}: {header!r}; expected {message.source['instance']!r}"
        )
    return message


def _is_silent(instance: Instance, watch: Watch) -> bool:
    """Whether the alert of a source's silence fires already."""
    alerts = instance.alerts.get(watch.rule, {}).values()
    return any(alert.labels.get("job", "") == watch.job for alert in alerts)
