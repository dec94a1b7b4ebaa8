"""The evaluator: owns its share of the partitions, and moves them as evaluators come and go.

heartbeat -> who lives -> rendezvous -> a Partition per partition of ours
"""

import asyncio
import os
import secrets
import socket
from datetime import timedelta
from functools import partial

import structlog
from prometheus_client import Gauge

from schemas.topology import ALERTS as ALERTS_EXCHANGE
from schemas.topology import NOTIFY_QUEUE, Exchange, Queue, Topology, partition_queue
from services.database import Verdict, describe, ready_pool, until_done, verdict
from services.evaluator.membership import partitions_of
from services.evaluator.partition import Partition
from services.evaluator.rules import RuleSet, load_rule_set
from services.evaluator.settings import EvaluatorSettings
from services.evaluator.store import Store
from services.runtime import Context, wait_for_topology

log = structlog.get_logger("vervet.evaluator")

OWNED = Gauge("vervet_evaluator_partitions", "Partitions that this evaluator owns")

LEAST_CONNECTIONS = 2
"""One is kept for saving; everything else needs another."""

HEARTBEAT_S = 2.0
LIFETIME = timedelta(seconds=10)
"""An evaluator that was not seen for this long is taken for dead: five heartbeats."""


async def serve(settings: EvaluatorSettings, context: Context) -> None:
    """Evaluate until told to stop; batches under way are finished. Raises DocumentError."""
    rules = load_rule_set(settings.rules, builtin=settings.builtin_rules)
    needs = Topology(
        exchanges=(Exchange(ALERTS_EXCHANGE, "topic"),),
        queues=(
            *(Queue(partition_queue(p), single_active=True) for p in range(settings.partitions)),
            Queue(NOTIFY_QUEUE),
        ),
    )
    await wait_for_topology(context, needs)
    size = max(LEAST_CONNECTIONS, settings.database_pool_size)
    async with ready_pool(settings.database, context, size=size) as pool:
        store = Store(pool)
        await store.save_rules(rules.groups)
        try:
            async with asyncio.TaskGroup() as group:
                evaluator = Evaluator(settings, rules, store, context, group)
                await evaluator.run()
        finally:
            await store.close()


def _own_prefix() -> str:
    return f"{socket.gethostname()}-{os.getpid()}"


def is_predecessor(evaluator: str) -> bool:
    """Whether an id is of a process of this host that runs no more. One with our own process id
    is, since a container's first process has the same each time."""
    prefix = evaluator.rpartition("-")[0]
    host, _, pid = prefix.rpartition("-")
    if prefix == _own_prefix():
        return True
    if host != socket.gethostname() or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


class Evaluator:
    """This process among the evaluators: its name, and the partitions that it owns now."""

    def __init__(
        self,
        settings: EvaluatorSettings,
        rules: RuleSet,
        store: Store,
        context: Context,
        group: asyncio.TaskGroup,
    ) -> None:
        self._settings = settings
        self._rules = rules
        self._store = store
        self._context = context
        self._group = group
        self._id = f"{_own_prefix()}-{secrets.token_hex(4)}"
        self._owned: dict[int, tuple[Partition, asyncio.Task[None]]] = {}

    async def run(self) -> None:
        """Own what is ours until told to stop, then let every partition finish and leave."""
        await self._bury_predecessors()
        while not self._context.stopping.is_set():
            live = await self._heartbeat()
            if live is not None:
                self._own(partitions_of(self._id, [*live, self._id], self._settings.partitions))
            try:
                async with asyncio.timeout(HEARTBEAT_S):
                    await self._context.stopping.wait()
            except TimeoutError:
                pass
        self._own(set())
        await asyncio.gather(*(task for _, task in self._owned.values()))
        await self._leave()

    async def _bury_predecessors(self) -> None:
        """One that was killed on this host need not be waited for until its lifetime ends."""
        live = await until_done(
            partial(self._store.heartbeat, self._id, LIFETIME), self._context.health
        )
        for dead in [one for one in live if one != self._id and is_predecessor(one)]:
            await until_done(partial(self._store.leave, dead), self._context.health)

    async def _heartbeat(self) -> list[str] | None:
        """Who lives; None while the database does not answer: then everyone keeps what they own."""
        try:
            return await self._store.heartbeat(self._id, LIFETIME)
        except Exception as error:
            if verdict(error) is not Verdict.RETRY:
                raise
            log.warning("no heartbeat", reason=describe(error))
            return None

    def _own(self, wanted: set[int]) -> None:
        """Start what is ours and does not run, stop what runs and is not ours any more."""
        for number, (partition, task) in list(self._owned.items()):
            if task.done():
                del self._owned[number]
            elif number not in wanted:
                partition.stop()
        for number in sorted(wanted - self._owned.keys()):
            partition = Partition(
                number, self._id, self._rules, self._store, self._settings, self._context
            )
            task = self._group.create_task(partition.run(), name=f"partition {number}")
            self._owned[number] = partition, task
        OWNED.set(len(wanted))

    async def _leave(self) -> None:
        try:
            await self._store.leave(self._id)
        except Exception as error:
            if verdict(error) is not Verdict.RETRY:
                raise
            log.warning("left without a word", reason=describe(error))
