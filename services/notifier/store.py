"""Alerts and groups in the database: what arrives is recorded here, in one transaction a batch.

Locks are always taken in one order (alerts, then groups, then deliveries, each sorted), so that any
number of notifiers work at once.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import asyncpg

from schemas.routing import Node
from schemas.transitions import AlertState, Transition
from services.database import Connection, Pool
from services.notifier.routing import Routing, placements

ALERT_RETENTION = timedelta(days=1)
"""How long an ended alert is remembered: transitions redelivered out of order are old news."""

RECONCILE_LOCK = 0x5645_5256_4E4F
"""Advisory lock key under which one notifier applies a new routing document."""

_UPSERT_ALERTS = """
insert into notify_alerts as known
    (rule, fingerprint, firing, at, starts_at, ends_at, labels, annotations, expr)
select rule, fingerprint, firing, at, case when firing then at end,
       case when not firing then at end, labels, annotations, expr
from jsonb_to_recordset($1) as t (rule text, fingerprint text, firing boolean, at timestamptz,
                                  labels jsonb, annotations jsonb, expr text)
order by rule, fingerprint
on conflict (rule, fingerprint) do update set
    firing = excluded.firing, at = excluded.at, labels = excluded.labels,
    annotations = excluded.annotations, expr = excluded.expr,
    starts_at = case when excluded.firing and not known.firing then excluded.at
                     else known.starts_at end,
    ends_at = excluded.ends_at
where excluded.at > known.at
returning id, firing, labels, starts_at
"""

_UPSERT_GROUPS = """
insert into notify_groups as g
    (identity, receiver, group_key, group_labels, group_interval, repeat_interval, due_at)
select decode(identity, 'hex'), receiver, group_key, group_labels,
       make_interval(secs => group_interval_s), make_interval(secs => repeat_interval_s), due_at
from jsonb_to_recordset($1) as t
    (identity text, receiver text, group_key text, group_labels jsonb,
     group_interval_s float8, repeat_interval_s float8, due_at timestamptz)
order by identity
on conflict (identity) do update set
    group_interval = excluded.group_interval, repeat_interval = excluded.repeat_interval,
    retired = false,
    due_at = least(g.due_at, coalesce(next_flush(g.flushed_at, excluded.group_interval, $2),
                                      excluded.due_at))
returning id, encode(identity, 'hex') as identity
"""

_INSERT_MEMBERS = """
insert into notify_members (group_id, alert_id)
select * from unnest($1::bigint[], $2::bigint[]) on conflict do nothing
"""

_TOUCH_GROUPS = """
with touched as (
    select id from notify_groups
    where id in (select group_id from notify_members where alert_id = any($1))
    order by identity for update)
update notify_groups g
set due_at = least(g.due_at, next_flush(g.flushed_at, g.group_interval, $2))
from touched where touched.id = g.id
"""


@dataclass(frozen=True)
class Recorded:
    """What a batch of transitions changed. `stale` ones were repeated or older than known."""

    applied: int
    stale: int


class Store:
    """The notifier's side of the database. Times are arguments; every method is a transaction."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    async def now(self) -> datetime:
        """The database's clock, which all notifiers share."""
        found: datetime = await self.pool.fetchval("select clock_timestamp()")
        return found

    async def record(
        self, transitions: Sequence[Transition], root: Node, now: datetime
    ) -> Recorded:
        """Apply transitions and put their alerts into their groups. Again is a no-op."""
        newest = newest_changes(transitions)
        async with self.pool.acquire() as connection, connection.transaction():
            rows = await connection.fetch(_UPSERT_ALERTS, [_alert_row(t) for t in newest])
            await self._place(connection, [row for row in rows if row["firing"]], root, now)
            ended = [row["id"] for row in rows if not row["firing"]]
            if ended:
                await connection.execute(_TOUCH_GROUPS, ended, now)
        told = sum(t.to_state is not AlertState.PENDING for t in transitions)
        return Recorded(len(rows), told - len(rows))

    async def _place(
        self,
        connection: Connection,
        alerts: Iterable[asyncpg.Record],
        root: Node,
        now: datetime,
    ) -> None:
        groups: dict[str, dict[str, Any]] = {}
        members: list[tuple[str, int]] = []
        for alert in alerts:
            for place in placements(root, alert["labels"], alert["starts_at"], now):
                row = vars(place) | {"due_at": place.due_at.isoformat()}
                known = groups.setdefault(place.identity, row)
                known["due_at"] = min(known["due_at"], row["due_at"], key=datetime.fromisoformat)
                members.append((place.identity, alert["id"]))
        if not members:
            return
        rows = await connection.fetch(_UPSERT_GROUPS, list(groups.values()), now)
        ids = {row["identity"]: row["id"] for row in rows}
        pairs = sorted((ids[identity], alert) for identity, alert in members)
        await connection.execute(_INSERT_MEMBERS, [g for g, _ in pairs], [a for _, a in pairs])

    async def reconcile(self, routing: Routing, now: datetime) -> bool:
        """Route all firing alerts by a document that is new; whether it was.

        Groups that no route leads to any more are retired: they tell the ends of what they told.
        """
        async with self.pool.acquire() as connection, connection.transaction():
            await connection.execute("select pg_advisory_xact_lock($1)", RECONCILE_LOCK)
            if await connection.fetchval("select digest from notify_routing") == routing.digest:
                return False
            await connection.execute("update notify_groups set retired = true")
            alerts = await connection.fetch(
                "select id, labels, starts_at from notify_alerts where firing order by id"
            )
            await self._place(connection, alerts, routing.root, now)
            await self._drop_unreachable(connection, routing, now)
            await connection.execute(
                """insert into notify_routing (digest, applied_at) values ($1, $2)
                   on conflict (singleton) do update set digest = $1, applied_at = $2""",
                routing.digest,
                now,
            )
        return True

    async def _drop_unreachable(
        self, connection: Connection, routing: Routing, now: datetime
    ) -> None:
        """Forget channels that the document no longer has: nobody is left to be told."""
        targets = list(routing.targets)
        await connection.execute(
            """update deliveries set state = 'failed', due_at = null, payload = null, lease = null,
                   error = 'the routing document no longer has this channel'
               where state = 'pending' and not target = any($1)""",
            targets,
        )
        await connection.execute("delete from notify_told where not target = any($1)", targets)
        await connection.execute(
            "delete from notify_groups where not receiver = any($1)", list(routing.channels)
        )
        await connection.execute("update notify_groups set due_at = $1 where retired", now)

    async def forget(
        self, now: datetime, *, ledger_retention: timedelta, inbox_retention: timedelta
    ) -> int:
        """Delete what is older than it has to be kept; number of rows."""
        rows = 0
        for query, before in (
            (
                "delete from deliveries where state <> 'pending' and created_at < $1",
                ledger_retention,
            ),
            ("delete from inbox where at < $1", inbox_retention),
            (
                """delete from notify_alerts a where not firing and at < $1 and not exists
                       (select from notify_members m where m.alert_id = a.id)""",
                ALERT_RETENTION,
            ),
        ):
            status = await self.pool.execute(query, now - before)
            rows += int(status.rpartition(" ")[2])
        return rows


def newest_changes(transitions: Iterable[Transition]) -> list[Transition]:
    """The last word on each alert. Pending ones are no matter of notifications."""
    newest: dict[tuple[str, str], Transition] = {}
    for transition in transitions:
        if transition.to_state is AlertState.PENDING:
            continue
        key = (transition.rule, transition.fingerprint)
        if key not in newest or transition.at > newest[key].at:
            newest[key] = transition
    return list(newest.values())


def _alert_row(transition: Transition) -> dict[str, Any]:
    return {
        "rule": transition.rule,
        "fingerprint": transition.fingerprint,
        "firing": transition.to_state is AlertState.FIRING,
        "at": transition.at.isoformat(),
        "labels": transition.labels,
        "annotations": transition.annotations,
        "expr": transition.expr,
    }
