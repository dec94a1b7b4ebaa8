"""The ingest worker: any number of them share one queue.

    ingest queue -> collect -> batches -> write: one transaction, then ack

While one batch is being written the next is collected. What breaks the contract goes to the dead
queue with its reason, one message at a time; what the database refuses is found by halving.
Beside that, one of the workers runs the jobs on what is stored (jobs.py).
"""

import asyncio
import ctypes
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from functools import partial

import structlog
from prometheus_client import Counter, Histogram

from schemas.errors import Invalid
from schemas.events import decode_status
from schemas.metadata import METADATA_JSON, decode_metadata
from schemas.samples import decode
from schemas.topology import FLEET_QUEUE, INGEST_QUEUE, Queue, Topology
from services.bus import BusError, Consumer, Delivery, Message
from services.clock import now_us
from services.database import Poisoned, Pool, ready_pool, until_done
from services.ingest.batch import Batch, Layouts, Received, Window, receive
from services.ingest.days import roll_up_days
from services.ingest.jobs import Job, run_jobs
from services.ingest.metadata import save_metadata
from services.ingest.partitions import drop_empty_head
from services.ingest.retention import retain
from services.ingest.sealing import seal
from services.ingest.settings import IngestSettings
from services.ingest.store import Store
from services.ingest.unused import collect_unused
from services.runtime import Context, Health, wait_for_topology

log = structlog.get_logger("vervet.ingest")

MESSAGES = Counter("vervet_ingest_messages_total", "Messages stored, repeated ones included")
SAMPLES = Counter("vervet_ingest_samples_total", "Samples stored, repeated ones included")
DUPLICATES = Counter("vervet_ingest_duplicates_total", "Messages that had been stored before")
REJECTED = Counter("vervet_ingest_rejected_total", "Messages moved to the dead queue")
WRITE_SECONDS = Histogram("vervet_ingest_write_seconds", "Time of one batch's transaction")

NEEDS = Topology(queues=(Queue(INGEST_QUEUE), Queue(FLEET_QUEUE)))

MINUTE = timedelta(minutes=1)
JOBS = (
    Job("seal", every=5 * MINUTE, most=5 * MINUTE, run=seal),
    Job("days", every=15 * MINUTE, most=5 * MINUTE, run=roll_up_days),
    Job("retention", every=10 * MINUTE, most=5 * MINUTE, run=retain),
    Job("head", every=60 * MINUTE, most=10 * MINUTE, run=drop_empty_head),
    Job("unused", every=timedelta(days=1), most=10 * MINUTE, run=collect_unused),
)
"""The jobs on what is stored, in the order in which one frees work of the next."""


KEPT_BYTES = 64 * 1024**2
"""Freed memory that malloc keeps, two batches of it. Left alone it returns each batch's to the
kernel, and a tenth of ingest's time goes into page faults."""

MAPPED_BYTES = 32 * 1024**2
"""What is larger has a mapping of its own, and goes back at once; glibc allows no more."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt(3)."""


def keep_freed_memory() -> None:
    """Have malloc reuse what a batch has freed for the next one; does nothing without glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)


async def serve(settings: IngestSettings, context: Context) -> None:
    """Store samples and events until told to stop; whole batches are written first."""
    keep_freed_memory()
    await wait_for_topology(context, NEEDS)
    async with (
        ready_pool(settings.database, context, size=settings.database_pool_size) as pool,
        context.bus.consume(INGEST_QUEUE, prefetch=settings.prefetch) as samples,
        context.bus.consume(FLEET_QUEUE, prefetch=100) as fleet,
        asyncio.TaskGroup() as group,
    ):
        store = Store(pool)
        batches: asyncio.Queue[list[Received]] = asyncio.Queue(1)
        writer = Writer(store, samples, context.health)
        window = Window(settings.max_age, settings.max_ahead)
        collect = group.create_task(
            Collector(samples, batches, window, settings).run(), name="ingest collect"
        )
        write = group.create_task(writer.run(batches), name="ingest write")
        events = group.create_task(
            keep_events(fleet, store, pool, context.health), name="ingest events"
        )
        jobs = group.create_task(run_jobs(settings.database, JOBS), name="ingest jobs")
        await context.stopping.wait()
        jobs.cancel()
        collect.cancel()
        events.cancel()
        await batches.join()
        write.cancel()


class Collector:
    """Gathers checked messages into batches by samples, rows, bytes or age."""

    def __init__(
        self,
        consumer: Consumer,
        batches: asyncio.Queue[list[Received]],
        window: Window,
        settings: IngestSettings,
    ) -> None:
        self._consumer = consumer
        self._batches = batches
        self._window = window
        self._settings = settings
        self._layouts = Layouts()

    async def run(self) -> None:
        age_s = self._settings.batch_age / timedelta(seconds=1)
        while True:
            batch = Batch()
            try:
                async with asyncio.timeout(None) as limit:
                    while not batch.is_full(self._settings):
                        one = await self._accept(await self._consumer.receive())
                        if one is None:
                            continue
                        if not batch.messages:
                            limit.reschedule(asyncio.get_running_loop().time() + age_s)
                        batch.add(one)
            except TimeoutError:
                pass
            if batch.messages:
                await self._batches.put(batch.messages)

    async def _accept(self, delivery: Delivery) -> Received | None:
        """The message, checked; None when it went to the dead queue."""
        bounds = self._window.bounds_us(now_us())
        try:
            message = decode(delivery.message.body, delivery.message.content_type)
            return receive(delivery, message, self._layouts, bounds)
        except Invalid as error:
            await reject(self._consumer, delivery, str(error))
            return None


class Writer:
    """Writes batches in order, and acks what is committed."""

    def __init__(self, store: Store, consumer: Consumer, health: Health) -> None:
        self._store = store
        self._consumer = consumer
        self._health = health

    async def run(self, batches: asyncio.Queue[list[Received]]) -> None:
        while True:
            batch = await batches.get()
            await self._write(batch)
            batches.task_done()

    async def _write(self, batch: Sequence[Received]) -> None:
        """Store and settle a batch; halves it to find what the database can never take."""
        try:
            with WRITE_SECONDS.time():
                duplicates = await until_done(partial(self._store.write, batch), self._health)
        except Poisoned as error:
            if len(batch) == 1:
                await reject(self._consumer, batch[0].delivery, str(error))
                return
            middle = len(batch) // 2
            await self._write(batch[:middle])
            await self._write(batch[middle:])
            return
        MESSAGES.inc(len(batch))
        SAMPLES.inc(sum(one.samples for one in batch))
        DUPLICATES.inc(duplicates)
        try:
            await self._consumer.ack([one.delivery for one in batch])
        except BusError as error:
            log.warning("stored, but not acked: it will come again", reason=str(error))


async def reject(consumer: Consumer, delivery: Delivery, reason: str) -> None:
    """Move a message to the dead queue. When that fails it stays unsettled and comes again."""
    REJECTED.inc()
    log.warning("rejected", message_id=delivery.message.message_id, reason=reason)
    try:
        await consumer.reject(delivery, reason)
    except BusError as error:
        log.warning("not rejected: it will come again", reason=str(error))


async def keep_events(consumer: Consumer, store: Store, pool: Pool, health: Health) -> None:
    """Keep what is said besides samples; the rare event is written one at a time."""
    while True:
        delivery = await consumer.receive()
        try:
            await until_done(_kept(delivery.message, store, pool), health)
        except (Invalid, Poisoned) as error:
            await reject(consumer, delivery, str(error))
            continue
        try:
            await consumer.ack([delivery])
        except BusError as error:
            log.warning("event stored, but not acked", reason=str(error))


def _kept(message: Message, store: Store, pool: Pool) -> Callable[[], Awaitable[None]]:
    """What keeps an event. Raises Invalid."""
    if message.content_type == METADATA_JSON:
        return partial(save_metadata, pool, decode_metadata(message.body))
    return partial(store.save_status, decode_status(message.body))
