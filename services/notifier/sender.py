"""Sends what the ledger holds: each channel has room of its own, so a slow one delays no other."""

import asyncio
from collections import Counter as Tally
from collections.abc import Mapping
from datetime import timedelta
from functools import partial

import structlog
from prometheus_client import Counter, Histogram

from services.database import until_done
from services.notifier.channels import Channel, DeliveryError
from services.notifier.ledger import Claimed, Ledger, Slots
from services.notifier.store import Store
from services.notifier.timer import Timer
from services.runtime import Health

log = structlog.get_logger("vervet.notifier")

ATTEMPTS = Counter(
    "vervet_notifier_attempts_total",
    "Attempts to deliver a notification: sent, retried, failed for good, or lost (lease)",
    ["channel", "outcome"],
)
SECONDS = Histogram("vervet_notifier_attempt_seconds", "Time of one attempt", ["channel"])

LEASE_MARGIN = timedelta(seconds=10)
"""What a lease lasts beyond the channel's timeout: time to record the outcome."""

GRACE = timedelta(seconds=1)
"""What an attempt may take beyond its channel's own timeout, before it is cut off from here."""

FINISH_S = 3.0
"""What sends under way may take once the notifier was told to stop."""


class Sender:
    """Claims deliveries as they are due and sends them, `per_target` at once for each target."""

    def __init__(
        self,
        ledger: Ledger,
        store: Store,
        channels: Mapping[str, Channel],
        per_target: int,
        timer: Timer,
    ) -> None:
        self._ledger = ledger
        self._store = store
        self._channels = channels
        self._per_target = per_target
        self._timer = timer
        self._under_way: Tally[str] = Tally()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, stopping: asyncio.Event, health: Health) -> None:
        """Until `stopping` is set and what is under way is done, or has had time to be."""
        async with asyncio.TaskGroup() as tasks:
            while not stopping.is_set():
                now = await until_done(self._store.now, health)
                slots = self._slots()
                claimed = await until_done(partial(self._ledger.claim, slots, now), health)
                for one in claimed:
                    self._under_way[one.target] += 1
                    task = tasks.create_task(self._deliver(one, health), name=f"send {one.id}")
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
                if not claimed:
                    due_at = await until_done(partial(self._ledger.next_due, list(slots)), health)
                    await self._timer.wait(now, due_at)
            await self._finish()

    async def _finish(self) -> None:
        """Let sends end; what takes longer is sent again, under its id, once its lease is over."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=FINISH_S)
        for task in self._tasks:
            task.cancel()

    def _slots(self) -> dict[str, Slots]:
        return {
            target: Slots(free, channel.timeout + LEASE_MARGIN)
            for target, channel in self._channels.items()
            if (free := self._per_target - self._under_way[target]) > 0
        }

    async def _deliver(self, claimed: Claimed, health: Health) -> None:
        channel = self._channels[claimed.target]
        say = log.bind(id=claimed.id, target=claimed.target, attempt=claimed.attempts)
        try:
            note = await self._attempt(channel, claimed)
        except DeliveryError as error:
            final = await until_done(partial(self._record_failure, claimed, error), health)
            outcome = "failed" if final else "retried"
            say.warning("a notification was not delivered", reason=str(error), final=final)
        else:
            held = await until_done(partial(self._record_success, claimed, note), health)
            outcome = "sent" if held else "lost"
            say.info("notified", reason=claimed.notification.reason, lease_held=held, note=note)
        finally:
            self._under_way[claimed.target] -= 1
            self._timer.ring()
        ATTEMPTS.labels(claimed.channel, outcome).inc()

    async def _attempt(self, channel: Channel, claimed: Claimed) -> str:
        with SECONDS.labels(claimed.channel).time():
            try:
                async with asyncio.timeout((channel.timeout + GRACE).total_seconds()):
                    return await channel.send(claimed.notification)
            except DeliveryError:
                raise
            except TimeoutError as error:
                raise DeliveryError("the attempt took too long", reached=True) from error
            except Exception as error:
                log.exception("a defect in a channel", id=claimed.id, target=claimed.target)
                reason = f"a defect of ours: {type(error).__name__}"
                raise DeliveryError(reason, permanent=True, reached=True) from error

    async def _record_success(self, claimed: Claimed, note: str) -> bool:
        return await self._ledger.succeeded(claimed, note, await self._store.now())

    async def _record_failure(self, claimed: Claimed, error: DeliveryError) -> bool:
        return await self._ledger.failed(claimed, error, await self._store.now())
