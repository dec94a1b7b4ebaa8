"""The notifier: any number of them share one queue and one database.

    notify queue -> Intake: alerts and groups, one transaction, then ack
    groups due   -> decide: deliveries, with a reason each       (flush.py)
    deliveries   -> Sender: send, then record                    (ledger.py)

All state is in the database: a notifier that ends leaves nothing behind that another can't go on
with. The loops sleep until the next group or delivery is due.
"""

import asyncio
from collections import Counter as Tally
from functools import partial
from pathlib import Path

import structlog
from prometheus_client import Counter

from schemas.topology import NOTIFY_QUEUE, Queue, Topology
from services.database import ready_pool, until_done
from services.notifier.flush import Flusher
from services.notifier.intake import Intake
from services.notifier.ledger import Ledger
from services.notifier.routing import Routing, build_routing, load_routing
from services.notifier.sender import Sender
from services.notifier.settings import NotifierSettings
from services.notifier.store import Store
from services.notifier.timer import Timer
from services.runtime import Context, Health, wait_for_topology

log = structlog.get_logger("vervet.notifier")

DECISIONS = Counter(
    "vervet_notifier_decisions_total", "Decisions at flushes of groups, by reason", ["reason"]
)

NEEDS = Topology(queues=(Queue(NOTIFY_QUEUE),))

PREFETCH = 500
"""Transitions taken before the oldest is settled; about 1 kB each."""

HOUSEKEEPING_S = 3600.0


async def serve(settings: NotifierSettings, context: Context) -> None:
    """Notify until told to stop; what is being sent is finished, the rest is in the database."""
    document = load_routing(settings.routing_file)
    directory = settings.routing_file.parent if settings.routing_file else Path()
    await wait_for_topology(context, NEEDS)
    async with (
        ready_pool(settings.database, context, size=settings.database_pool_size) as pool,
        context.bus.consume(NOTIFY_QUEUE, prefetch=PREFETCH) as consumer,
    ):
        routing = build_routing(document, directory, pool)
        store = Store(pool)
        await until_done(partial(reconcile, store, routing), context.health)
        flusher = Flusher(
            pool,
            routing,
            external_url=settings.external_url,
            give_up_after=settings.give_up_after,
        )
        ledger = Ledger(pool, give_up_after=settings.give_up_after)
        groups, deliveries = Timer(), Timer()
        sender = Sender(ledger, store, routing.targets, settings.sends_per_channel, deliveries)
        intake = Intake(consumer, store, routing.root, context.health, groups)
        async with asyncio.TaskGroup() as tasks:
            work = [
                tasks.create_task(intake.run(), name="notifier intake"),
                tasks.create_task(
                    flush_groups(store, flusher, groups, deliveries, context.health),
                    name="notifier groups",
                ),
                tasks.create_task(
                    keep_house(store, settings, context.health), name="notifier house"
                ),
            ]
            sending = tasks.create_task(
                sender.run(context.stopping, context.health), name="notifier sender"
            )
            await context.stopping.wait()
            deliveries.ring()
            for task in work:
                task.cancel()
            await sending


async def reconcile(store: Store, routing: Routing) -> None:
    """Bring the groups in line with the routing document, if it is a new one."""
    if await store.reconcile(routing, await store.now()):
        log.info("a new routing document is in use", digest=routing.digest)


async def flush_groups(
    store: Store, flusher: Flusher, groups: Timer, deliveries: Timer, health: Health
) -> None:
    """Decide for groups as they become due."""
    while True:
        now = await until_done(store.now, health)
        reasons = await until_done(partial(flusher.flush, now), health)
        for reason, count in Tally(reasons).items():
            DECISIONS.labels(reason.value).inc(count)
        if any(reason.tells for reason in reasons):
            deliveries.ring()
        if not reasons:
            await groups.wait(now, await until_done(flusher.next_due, health))


async def keep_house(store: Store, settings: NotifierSettings, health: Health) -> None:
    """Forget what is old, now and then."""
    while True:
        now = await until_done(store.now, health)
        rows = await until_done(
            partial(
                store.forget,
                now,
                ledger_retention=settings.ledger_retention,
                inbox_retention=settings.inbox_retention,
            ),
            health,
        )
        log.debug("housekeeping", deleted=rows)
        await asyncio.sleep(HOUSEKEEPING_S)
