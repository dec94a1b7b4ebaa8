"""What the api reads. All of it runs on a read-only pool with bound parameters."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

from asyncpg import Record

from schemas.samples import UNSPOOLED
from services.clock import rfc3339
from services.database import Pool

SILENT_AFTER_INTERVALS = 3
DEFAULT_INTERVAL_S = 15.0

AGENTS = f"""
select distinct on (a.job, a.instance) a.job, a.instance, a.source, a.epoch, a.first_seq,
       a.last_seq, a.messages, a.duplicates, a.samples, a.last_at, a.received_at,
       coalesce(s.version, '') as version, s.interval_s,
       case when s.state = 'stopping' and s.at >= a.last_at then 'gone'
            when a.last_at < now() - {SILENT_AFTER_INTERVALS} * make_interval(
                secs => coalesce(s.interval_s, {DEFAULT_INTERVAL_S})) then 'silent'
            else 'up' end as state
from agents a left join agent_status s using (job, instance)
where (a.job, a.instance) > ($1, $2)
order by a.job, a.instance, a.last_at desc
limit $3
"""


async def agents(pool: Pool, after: tuple[str, str], limit: int) -> list[dict[str, Any]]:
    """Agents in the order of job and instance, each by its newest epoch."""
    return [_agent(row) for row in await pool.fetch(AGENTS, *after, limit)]


def _agent(row: Record) -> dict[str, Any]:
    return {
        "job": row["job"],
        "instance": row["instance"],
        "labels": row["source"],
        "state": row["state"],
        "last_sample_at": rfc3339(row["last_at"]),
        "received_at": rfc3339(row["received_at"]),
        "lag_s": (row["received_at"] - row["last_at"]).total_seconds(),
        "epoch": row["epoch"],
        "first_seq": row["first_seq"],
        "last_seq": row["last_seq"],
        "messages": row["messages"],
        "missing": _missing(row),
        "duplicates": row["duplicates"],
        "samples": row["samples"],
        "version": row["version"],
        "interval_s": row["interval_s"],
    }


def _missing(row: Record) -> int:
    if row["epoch"].startswith(UNSPOOLED):
        return 0
    return max(0, int(row["last_seq"] - row["first_seq"] + 1 - row["messages"]))


async def rule_groups(pool: Pool) -> list[dict[str, Any]]:
    """The rules that the evaluators run, in Prometheus' shape, each with its alerts."""
    async with pool.acquire() as connection, connection.transaction(isolation="repeatable_read"):
        groups = await connection.fetch("select * from rule_groups order by position")
        rows = await connection.fetch("select * from alerts order by rule, fingerprint")
        evaluated_at = await connection.fetchval("select max(received_at) from positions")
    alerts: defaultdict[str, list[Record]] = defaultdict(list)
    for row in rows:
        alerts[row["rule"]].append(row)
    return [
        {
            "name": group["name"],
            "file": group["file"],
            "interval": group["interval_s"],
            "limit": 0,
            **_evaluated(evaluated_at),
            "rules": [
                _rule(rule, alerts[f"{group['name']}/{rule['alert']}"]) | _evaluated(evaluated_at)
                for rule in group["rules"]
            ],
        }
        for group in groups
    ]


NEVER = "0001-01-01T00:00:00Z"
"""As Prometheus writes an instant that was not yet."""


def _evaluated(at: datetime | None) -> dict[str, Any]:
    """When rules were evaluated last: all of them, whenever samples arrive. The time that it took
    is not told apart by rule."""
    return {"evaluationTime": 0, "lastEvaluation": NEVER if at is None else rfc3339(at)}


def _rule(rule: Mapping[str, Any], alerts: Sequence[Record]) -> dict[str, Any]:
    states = {row["state"] for row in alerts}
    return {
        "type": "alerting",
        "name": rule["alert"],
        "query": rule["expr"] or "",
        "duration": rule["for_s"],
        "keepFiringFor": rule["keep_firing_for_s"],
        "noData": rule["no_data_s"],
        "labels": rule["labels"],
        "annotations": rule["annotations"],
        "alerts": [_alert(row) for row in alerts],
        "state": next((one for one in ("firing", "pending") if one in states), "inactive"),
        "health": "ok",
    }


async def active_alerts(pool: Pool) -> list[dict[str, Any]]:
    """All alerts that are pending or firing, the longest first."""
    return [_alert(row) for row in await pool.fetch("select * from alerts order by active_at")]


def _alert(row: Record) -> dict[str, Any]:
    return {
        "labels": row["labels"],
        "annotations": row["annotations"],
        "state": row["state"],
        "activeAt": rfc3339(row["active_at"]),
        "value": scientific(row["value"]),
    }


def scientific(value: float) -> str:
    """As Prometheus writes an alert's value: Go's 'e' format with the shortest digits."""
    if not math.isfinite(value):
        return {"nan": "NaN", "inf": "+Inf", "-inf": "-Inf"}[str(value)]
    mantissa, _, exponent = f"{Decimal(repr(value)).normalize():e}".partition("e")
    return f"{mantissa}e{int(exponent):+03d}"


TRANSITIONS = """
select * from transitions
where sequence < $1 and ($2::text is null or labels->>'instance' = $2)
  and ($3::text is null or alertname = $3)
order by sequence desc limit $4
"""


async def transitions(
    pool: Pool, before: int, instance: str | None, alertname: str | None, limit: int
) -> list[dict[str, Any]]:
    """Changes of state, newest first, as `transition_item` has them, with their sequence."""
    rows = await pool.fetch(TRANSITIONS, before, instance, alertname, limit)
    return [{**transition_item(row), "sequence": row["sequence"]} for row in rows]


async def transitions_after(pool: Pool, last_id: str, limit: int) -> list[dict[str, Any]]:
    """Changes of state after the one with this id, oldest first; none when the id is unknown."""
    rows = await pool.fetch(
        """select * from transitions
           where sequence > (select sequence from transitions where id = $1)
           order by sequence limit $2""",
        last_id,
        limit,
    )
    return [transition_item(row) for row in rows]


def transition_item(row: Record | Mapping[str, Any]) -> dict[str, Any]:
    """One change of state as `/v1/transitions` and the stream show it."""
    value = row["value"]
    return {
        "id": row["id"],
        "rule": row["rule"],
        "alertname": row["alertname"],
        "severity": row["severity"],
        "labels": row["labels"],
        "annotations": row["annotations"],
        "from": row["from_state"],
        "to": row["to_state"],
        "at": rfc3339(row["at"]),
        "value": value if value is not None and math.isfinite(value) else None,
    }


# The newest value of each series of these metrics, whichever of its layouts has it: from frames, or
# from the rollups of what is sealed.
NEWEST = """
select distinct on (series.id) series.metric, series.labels, newest.value
from series join layout_series l on series_id = series.id
cross join lateral (
    (select at, values[position] as value from frames
     where frames.layout_id = l.layout_id order by at desc limit 1)
    union all
    (select start + bucket * interval '5 minutes', lasts[(position - 1) * 12 + bucket]
     from (select * from rollups_5m where layout_id = l.layout_id order by start desc limit 1) r,
          generate_series(1, 12) as bucket
     where counts[(position - 1) * 12 + bucket] > 0 order by bucket desc limit 1)
    union all
    (select start + bucket * interval '1 hour', lasts[(position - 1) * 24 + bucket]
     from (select * from rollups_1h where layout_id = l.layout_id order by start desc limit 1) r,
          generate_series(1, 24) as bucket
     where counts[(position - 1) * 24 + bucket] > 0 order by bucket desc limit 1)
    order by at desc limit 1) newest
where metric = any($1) and newest.value >= 0
order by series.id, newest.at desc
"""

GENERATED = "vervet_agent_samples_generated_total"
DROPPED = "vervet_agent_samples_dropped_total"
SPOOLED = "vervet_agent_spool_samples"

NEWEST_PROGRESS = f"""
select coalesce(sum(samples), 0)::bigint as stored,
       coalesce(sum(last_samples), 0)::bigint as newest
from (select distinct on (job, instance) samples, last_samples from agents
      where not starts_with(epoch, '{UNSPOOLED}')
      order by job, instance, last_at desc) newest
"""


async def pipeline(pool: Pool) -> dict[str, int]:
    """The proof: what agents say they generated and dropped, and what is stored of that.

    Counted since each agent's spool began. In flight is only what agents say that they still hold;
    what is left over then is unaccounted for, and the reader of these four numbers sees it.
    """
    said = {GENERATED: 0, DROPPED: 0, SPOOLED: 0}
    async with pool.acquire() as connection, connection.transaction(isolation="repeatable_read"):
        rows = await connection.fetch(NEWEST, list(said))
        progress = await connection.fetchrow(NEWEST_PROGRESS)
    assert progress is not None, "an aggregate has a row"
    for row in rows:
        if math.isfinite(row["value"]):
            said[row["metric"]] += int(row["value"])
    # An agent's newest message tells what came before it: what it holds itself is added.
    generated = said[GENERATED] + progress["newest"]
    rest = generated - said[DROPPED] - progress["stored"]
    return {
        "generated": generated,
        "stored": progress["stored"],
        "dropped": said[DROPPED],
        "in_flight": min(max(0, rest), said[SPOOLED]),
    }


async def inbox(pool: Pool, before: int, limit: int) -> list[dict[str, Any]]:
    """Notifications of the `inbox` receivers, newest first."""
    rows = await pool.fetch(
        "select * from inbox where sequence < $1 order by sequence desc limit $2", before, limit
    )
    return [{**dict(row), "at": rfc3339(row["at"])} for row in rows]


DELIVERIES = """
select id, sequence, group_key, receiver, channel, status, state, attempts, created_at, due_at,
       sent_at, reason, error, permanent
from deliveries where sequence < $1 order by sequence desc limit $2
"""


async def deliveries(pool: Pool, before: int, limit: int) -> list[dict[str, Any]]:
    """The notifier's ledger, newest first."""
    rows = await pool.fetch(DELIVERIES, before, limit)
    return [_with_instants(row) for row in rows]


JOBS = """
select name, case when started_at > coalesce(finished_at, '-infinity') then 'running'
                  when failures > 0 then 'failing'
                  when succeeded_at is null then 'new'
                  else 'fine' end as state,
       every_s, owner, requested_at, started_at, finished_at, succeeded_at, duration_s, lag_s,
       failures, progress, error
from jobs order by name
"""


async def jobs(pool: Pool) -> list[dict[str, Any]]:
    """The jobs of the ingest workers, by name; none before a worker ran."""
    return [_with_instants(row) for row in await pool.fetch(JOBS)]


def _with_instants(row: Record) -> dict[str, Any]:
    return {
        name: rfc3339(value) if isinstance(value, datetime) else value
        for name, value in row.items()
    }
