"""A group that is due: what each channel is told of it is decided and written to the ledger.

One short transaction for a few groups, claimed by their row locks; nothing is sent in it.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from urllib.parse import urlencode

import asyncpg

from services.database import Connection, Pool
from services.notifier.decision import (
    Content,
    GroupAlert,
    Pending,
    Plan,
    Reason,
    Told,
    after_success,
    notification_id,
    plan,
)
from services.notifier.notification import Alert, Notification, in_order
from services.notifier.routing import Routing, channel_kind

GROUPS_PER_TRANSACTION = 20
"""Claimed at once: fewer transactions in a storm, and still short ones."""

BUSY_PAUSE = timedelta(seconds=1)
"""Until a group is looked at again of which a notification was just being sent."""

Row = asyncpg.Record

_CLAIM = """
select * from notify_groups where due_at <= $1 and receiver = any($2)
order by due_at limit $3 for update skip locked
"""

_NEXT_DUE = "select min(due_at) from notify_groups where receiver = any($1)"

_ALERTS = """
select m.group_id, a.* from notify_members m join notify_alerts a on a.id = m.alert_id
where m.group_id = any($1)
"""

_PENDING = """
select id, group_id, target, digest, firing, attempts, doubtful,
       lease_until is not null and lease_until > $2 as leased
from deliveries where group_id = any($1) and state = 'pending' for update
"""

_SUPERSEDE = """
update deliveries set state = 'failed', due_at = null, payload = null, lease = null, error = $2
where id = any($1)
"""

# A notification that failed for good and is still true is tried again, in its row, at the group's
# next flush; one that is too old for that changes nothing.
_INSERT = """
insert into deliveries as d
    (id, group_id, group_key, receiver, channel, target, status, reason, digest, firing, resolved,
     payload, created_at, due_at)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $13)
on conflict (id) do update set
    state = 'pending', permanent = false, reason = excluded.reason, payload = excluded.payload,
    due_at = excluded.due_at
where d.state = 'failed' and d.created_at > $14
returning id
"""

_TOLD = """
insert into notify_told (group_id, target, firing, doubtful, sends, at)
values ($1, $2, $3, $4, $5, $6)
on conflict (group_id, target) do update set
    firing = excluded.firing, doubtful = excluded.doubtful, sends = excluded.sends, at = excluded.at
"""

_FORGET_MEMBERS = """
with ended as materialized (
    select m.group_id, m.alert_id
    from notify_members m join notify_alerts a on a.id = m.alert_id
    where m.group_id = any($1) and not a.firing),
believed as (
    select group_id, unnest(firing || doubtful) as alert_id
    from notify_told where group_id = any($1))
delete from notify_members m using ended
where m.group_id = ended.group_id and m.alert_id = ended.alert_id
  and not exists (select from believed b
                  where b.group_id = ended.group_id and b.alert_id = ended.alert_id)
  and not exists (select from deliveries d where d.group_id = m.group_id and d.state = 'pending')
"""

_FORGET_GROUPS = """
delete from notify_groups g where g.id = any($1)
  and not exists (select from notify_members m where m.group_id = g.id)
  and not exists (select from deliveries d where d.group_id = g.id and d.state = 'pending')
"""


@dataclass
class Loaded:
    """A claimed group with all that decisions about it need."""

    group: Row
    alerts: list[Row] = field(default_factory=list)
    told: dict[str, Told] = field(default_factory=dict)
    pending: dict[str, Pending] = field(default_factory=dict)


class Flusher:
    """Decides for groups that are due."""

    def __init__(
        self, pool: Pool, routing: Routing, *, external_url: str, give_up_after: timedelta
    ) -> None:
        self._pool = pool
        self._routing = routing
        self._external_url = external_url.rstrip("/")
        self._give_up_after = give_up_after

    async def flush(self, now: datetime) -> list[Reason]:
        """Decide for some due groups that no other notifier holds; the reasons, one a channel.

        Empty when no group is due.
        """
        async with self._pool.acquire() as connection, connection.transaction():
            receivers = list(self._routing.channels)
            claimed = await connection.fetch(_CLAIM, now, receivers, GROUPS_PER_TRANSACTION)
            reasons: list[Reason] = []
            for loaded in await load(connection, claimed, now):
                reasons += await self._flush_one(connection, loaded, now)
            await forget_ended(connection, [group["id"] for group in claimed])
        return reasons or [Reason.UNCHANGED] * len(claimed)

    async def next_due(self) -> datetime | None:
        """When the next group is due."""
        found: datetime | None = await self._pool.fetchval(_NEXT_DUE, list(self._routing.channels))
        return found

    async def _flush_one(
        self, connection: Connection, loaded: Loaded, now: datetime
    ) -> list[Reason]:
        group = loaded.group
        channels = self._routing.channels[group["receiver"]]
        alerts = [GroupAlert(row["id"], row["firing"], row["at"]) for row in loaded.alerts]
        reasons, quiet_since = [], []
        for target, channel in channels.items():
            told = loaded.told.get(target, Told())
            made = plan(
                told,
                loaded.pending.get(target),
                alerts,
                send_resolved=channel.send_resolved,
                repeat_interval=group["repeat_interval"],
                retired=group["retired"],
                now=now,
            )
            await self._carry_out(connection, loaded, target, made, now)
            reasons.append(made.reason)
            # What is about to be sent counts as said now; else the group would be due at once.
            quiet_since.append(told.at if made.reason is Reason.UNCHANGED and told.at else now)
        due_at = (
            None if group["retired"] else min(quiet_since, default=now) + group["repeat_interval"]
        )
        if Reason.BUSY in reasons:
            due_at = now + BUSY_PAUSE
        await connection.execute(
            "update notify_groups set flushed_at = $2, due_at = $3 where id = $1",
            *(group["id"], now, due_at),
        )
        return reasons

    async def _carry_out(
        self, connection: Connection, loaded: Loaded, target: str, made: Plan, now: datetime
    ) -> None:
        pending = loaded.pending.get(target)
        if pending and made.superseded:
            why = f"superseded before it was sent: {made.reason}"
            await connection.execute(_SUPERSEDE, [pending.id], why)
        told = made.told
        if made.content and not await self._create(connection, loaded, target, made, now):
            told = after_success(told, made.content.firing, made.content.resolved, now)
        if told != loaded.told.get(target, Told()):
            await save_told(connection, loaded.group["id"], target, told)
            loaded.told[target] = told

    async def _create(
        self, connection: Connection, loaded: Loaded, target: str, made: Plan, now: datetime
    ) -> bool:
        """Write a notification to the ledger; False where the same was given up long ago."""
        group, content = loaded.group, made.content
        assert content is not None
        key = notification_id(group["identity"], target, made.told.sends, content.digest)
        payload = self._notification(key, loaded, content, made.reason, now)
        found = await connection.fetchval(
            _INSERT,
            *(key, group["id"], group["group_key"], group["receiver"], channel_kind(target)),
            *(target, payload.status, made.reason, content.digest),
            *(sorted(content.firing), sorted(content.resolved), payload.model_dump(mode="json")),
            *(now, now - self._give_up_after),
        )
        return found is not None

    def _notification(
        self, key: str, loaded: Loaded, content: Content, reason: Reason, now: datetime
    ) -> Notification:
        group = loaded.group
        told = content.firing | content.resolved
        return Notification(
            id=key,
            receiver=group["receiver"],
            group_key=group["group_key"],
            group_labels=group["group_labels"],
            reason=reason,
            at=now,
            external_url=self._external_url,
            alerts=in_order([self._alert(row) for row in loaded.alerts if row["id"] in told]),
        )

    def _alert(self, row: Row) -> Alert:
        query = urlencode({"query": row["expr"]})
        return Alert(
            status="firing" if row["firing"] else "resolved",
            labels=row["labels"],
            annotations=row["annotations"],
            starts_at=row["starts_at"] or row["at"],
            ends_at=row["ends_at"],
            generator_url=f"{self._external_url}/?{query}" if row["expr"] else self._external_url,
        )


async def load(connection: Connection, groups: Sequence[Row], now: datetime) -> list[Loaded]:
    """The groups with their alerts, what was told of them, and what is still to be sent."""
    loaded = {group["id"]: Loaded(group) for group in groups}
    ids = list(loaded)
    for row in await connection.fetch(_ALERTS, ids):
        loaded[row["group_id"]].alerts.append(row)
    for group_id, tolds in (await load_told(connection, ids)).items():
        loaded[group_id].told = tolds
    for row in await connection.fetch(_PENDING, ids, now):
        loaded[row["group_id"]].pending[row["target"]] = Pending(
            row["id"],
            row["digest"],
            frozenset(row["firing"]),
            row["attempts"],
            row["doubtful"],
            row["leased"],
        )
    return list(loaded.values())


async def load_told(connection: Connection, groups: Iterable[int]) -> dict[int, dict[str, Told]]:
    """What the channels know, by group and target."""
    found: dict[int, dict[str, Told]] = defaultdict(dict)
    for row in await connection.fetch(
        "select * from notify_told where group_id = any($1)", list(groups)
    ):
        found[row["group_id"]][row["target"]] = Told(
            frozenset(row["firing"]), frozenset(row["doubtful"]), row["sends"], row["at"]
        )
    return found


async def save_told(connection: Connection, group: int, target: str, told: Told) -> None:
    """Keep what a channel knows."""
    await connection.execute(
        _TOLD, group, target, sorted(told.firing), sorted(told.doubtful), told.sends, told.at
    )


async def forget_ended(connection: Connection, groups: Sequence[int]) -> None:
    """Let go of alerts whose end every channel was told of, and of groups that are empty then.

    The groups must be locked.
    """
    await connection.execute(_FORGET_MEMBERS, groups)
    await connection.execute(_FORGET_GROUPS, groups)
