"""Retention: each tier keeps its span of time, and all together a size, partition by partition.

Nothing is dropped before the next tier holds what it makes of it, and a coarser tier loses nothing
that a finer one still has. What was dropped stays so: `floor` rises in the transaction that drops,
and what arrives from before it is counted and dropped when it would be sealed.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

import structlog

from services.database import Connection, Pool
from services.ingest.jobs import Progress
from services.ingest.partitions import Partition, drop, list_partitions
from services.retention import MIN_RAW, TABLES, Retention, read_retention

log = structlog.get_logger("vervet.retention")

DROPPED = {"raw": "blocks", "5m": "rollups_5m", "1h": "rollups_1h"}
"""What is dropped of each tier. The head's partitions go when they are empty (partitions.py)."""

Stored = Mapping[str, Sequence[Partition]]
"""By table its partitions, oldest first."""

# Every block has its rollups, but where these were dropped, and no frame waits to be sealed. By
# layout, the frames' key finds one without a look at those that were deleted.
RAW_IS_ROLLED_UP = """
select not exists (
    select from blocks b
    where start >= $1 and start < $2
      and start >= (select floor from retention where tier = '5m')
      and not exists (select from rollups_5m r where r.start >= $1 and r.start < $2
                      and r.layout_id = b.layout_id and r.start = b.start))
and not exists (
    select from layouts
    where (select true from frames where layout_id = layouts.id and at > $1 and at <= $2 limit 1))
"""

# No day is marked, and each that has hours of a layout has its row, but where these were dropped.
ROLLUPS_5M_ARE_ROLLED_UP = """
select not exists (select from days_due where start >= $1 and start < $2)
and not exists (
    select from layouts
    cross join generate_series($1, $2 - interval '1 day', interval '1 day') as day
    where day >= (select floor from retention where tier = '1h')
      and (select true from rollups_5m r where r.layout_id = layouts.id and r.start >= day
           and r.start < day + interval '1 day' and r.start >= $1 and r.start < $2 limit 1)
      and (select true from rollups_1h r where r.layout_id = layouts.id and r.start = day
           and r.start >= $1 and r.start < $2 limit 1) is null)
"""

IS_ROLLED_UP = {"raw": RAW_IS_ROLLED_UP, "5m": ROLLUPS_5M_ARE_ROLLED_UP}

CHECK_TIMEOUT_S = 240.0
"""For millions of layouts: 10,000 take 0.3 s."""

RAISE_FLOOR = "update retention set floor = greatest(floor, $2) where tier = $1"


class Drop(NamedTuple):
    """A partition that is to go."""

    tier: str
    partition: Partition


def next_drop(
    stored: Stored, retention: Retention, now: datetime, stuck: Collection[str]
) -> Drop | None:
    """The partition to drop next; None when there is none. `stuck` are tiers to leave alone."""
    oldest = {
        tier: min((p for table in tables for p in stored[table]), key=_lower, default=None)
        for tier, tables in TABLES.items()
    }
    free = [
        (tier, partition)
        for tier, table in DROPPED.items()
        for partition in stored[table][:1]
        if tier not in stuck and _is_free(tier, partition, oldest)
    ]
    for tier, partition in free:
        keep = retention.keep[tier]
        if keep is not None and partition.upper <= now - keep:
            return Drop(tier, partition)
    total = sum(partition.bytes for partitions in stored.values() for partition in partitions)
    if retention.max_bytes is not None and total > retention.max_bytes:
        for tier, partition in free:
            if partition.upper <= now - MIN_RAW:
                return Drop(tier, partition)
    return None


def overdue(stored: Stored, retention: Retention, now: datetime) -> timedelta:
    """For how long the oldest partition has been stored past its time."""
    late = [
        now - keep - partition.upper
        for tier, table in DROPPED.items()
        for partition in stored[table][:1]
        if (keep := retention.keep[tier]) is not None
    ]
    return max([timedelta(0), *late])


def _lower(partition: Partition) -> datetime:
    return partition.lower


def _is_free(tier: str, partition: Partition, oldest: Mapping[str, Partition | None]) -> bool:
    """Whether no finer tier still has what the partition is made of."""
    finer = list(TABLES)[: list(TABLES).index(tier)]
    return all(one is None or one.lower >= partition.upper for one in map(oldest.get, finer))


async def retain(pool: Pool, now: datetime, progress: Progress) -> timedelta:
    """The job: drops what need not be kept; for how long the oldest that had to stay is overdue."""
    retention = await read_retention(pool)
    stuck: set[str] = set()
    dropped = 0
    while True:
        progress(f"partitions dropped: {dropped}")
        stored = {
            table: await list_partitions(pool, table)
            for tables in TABLES.values()
            for table in tables
        }
        found = next_drop(stored, retention, now, stuck)
        if found is None:
            return overdue(stored, retention, now)
        if await _drop(pool, found):
            dropped += 1
        else:
            stuck.add(found.tier)


async def _drop(pool: Pool, found: Drop) -> bool:
    """Drop it and raise the tier's floor. False when it must stay, or is used all the time."""
    partition = found.partition
    span = (partition.lower, partition.upper)
    if found.tier in IS_ROLLED_UP:
        async with pool.acquire() as connection, connection.transaction():
            await connection.execute("set local enable_seqscan = off")
            query = IS_ROLLED_UP[found.tier]
            if not await connection.fetchval(query, *span, timeout=CHECK_TIMEOUT_S):
                log.warning("not dropped: not rolled up yet", partition=partition.name)
                return False

    async def raise_floor(connection: Connection) -> bool:
        await connection.execute(RAISE_FLOOR, found.tier, partition.upper)
        return True

    if not await drop(pool, partition, raise_floor):
        log.warning("not dropped: in use at every try", partition=partition.name)
        return False
    log.info("dropped", partition=partition.name, bytes=partition.bytes)
    return True
