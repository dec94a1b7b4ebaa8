"""Sealing: closed hours go from `frames` into `blocks`, with their rollups, layout by layout.

A transaction deletes the frames of some hours and reads what it deletes, merges it with blocks
that these hours have already, and writes blocks and rollups of 5 minutes. So a reader sees an hour
either way, once, and a crash leaves it as it was. Late frames lie in `frames` with an old instant:
that is what has their hour sealed again. docs/adr/0008-history.md
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import numpy as np
import structlog
from prometheus_client import Counter

from schemas.errors import Invalid
from services import sealed
from services.clock import DAY_US, EPOCH, HOUR_US, instant, microseconds
from services.database import Connection, Pool
from services.failpoints import failpoint
from services.ingest.hours import (
    Hour,
    Key,
    day_of,
    decode_frames,
    encode_blocks,
    encode_rollups,
    merged,
    unsealed,
)
from services.ingest.jobs import Progress
from services.ingest.rollups import Rollup, of_hours
from services.sealed import Sealed

log = structlog.get_logger("vervet.sealing")

SEALED = Counter("vervet_storage_sealed_samples_total", "Samples moved into sealed blocks")
EXPIRED = Counter(
    "vervet_storage_expired_samples_total",
    "Samples that came after the history of their time had been dropped, and were dropped too",
)

SEAL_AFTER = timedelta(hours=1)
"""How long after its end an hour is closed. What comes later has the hour sealed again."""

CELLS_PER_BATCH = 500_000
"""Cells of one transaction: about 35 MB while they are encoded, and a tenth of a second. An hour
that has more is a transaction of its own."""

CELLS_PER_HOUR = 5_000
"""What an hour costs besides its cells, in cells; it bounds how many narrow ones go together."""

LAYOUTS_PER_PAGE = 1_000
"""Layouts whose hours are looked for at once; each look passes what was deleted since a vacuum."""

HISTORY_LOCK = 0x5645_5256_4853
"""Advisory lock key of a transaction that changes sealed history: one at a time, so that two can't
merge into the same block or mark the same day."""

# What to do is known: walk the primary key, layout by layout. A plan made from statistics, which a
# new partition lacks, may read all of it; and rows would be locked in another order than ingest
# locks them, which deadlocks.
PLAN = """
select set_config(name, value, true) from (values
    ('plan_cache_mode', 'force_custom_plan'), ('enable_seqscan', 'off'),
    ('enable_bitmapscan', 'off'), ('enable_hashjoin', 'off'), ('enable_mergejoin', 'off'),
    ('enable_material', 'off')
) as setting (name, value)
"""

# The days of partitions that hold anything, be it deleted and not vacuumed: to look whether a row
# is left would mean to walk past all that are not.
DAYS = """
select lower from list_partitions('frames') where pg_relation_size(name::regclass) > 0
order by lower
"""

PAGE = "select id, width from layouts where id > $1 order by id limit $2"

# The hours of a day's partition that have rows before an instant, by layout: each is found by one
# look at the index, after the end of the one before.
DUE = """
with recursive due (layout_id, width, ends) as (
    select id, width, next.ends from unnest($1::int[], $2::int[]) as page (id, width)
    cross join lateral (
        select date_bin('1 hour', at - interval '1 us', $5) + interval '1 hour' as ends
        from frames f where f.layout_id = page.id and f.at >= $3 and f.at < $4
        order by f.at limit 1
    ) next
    union all
    select layout_id, width, next.ends from due cross join lateral (
        select date_bin('1 hour', at - interval '1 us', $5) + interval '1 hour' as ends
        from frames f where f.layout_id = due.layout_id and f.at > due.ends
                        and f.at >= $3 and f.at < $4
        order by f.at limit 1
    ) next
)
select width, layout_id, ends - interval '1 hour' as start, (
    select count(*) from frames f
    where f.layout_id = due.layout_id and f.at > due.ends - interval '1 hour'
      and f.at <= due.ends and f.at >= $3 and f.at < $4
) + coalesce((
    select b.rows from blocks b
    where b.layout_id = due.layout_id and b.start = due.ends - interval '1 hour'
      and b.start >= $3 - interval '1 hour' and b.start < $4
), 0) as rows
from due
"""

TAKE_FRAMES = """
delete from frames f using unnest($1::int[], $2::timestamptz[]) as hour (layout_id, start)
where f.layout_id = hour.layout_id
  and f.at > hour.start and f.at <= hour.start + interval '1 hour'
  and f.at > $3 and f.at <= $4
returning f.layout_id, f.at, f.values
"""

BLOCKS = """
select b.layout_id, b.start, b.rows, b.at, b.data, b.ends
from unnest($1::int[], $2::timestamptz[]) as hour (layout_id, start)
join blocks b on b.layout_id = hour.layout_id and b.start = hour.start
where b.start >= $3 and b.start <= $4
"""

DELETE_HOURS = """
delete from {table} h using unnest($1::int[], $2::timestamptz[]) as hour (layout_id, start)
where h.layout_id = hour.layout_id and h.start = hour.start and h.start >= $3 and h.start <= $4
"""

BLOCK_COLUMNS = ("layout_id", "start", "rows", "at", "data", "ends")
"""Those that are written; the version comes of itself."""

MARK_DAYS = """
insert into days_due (layout_id, start) select * from unnest($1::int[], $2::timestamptz[])
on conflict do nothing
"""


class Due(NamedTuple):
    """A layout's hour that has frames to seal; rows: of them, and of the block that it has."""

    width: int
    layout_id: int
    start_us: int
    rows: int

    @property
    def key(self) -> Key:
        return self.layout_id, self.start_us


class Unsealable(Exception):
    """An hour that cannot be sealed; `key` says which."""

    def __init__(self, key: Key, reason: str) -> None:
        super().__init__(reason)
        self.key = key


class Encoded(NamedTuple):
    """What a batch becomes. replaced: of `written`, those that had a block before."""

    blocks: bytes
    rollups: bytes
    written: list[Key]
    replaced: list[Key]
    samples: int
    expired: int


async def seal(pool: Pool, now: datetime, progress: Progress) -> timedelta:
    """The job: seals all closed hours that have frames; the age of the oldest that it could not."""
    horizon_us = microseconds(now - SEAL_AFTER) // HOUR_US * HOUR_US
    left: dict[Key, str] = {}
    hours = samples = 0

    def age(starts: Iterable[int]) -> timedelta:
        return max((now - instant(start_us) for start_us in starts), default=timedelta(0))

    for day_us in [microseconds(day) for (day,) in await pool.fetch(DAYS)]:
        async for batch in _batches(pool, day_us, min(day_us + DAY_US, horizon_us + 1)):
            # Of what is left the batch is not the oldest, but nearly: days are in order.
            lag = age([start_us for _, start_us in left] + [one.start_us for one in batch])
            progress(f"{instant(day_us):%Y-%m-%d}: {hours} hours, {samples} samples sealed", lag)
            hours += len(batch)
            samples += await _seal_all(pool, batch, left)
    progress(f"{hours} hours, {samples} samples sealed")
    for key, reason in left.items():
        log.error("cannot be sealed", layout_id=key[0], start=str(instant(key[1])), reason=reason)
    return age(start_us for _, start_us in left)


async def _batches(pool: Pool, from_us: int, until_us: int) -> AsyncIterator[list[Due]]:
    """Hours that have frames in from_us <= at < until_us, as many as one transaction can take."""
    last = 0
    while until_us > from_us:
        async with pool.acquire() as connection, connection.transaction(readonly=True):
            await connection.execute(PLAN)
            page = await connection.fetch(PAGE, last, LAYOUTS_PER_PAGE)
            if not page:
                return
            ids, widths = [row[0] for row in page], [row[1] for row in page]
            rows = await connection.fetch(
                DUE, ids, widths, instant(from_us), instant(until_us), EPOCH
            )
        # In the order in which ingest locks rows.
        for batch in _cut(sorted(Due(r[0], r[1], microseconds(r[2]), r[3]) for r in rows)):
            yield batch
        last = ids[-1]


def _cut(due: Iterable[Due]) -> Iterator[list[Due]]:
    """Batches of at most CELLS_PER_BATCH cells, but of one hour at least."""
    batch: list[Due] = []
    cells = 0
    for one in due:
        added = CELLS_PER_HOUR + one.rows * one.width
        if batch and cells + added > CELLS_PER_BATCH:
            yield batch
            batch, cells = [], 0
        batch.append(one)
        cells += added
    if batch:
        yield batch


async def _seal_all(pool: Pool, batch: Sequence[Due], left: dict[Key, str]) -> int:
    """Seal a batch but for hours that cannot be, which are added to `left`; samples sealed."""
    while batch:
        try:
            return await _seal(pool, batch)
        except Unsealable as error:
            left[error.key] = str(error)
            batch = [one for one in batch if one.key != error.key]
    return 0


async def _seal(pool: Pool, batch: Sequence[Due]) -> int:
    """Seal a batch in one transaction; samples sealed. Raises Unsealable for one hour of it."""
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute(PLAN)
        floor_us = await lock_history(connection, "raw")
        frames = await _take_frames(connection, batch)
        blocks = await _blocks(connection, batch)
        widths = {one.layout_id: one.width for one in batch}
        encoded = await asyncio.to_thread(_encoded, frames, blocks, widths, floor_us)
        await _write(connection, encoded)
        failpoint("sealing.before_commit")
    failpoint("sealing.after_commit")
    SEALED.inc(encoded.samples)
    EXPIRED.inc(encoded.expired)
    return encoded.samples


async def lock_history(connection: Connection, tier: str) -> int:
    """Be the one who changes history until the transaction ends; what is older than the result, µs,
    was dropped. Retention, which raises that bound as it drops, waits meanwhile."""
    await connection.execute("select pg_advisory_xact_lock($1)", HISTORY_LOCK)
    floor = await connection.fetchval(
        "select greatest(floor, $2) from retention where tier = $1 for share", tier, EPOCH
    )
    return microseconds(floor)


async def ensure_partitions(connection: Connection, table: str, keys: Sequence[Key]) -> None:
    """Make the partitions that rows with these keys go to."""
    for day_us in sorted({day_of(start_us) for _, start_us in keys}):
        await connection.execute("select ensure_partition($1, $2)", table, instant(day_us))


def _arguments(keys: Sequence[Key]) -> tuple[list[int], list[datetime], datetime, datetime]:
    """The keys, and their span: constants by which partitions are left out of a plan."""
    starts = [instant(start_us) for _, start_us in keys]
    return [layout_id for layout_id, _ in keys], starts, min(starts), max(starts)


async def _take_frames(connection: Connection, batch: Sequence[Due]) -> bytearray:
    layouts, starts, first, last = _arguments([one.key for one in batch])
    data = bytearray()

    async def keep(chunk: bytes) -> None:
        data.extend(chunk)

    await connection.copy_from_query(
        TAKE_FRAMES, layouts, starts, first, last + timedelta(hours=1), output=keep, format="binary"
    )
    return data


async def _blocks(connection: Connection, batch: Sequence[Due]) -> dict[Key, Sealed]:
    rows = await connection.fetch(BLOCKS, *_arguments([one.key for one in batch]))
    return {(row[0], microseconds(row[1])): Sealed(*row[2:]) for row in rows}


async def _write(connection: Connection, encoded: Encoded) -> None:
    if not encoded.written:
        return
    if encoded.replaced:
        for table in ("blocks", "rollups_5m"):
            await connection.execute(
                DELETE_HOURS.format(table=table), *_arguments(encoded.replaced)
            )
    for table, columns, rows in (
        ("blocks", BLOCK_COLUMNS, encoded.blocks),
        ("rollups_5m", None, encoded.rollups),
    ):
        await ensure_partitions(connection, table, encoded.written)
        source: Any = memoryview(rows)  # bytes would be taken for a path
        await connection.copy_to_table(table, columns=columns, source=source, format="binary")
    days = sorted({(layout_id, day_of(start_us)) for layout_id, start_us in encoded.written})
    await connection.execute(MARK_DAYS, *_arguments(days)[:2])


def _encoded(
    frames: bytearray, blocks: Mapping[Key, Sealed], widths: Mapping[int, int], floor_us: int
) -> Encoded:
    """Blocks and rollups of the hours that these frames are of. Runs in a thread."""
    written: list[tuple[Key, Sealed]] = []
    by_width: defaultdict[int, list[Hour]] = defaultdict(list)
    samples = expired = 0
    for hour in decode_frames(frames, widths):
        if hour.start_us < floor_us:
            expired += hour.samples
            continue
        samples += hour.samples
        whole = _with_block(hour, blocks.get(hour.key))
        if whole is None:
            continue
        written.append((whole.key, _sealed(whole)))
        by_width[whole.values.shape[1]].append(whole)
    rollups = encode_rollups(
        ([hour.key for hour in hours], _rollup(hours)) for hours in by_width.values()
    )
    keys = [key for key, _ in written]
    replaced = [key for key in keys if key in blocks]
    return Encoded(encode_blocks(written), rollups, keys, replaced, samples, expired)


def _with_block(hour: Hour, block: Sealed | None) -> Hour | None:
    """The whole hour; None where the frames add nothing to its block."""
    if block is None:
        return hour
    try:
        before = unsealed(*hour.key, block, hour.values.shape[1])
    except Invalid as error:
        raise Unsealable(hour.key, str(error)) from error
    whole = merged(before, hour)
    return None if whole is before else whole


def _sealed(hour: Hour) -> Sealed:
    try:
        return sealed.seal(hour.at, hour.values)
    except ValueError as error:  # more rows than a block takes
        raise Unsealable(hour.key, str(error)) from error


def _rollup(hours: Sequence[Hour]) -> Rollup:
    """Rollups of hours of one width."""
    return of_hours(
        np.concatenate([hour.at for hour in hours]),
        np.concatenate([hour.values for hour in hours]),
        [len(hour.at) for hour in hours],
        [hour.start_us for hour in hours],
    )
