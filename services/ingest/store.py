"""What ingest writes: frames, and each agent's progress."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import asyncpg

from schemas.events import AgentStatus
from services.clock import EPOCH, instant, now_us
from services.database import Connection, Pool
from services.failpoints import failpoint
from services.ingest import registry
from services.ingest.batch import (
    Key,
    Progress,
    Received,
    RowKey,
    Rows,
    days,
    encode_copy,
    passes,
    progress,
)
from services.ingest.duplicates import sealed_rows

STAGING = """
create temporary table if not exists staging
    (layout_id integer not null, at timestamptz not null, values float8[] not null)
    on commit delete rows
"""

# A frame that is there already only gains the values that it lacked.
MERGE = """
insert into frames as stored (layout_id, at, values)
select layout_id, at, values from staging order by cardinality(values), layout_id, at
on conflict (layout_id, at) do update
    set values = merge_absent(stored.values, excluded.values)
    where lacks_any(stored.values, excluded.values)
"""

# Rows of this batch that stand as an earlier transaction wrote them.
ALREADY_STORED = """
select layout_id, (extract(epoch from at) * 1000000)::bigint as at_us
from staging join frames using (layout_id, at)
where frames.xmin <> pg_current_xact_id()::xid
"""

SAVE_PROGRESS = """
insert into agents as known (job, instance, epoch, source, first_seq, last_seq, messages, samples,
                             last_samples, duplicates, last_at, received_at)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, now())
on conflict (job, instance, epoch) do update set
    source = excluded.source,
    first_seq = least(known.first_seq, excluded.first_seq),
    last_seq = greatest(known.last_seq, excluded.last_seq),
    last_samples = case when excluded.last_seq >= known.last_seq
                        then excluded.last_samples else known.last_samples end,
    messages = known.messages + excluded.messages,
    samples = known.samples + excluded.samples,
    duplicates = known.duplicates + excluded.duplicates,
    last_at = greatest(known.last_at, excluded.last_at),
    received_at = excluded.received_at
"""

SAVE_STATUS = """
insert into agent_status as known (job, instance, epoch, state, at, version, interval_s, source)
values ($1, $2, $3, $4, $5, $6, $7, $8)
on conflict (job, instance) do update set
    epoch = excluded.epoch, state = excluded.state, at = excluded.at, version = excluded.version,
    interval_s = excluded.interval_s, source = excluded.source
where known.at <= excluded.at
"""


MERGED_BATCHES = 20
"""Batches that are merged after one that held a row that was there already. Merging costs the
database twice as much as writing, and repeated messages seldom come alone."""


class Outdated(Exception):
    """Layouts were collected since those of a batch were looked up; nothing of it is stored."""


class Store:
    """Writes batches. Everything here may be done again after an unknown outcome."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._days: set[int] = set()
        self._merging = 0
        self._collected = 0

    async def write(self, batch: Sequence[Received]) -> int:
        """Store a batch in one transaction; the number of messages that had been stored before.

        Raises what the driver raises: `services.database.verdict` says what it means.
        """
        dropped = False
        while True:
            try:
                return await self._write(batch, keep_partitions=dropped)
            except Outdated:
                continue
            except asyncpg.UniqueViolationError:
                self._merging = MERGED_BATCHES
            except (asyncpg.CheckViolationError, asyncpg.InternalServerError):
                # A job dropped the partition when it was empty; COPY into a hypertable that waited
                # meanwhile says "could not open relation".
                if dropped:
                    raise
                dropped = True

    async def _write(self, batch: Sequence[Received], *, keep_partitions: bool) -> int:
        async with self._pool.acquire() as connection:
            await self._register(connection, batch)
            if not keep_partitions:
                await self._ensure_partitions(connection, days(batch))
            async with connection.transaction():
                if keep_partitions:
                    await connection.execute("lock table only frames in row exclusive mode")
                    self._days.clear()
                    await self._ensure_partitions(connection, days(batch))
                known = await self._store(connection, passes(batch))
                known |= await sealed_rows(connection, batch, now_us())
                await self._check_layouts(connection)
                agents = progress(batch, known)
                await _save_progress(connection, agents)
                failpoint("ingest.before_commit")
        failpoint("ingest.after_commit")
        return sum(agent.duplicates for agent in agents.values())

    async def _store(self, connection: Connection, groups: Sequence[list[Rows]]) -> set[RowKey]:
        """Write rows; the keys of those that were stored before.

        Raises UniqueViolationError where some were and this one did not look for them.
        """
        if not self._merging and len(groups) == 1:
            await _copy(connection, "frames", encode_copy(groups[0]))
            return set()
        self._merging = max(self._merging - 1, 0)
        await connection.execute(STAGING)
        known: set[RowKey] = set()
        for frames in groups:
            known |= await self._merge(connection, encode_copy(frames))
        return known

    async def _merge(self, connection: Connection, rows: bytes) -> set[RowKey]:
        await connection.execute("truncate staging")
        copied = await _copy(connection, "staging", rows)
        merged = await connection.execute(MERGE)
        if int(merged.split()[-1]) == copied:
            return set()
        return {(r["layout_id"], r["at_us"]) for r in await connection.fetch(ALREADY_STORED)}

    async def _check_layouts(self, connection: Connection) -> None:
        """Raises Outdated when layouts were collected since the batch's were looked up.

        To be called when the rows are written: from then on none is collected (unused.py).
        """
        collected = await connection.fetchval("select times from layouts_collected")
        if collected != self._collected:
            self._collected = collected
            raise Outdated

    async def _register(self, connection: Connection, batch: Sequence[Received]) -> None:
        """Give every layout of the batch its id; the same one, whichever worker sees it first."""
        new = {
            rows.layout.hash: rows.layout
            for one in batch
            for rows in one.frames
            if rows.layout.as_of != self._collected
        }
        if new:
            await registry.register(connection, [layout for _, layout in sorted(new.items())])
        if any(layout.id is None for layout in new.values()):
            raise Outdated
        for one in batch:
            for rows in one.frames:
                if rows.layout.as_of != self._collected:
                    rows.layout.id = new[rows.layout.hash].id
                    rows.layout.as_of = self._collected

    async def _ensure_partitions(self, connection: Connection, wanted: set[int]) -> None:
        for day in sorted(wanted - self._days):
            await connection.execute(
                "select ensure_partition('frames', $1)", EPOCH + timedelta(days=day)
            )
            self._days.add(day)

    async def save_status(self, status: AgentStatus) -> None:
        """Keep an agent's newest status; an older one changes nothing."""
        source = status.source
        await self._pool.execute(
            SAVE_STATUS,
            source["job"],
            source["instance"],
            status.epoch,
            status.state,
            status.at,
            status.version,
            status.interval_s,
            source,
        )


async def _copy(connection: Connection, table: str, rows: bytes) -> int:
    """COPY these; their number."""
    # Bytes would be taken for a path, and a file would be read by a thread.
    source: Any = memoryview(rows)
    copied = await connection.copy_to_table(table, source=source, format="binary")
    return int(copied.split()[-1])


async def _save_progress(connection: Connection, agents: dict[Key, Progress]) -> None:
    await connection.executemany(
        SAVE_PROGRESS,
        [
            (
                *key,
                dict(agent.source),
                agent.first_seq,
                agent.last_seq,
                agent.messages,
                agent.samples,
                agent.last_samples,
                agent.duplicates,
                instant(agent.last_at_us),
            )
            for key, agent in agents.items()
        ],
    )
