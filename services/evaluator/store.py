"""What an evaluator reads and saves. Every write is fenced by the partition's epoch."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import structlog

from engine.alerting import Alert
from schemas.transitions import Transition
from services.clock import instant, microseconds
from services.database import Connection, Pool
from services.evaluator.evaluation import AlertKey, Changes, Instance, Source
from services.evaluator.restoring import load_alerts, load_windows
from services.evaluator.rules import LoadedGroup, RuleSet

log = structlog.get_logger("vervet.evaluator")

T = TypeVar("T")

CLAIM = """
insert into partitions as known (partition, epoch, owner) values ($1, 1, $2)
on conflict (partition) do update
    set epoch = known.epoch + 1, owner = excluded.owner, claimed_at = now()
returning epoch
"""

# The row lock makes a claim wait until this is committed, so that the new owner reads it.
SAVE = """
with owned as materialized (
    select from partitions where partition = $1 and epoch = $2 for update
), frames as (
    insert into window_frames (key, at, values)
    select * from unnest($3::bigint[], $4::bigint[], $5::bytea[])
    where exists (select from owned)
    on conflict (key, at) do update set values = excluded.values
), sources as (
    insert into positions (instance, job, partition, source, epoch, seq, at, received_at)
    select instance, job, $1, source, epoch, seq, at, now()
    from unnest($6::text[], $7::text[], $8::jsonb[], $9::text[], $10::bigint[], $11::timestamptz[])
         as arrived (instance, job, source, epoch, seq, at)
    where exists (select from owned)
    on conflict (instance, job) do update
        set partition = excluded.partition, source = excluded.source, epoch = excluded.epoch,
            seq = excluded.seq, at = excluded.at, received_at = excluded.received_at
)
select count(*) from owned
"""

SAVE_LAYOUT = """
insert into window_layouts (key, instance, source, layout, columns) values ($1, $2, $3, $4, $5)
on conflict do nothing
"""

SAVE_ALERT = """
insert into alerts (rule, fingerprint, instance, partition, state, active_at, fired_at, kept_since,
                    value, labels, annotations)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
on conflict (rule, fingerprint) do update
    set instance = excluded.instance, partition = excluded.partition, state = excluded.state,
        active_at = excluded.active_at, fired_at = excluded.fired_at,
        kept_since = excluded.kept_since, value = excluded.value,
        annotations = excluded.annotations
"""

END_ALERT = "delete from alerts where rule = $1 and fingerprint = $2"

SAVE_TRANSITION = """
insert into transitions (id, rule, alertname, fingerprint, severity, from_state, to_state, at,
                         active_at, value, labels, annotations, expr, partition)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
on conflict (id) do nothing
"""

UNPUBLISHED = """
select id, rule, alertname, fingerprint, severity, from_state, to_state, at, active_at, value,
       labels, annotations, expr
from transitions where partition = $1 and published_at is null
order by sequence limit $2
"""

# Frames that no rule looks back on any more, then layouts without frames.
FORGET_FRAMES = """
delete from window_frames f
using window_layouts l, (
    select instance, (extract(epoch from max(at)) * 1000000)::bigint as at
    from positions where partition = $1 group by instance
) p
where f.key = l.key and l.instance = p.instance and f.at < p.at - $2
"""
FORGET_LAYOUTS = """
delete from window_layouts l
using positions p
where p.partition = $1 and p.instance = l.instance
  and not exists (select from window_frames f where f.key = l.key)
"""

HEARTBEAT = """
insert into evaluators (id, seen_at) values ($1, now())
on conflict (id) do update set seen_at = now()
"""
LIVE = "select id from evaluators where seen_at > now() - $1::interval"
FORGET_DEAD = "delete from evaluators where seen_at < now() - interval '1 day'"

UNPUBLISHED_AT_ONCE = 1000


class Fenced(Exception):
    """Another evaluator has claimed the partition: nothing may be written for it from here."""


class AgentState(NamedTuple):
    """What an agent last said of itself."""

    stopping: bool
    at_us: int
    interval_us: int


class Store:
    """One connection for all partitions: a save is one or two statements, and they take turns."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._connection: Any = None
        self._turn = asyncio.Lock()

    async def close(self) -> None:
        """Give the connection back."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await self._pool.release(connection)

    @asynccontextmanager
    async def _kept(self) -> AsyncIterator[Connection]:
        """The connection, kept over saves: giving it back would cost a round trip each time.

        After an error nothing is known of it, so the next save opens another.
        """
        async with self._turn:
            if self._connection is None:
                self._connection = await self._pool.acquire()
            try:
                yield self._connection
            except Fenced:
                raise
            except BaseException:
                connection, self._connection = self._connection, None
                connection.terminate()
                await self._pool.release(connection)
                raise

    async def claim(self, partition: int, owner: str) -> int:
        """Become the partition's only writer; the epoch to write with."""
        return int(await self._pool.fetchval(CLAIM, partition, owner))

    async def save(self, partition: int, epoch: int, changes: Changes) -> None:
        """Save all of it, in one transaction. Raises Fenced; saving twice is a no-op."""
        async with self._kept() as connection:
            if not (changes.alerts or changes.transitions or changes.layouts):
                await _save_positions(connection, partition, epoch, changes)
                return
            async with connection.transaction():
                await _save_positions(connection, partition, epoch, changes)
                await _save_layouts(connection, changes)
                await _save_alerts(connection, partition, changes)

    async def instances_of(self, partition: int) -> list[str]:
        """Names of the instances that were evaluated in this partition."""
        rows = await self._pool.fetch(
            "select distinct instance from positions where partition = $1", partition
        )
        return [row["instance"] for row in rows]

    async def load(
        self, rules: RuleSet, names: Sequence[str]
    ) -> tuple[list[Instance], list[tuple[Instance, AlertKey, Alert]]]:
        """Instances as they were saved, new ones empty; and alerts whose rule is gone."""
        instances = {name: Instance(name) for name in names}
        async with self._pool.acquire() as connection, connection.transaction(readonly=True):
            for row in await connection.fetch(
                "select * from positions where instance = any($1)", names
            ):
                instances[row["instance"]].sources[row["job"]] = Source(
                    row["source"], row["epoch"], row["seq"], microseconds(row["at"])
                )
            orphans = await load_alerts(connection, rules, instances)
            await load_windows(connection, rules, instances)
        return list(instances.values()), orphans

    async def unpublished(self, partition: int) -> list[Transition]:
        """The oldest transitions that are not known to be published, in their order."""
        rows = await self._pool.fetch(UNPUBLISHED, partition, UNPUBLISHED_AT_ONCE)
        return [Transition(**dict(row)) for row in rows]

    async def mark_published(self, ids: Sequence[str]) -> None:
        """These were published."""
        await self._pool.execute(
            "update transitions set published_at = now() where id = any($1)", ids
        )

    async def agent_states(
        self, sources: Sequence[tuple[str, str]]
    ) -> dict[tuple[str, str], AgentState]:
        """What the agents of these (instance, job) last said, where they said something."""
        rows = await self._pool.fetch(
            """select instance, job, state, at, interval_s from agent_status
               join unnest($1::text[], $2::text[]) as s (instance, job) using (instance, job)""",
            [instance for instance, _ in sources],
            [job for _, job in sources],
        )
        return {
            (row["instance"], row["job"]): AgentState(
                row["state"] == "stopping",
                microseconds(row["at"]),
                int(row["interval_s"] * 1_000_000),
            )
            for row in rows
        }

    async def forget(self, partition: int, window_us: int) -> None:
        """Delete saved frames that are older than the window before their instance's position."""
        await self._pool.execute(FORGET_FRAMES, partition, window_us)
        await self._pool.execute(FORGET_LAYOUTS, partition)

    async def heartbeat(self, own_id: str, lifetime: timedelta) -> list[str]:
        """Say that this evaluator lives; the ids of all that do."""
        async with self._pool.acquire() as connection:
            await connection.execute(HEARTBEAT, own_id)
            rows = await connection.fetch(LIVE, lifetime)
        return [row["id"] for row in rows]

    async def leave(self, own_id: str) -> None:
        """This evaluator goes; the others need not wait for its lifetime to end."""
        await self._pool.execute("delete from evaluators where id = $1", own_id)
        await self._pool.execute(FORGET_DEAD)

    async def save_rules(self, groups: Sequence[LoadedGroup]) -> None:
        """Let readers know which rules are evaluated."""
        rows = [_group_row(position, group) for position, group in enumerate(groups)]
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute("lock table rule_groups in share row exclusive mode")
            await connection.execute("delete from rule_groups")
            await connection.executemany(
                """insert into rule_groups (position, file, name, interval_s, rules)
                   values ($1, $2, $3, $4, $5)""",
                rows,
            )


def _group_row(position: int, loaded: LoadedGroup) -> tuple[Any, ...]:
    group = loaded.group
    rules = [
        {
            "alert": rule.alert,
            "expr": rule.expr or "",
            "for_s": rule.for_.total_seconds(),
            "keep_firing_for_s": rule.keep_firing_for.total_seconds(),
            "no_data_s": rule.no_data.total_seconds() if rule.no_data else None,
            "labels": rule.labels,
            "annotations": rule.annotations,
        }
        for rule in group.rules
    ]
    interval_s = group.interval.total_seconds() if group.interval else 0.0
    return position, loaded.file, group.name, interval_s, rules


async def _save_positions(
    connection: Connection, partition: int, epoch: int, changes: Changes
) -> None:
    rows = sorted((*place, values) for place, values in changes.frames.items())
    keys, at, values = zip(*rows, strict=True) if rows else ((),) * 3
    sources = sorted(changes.sources.items())
    owned = await connection.fetchval(
        SAVE,
        partition,
        epoch,
        keys,
        at,
        values,
        [instance for (instance, _), _ in sources],
        [job for (_, job), _ in sources],
        [source.labels for _, source in sources],
        [source.epoch for _, source in sources],
        [source.seq for _, source in sources],
        [instant(source.at_us) for _, source in sources],
    )
    if not owned:
        raise Fenced(f"partition {partition}: epoch {epoch} is over")


async def _save_layouts(connection: Connection, changes: Changes) -> None:
    rows = [
        (key, name, one.source, one.layout, one.positions.astype("<i4").tobytes())
        for key, (name, one) in sorted(changes.layouts.items())
    ]
    if rows:
        await connection.executemany(SAVE_LAYOUT, rows)


async def _save_alerts(connection: Connection, partition: int, changes: Changes) -> None:
    ended = [key for key, (_, alert) in sorted(changes.alerts.items()) if alert is None]
    if ended:
        await connection.executemany(END_ALERT, ended)
    rows = [
        _alert_row(key, name, partition, alert)
        for key, (name, alert) in sorted(changes.alerts.items())
        if alert is not None
    ]
    if rows:
        await connection.executemany(SAVE_ALERT, rows)
    if changes.transitions:
        await connection.executemany(
            SAVE_TRANSITION, [_transition_row(one, partition) for one in changes.transitions]
        )


def _alert_row(key: AlertKey, name: str, partition: int, alert: Alert) -> tuple[Any, ...]:
    return (
        key.rule,
        key.fingerprint,
        name,
        partition,
        alert.state.value,
        instant(alert.active_at_us),
        None if alert.fired_at_us is None else instant(alert.fired_at_us),
        None if alert.kept_since_us is None else instant(alert.kept_since_us),
        alert.value,
        alert.labels,
        alert.annotations,
    )


def _transition_row(one: Transition, partition: int) -> tuple[Any, ...]:
    return (
        one.id,
        one.rule,
        one.alertname,
        one.fingerprint,
        one.severity,
        one.from_state.value,
        one.to_state.value,
        one.at,
        one.active_at,
        one.value,
        one.labels,
        one.annotations,
        one.expr,
        partition,
    )
