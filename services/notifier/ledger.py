"""The ledger of deliveries: claimed with a lease, sent by a caller, then recorded.

The order is at-least-once: a row is recorded as sent after the receiver took it, so a crash between
the two sends it again, under the same id.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID, uuid4

from services.database import Connection, Pool
from services.notifier.channels import DeliveryError
from services.notifier.decision import Told, after_failure, after_success
from services.notifier.flush import forget_ended, load_told, save_told
from services.notifier.notification import Notification
from services.notifier.retries import retry_delay

_CLAIM = """
with picked as (
    select due.id, due.doubtful
    from unnest($1::text[], $2::int[], $3::interval[]) as slot (target, free, lease)
    cross join lateral (
        select id, doubtful from deliveries
        where target = slot.target and state = 'pending' and due_at <= $4
          and (lease_until is null or lease_until <= $4)
        order by due_at, sequence limit slot.free for update skip locked) due)
update deliveries d
set attempts = d.attempts + 1, doubtful = true, lease = $5, lease_until = $4 + slot.lease
from picked, unnest($1::text[], $3::interval[]) as slot (target, lease)
where d.id = picked.id and slot.target = d.target
returning d.id, d.group_id, d.target, d.channel, d.attempts, d.firing, d.resolved, d.payload,
          d.created_at, d.lease, picked.doubtful as was_doubtful
"""

_NEXT_DUE = """
select min(greatest(due_at, lease_until)) from deliveries
where state = 'pending' and target = any($1)
"""

_SENT = """
update deliveries set state = 'sent', sent_at = $3, error = $4, doubtful = false,
    due_at = null, payload = null, lease = null, lease_until = null
where id = $1 and lease = $2
returning id
"""

_IS_SENT = "select state = 'sent' from deliveries where id = $1"

_FAILED = """
update deliveries set state = $3, permanent = $4, error = $5, due_at = $6, doubtful = $7,
    payload = case when $3 = 'pending' then payload end, lease = null, lease_until = null
where id = $1 and lease = $2 and state = 'pending'
returning id
"""

_TRY_AT_NEXT_FLUSH = """
update notify_groups set due_at = least(due_at, $2::timestamptz + group_interval) where id = $1
"""


@dataclass(frozen=True)
class Claimed:
    """A delivery that this process may send until its lease ends."""

    id: str
    group_id: int
    target: str
    channel: str
    attempts: int
    firing: tuple[int, ...]
    resolved: tuple[int, ...]
    created_at: datetime
    lease: UUID
    was_doubtful: bool
    """Whether an earlier attempt may have reached the receiver."""
    notification: Notification


@dataclass(frozen=True)
class Slots:
    """Room for deliveries of one target: how many, and how long one may take."""

    free: int
    lease: timedelta


class Ledger:
    """Deliveries from decided to sent."""

    def __init__(self, pool: Pool, *, give_up_after: timedelta) -> None:
        self._pool = pool
        self._give_up_after = give_up_after

    async def claim(self, slots: Mapping[str, Slots], now: datetime) -> list[Claimed]:
        """Deliveries that are due, at most as many of each target as it has room for.

        Counted as attempts, and as possibly told, before they are made: a crash can't hide one.
        """
        rows = await self._pool.fetch(
            _CLAIM,
            list(slots),
            [slot.free for slot in slots.values()],
            [slot.lease for slot in slots.values()],
            now,
            uuid4(),
        )
        return [
            Claimed(
                row["id"],
                row["group_id"],
                row["target"],
                row["channel"],
                row["attempts"],
                tuple(row["firing"]),
                tuple(row["resolved"]),
                row["created_at"],
                row["lease"],
                row["was_doubtful"],
                Notification.model_validate(row["payload"]),
            )
            for row in rows
        ]

    async def next_due(self, targets: list[str]) -> datetime | None:
        """When the next delivery of these targets is due."""
        found: datetime | None = await self._pool.fetchval(_NEXT_DUE, targets)
        return found

    async def succeeded(self, claimed: Claimed, note: str, now: datetime) -> bool:
        """Record that the receiver took it; recording it again changes nothing.

        False when the lease was lost, so that another process may send it too or has decided
        otherwise meanwhile: then the receiver is held to know it, and is told its end.
        """
        async with self._pool.acquire() as connection, connection.transaction():
            alive = await _lock(connection, claimed.group_id)
            row = (claimed.id, claimed.lease, now, note or None)
            held = await connection.fetchval(_SENT, *row) is not None
            if not alive:
                return held
            told = await _told(connection, claimed)
            if held:
                told = after_success(told, claimed.firing, claimed.resolved, now)
            elif not await connection.fetchval(_IS_SENT, claimed.id):
                told = after_failure(told, claimed.firing, doubtful=True)
            await save_told(connection, claimed.group_id, claimed.target, told)
            await forget_ended(connection, [claimed.group_id])
        return held

    async def failed(self, claimed: Claimed, error: DeliveryError, now: datetime) -> bool:
        """Record a failed attempt; whether the delivery is given up by it.

        Nothing is recorded when another process took over meanwhile.
        """
        too_old = claimed.created_at + self._give_up_after <= now
        final = error.permanent or too_old
        doubtful = claimed.was_doubtful or error.reached
        reason = f"given up after {claimed.attempts} attempts: {error}" if too_old else str(error)
        due_at = None if final else now + retry_delay(claimed.attempts, error.retry_after)
        state = "failed" if final else "pending"
        async with self._pool.acquire() as connection, connection.transaction():
            alive = await _lock(connection, claimed.group_id)
            done = await connection.fetchval(
                _FAILED,
                *(claimed.id, claimed.lease, state, error.permanent, reason, due_at, doubtful),
            )
            if done and final and alive:
                told = await _told(connection, claimed)
                told = after_failure(told, claimed.firing, doubtful=doubtful)
                await save_told(connection, claimed.group_id, claimed.target, told)
                await connection.execute(_TRY_AT_NEXT_FLUSH, claimed.group_id, now)
        return final


async def _lock(connection: Connection, group: int) -> bool:
    query = "select id from notify_groups where id = $1 for update"
    return await connection.fetchval(query, group) is not None


async def _told(connection: Connection, claimed: Claimed) -> Told:
    tolds = await load_told(connection, [claimed.group_id])
    return tolds.get(claimed.group_id, {}).get(claimed.target, Told())
