"""Partitions of the tables of samples: dropped whole, without holding anyone up for long."""

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import NamedTuple

from services.database import Connection, Pool
from services.ingest.exclusive import exclusively
from services.ingest.jobs import Progress

HEAD_AGE = timedelta(days=2)
"""Partitions of the head older than this are dropped when they are empty."""

EMPTY_BYTES = 1 << 20
"""Above this a partition is not looked through while its table is locked: vacuum comes first."""

VACUUM_TIMEOUT_S = 600.0


class Partition(NamedTuple):
    """A partition or chunk; it holds rows with lower <= instant < upper. name: quoted for SQL."""

    parent: str
    name: str
    lower: datetime
    upper: datetime
    bytes: int


async def list_partitions(pool: Pool, parent: str) -> list[Partition]:
    """All partitions of a table, oldest first."""
    rows = await pool.fetch("select * from list_partitions($1) order by lower", parent)
    return [Partition(parent, *row) for row in rows]


async def drop(
    pool: Pool, partition: Partition, prepare: Callable[[Connection], Awaitable[bool]]
) -> bool:
    """Drop it, in one transaction with what `prepare` does, unless that says False.

    False also when others used its table at every try.
    """

    async def work(connection: Connection) -> bool:
        if not await prepare(connection):
            return False
        # The table first, as everyone who reads or writes it: else they deadlock over its chunk.
        await connection.execute(f"lock table only {partition.parent} in access exclusive mode")
        await connection.execute("select drop_partition($1, $2)", partition.parent, partition.lower)
        return True

    return await exclusively(pool, work)


async def drop_empty_head(pool: Pool, now: datetime, progress: Progress) -> timedelta:
    """The job that drops the head's old partitions, once what was in them is sealed."""
    dropped = 0
    for partition in await list_partitions(pool, "frames"):
        progress(f"empty partitions dropped: {dropped}")
        if partition.upper <= now - HEAD_AGE and await _drop_if_empty(pool, partition):
            dropped += 1
    progress.text = f"empty partitions dropped: {dropped}"
    return timedelta(0)


async def _drop_if_empty(pool: Pool, partition: Partition) -> bool:
    size = f"pg_relation_size('{partition.name}')"
    empty = f"""select case when {size} <= {EMPTY_BYTES}
                       then not exists (select from {partition.name}) else false end"""
    if await pool.fetchval(f"select {size} > {EMPTY_BYTES}"):  # what was deleted, as a rule
        await pool.execute(f"vacuum {partition.name}", timeout=VACUUM_TIMEOUT_S)
    if not await pool.fetchval(empty):
        return False

    async def is_still_empty(connection: Connection) -> bool:
        # Late rows go in before this, or after the drop: then their partition is made anew.
        await connection.execute(f"lock table only {partition.parent} in access exclusive mode")
        return bool(await connection.fetchval(empty))

    return await drop(pool, partition, is_still_empty)
