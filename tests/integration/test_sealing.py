"""Sealing on a real database: each sample in one place, whatever comes late or is killed."""

import asyncio
import math
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import asyncpg
import numpy as np
import pytest
from prometheus_client import REGISTRY

from engine.promql.blocks import Floats
from schemas.layouts import Series
from schemas.values import ABSENT, ABSENT_BITS, STALE, bits
from services.cells import from_stored
from services.clock import DAY_US, HOUR_US, instant, microseconds, now_us
from services.database import Pool, open_pool
from services.ingest import days, sealing
from services.ingest.batch import Layouts, Window, receive
from services.ingest.days import roll_up_days
from services.ingest.hours import unsealed
from services.ingest.jobs import OutOfTime, Progress
from services.ingest.sealing import seal
from services.ingest.store import Store
from services.sealed import Sealed
from tests.builders import delivery, sample_message
from tests.processes import eventually

WINDOW = Window(timedelta(days=366), timedelta(days=1))
DAY = now_us() // DAY_US * DAY_US - 3 * DAY_US
"""The start of a day that is over."""
STEP = 60_000_000
LATER = instant(DAY) + timedelta(days=2)

ROOMS = [Series("temperature", {"room": room}, "gauge") for room in ("a", "b")]

Cell = tuple[str, str, int]
"""Instance, room and instant."""


@pytest.fixture(params=["timescale", "plain"])
async def pool(request: pytest.FixtureRequest) -> AsyncIterator[Pool]:
    """Every test here runs on TimescaleDB and on plain PostgreSQL."""
    name = "database_url" if request.param == "timescale" else "plain_database_url"
    async with open_pool(request.getfixturevalue(name)) as opened:
        yield opened


def progress() -> Progress:
    return Progress(timedelta(minutes=10))


async def store(pool: Pool, *messages: object) -> int:
    """Write these in one batch; how many were duplicates."""
    layouts, bounds = Layouts(), WINDOW.bounds_us(now_us())
    batch = [receive(delivery(one), one, layouts, bounds) for one in messages]  # type: ignore[arg-type]
    return await Store(pool).write(batch)


async def head(pool: Pool) -> dict[Cell, int]:
    """Bits of the samples in `frames`."""
    rows = await pool.fetch(
        """select labels->>'instance', labels->>'room', at, value
           from frames f cross join unnest(values) with ordinality as v (value, position)
           join layout_series l using (layout_id, position) join series s on s.id = series_id"""
    )
    cells = from_stored(np.array([r[3] for r in rows]).view(np.uint64)).tolist()
    keys = [(r[0], r[1], microseconds(r[2])) for r in rows]
    found = dict(zip(keys, cells, strict=True))
    return {key: value for key, value in found.items() if value != ABSENT_BITS}


async def blocks(pool: Pool) -> dict[Cell, int]:
    """Bits of the samples in sealed blocks."""
    found: dict[Cell, int] = {}
    for row in await pool.fetch("select b.*, width from blocks b join layouts on id = layout_id"):
        block = Sealed(row["rows"], row["at"], row["data"], row["ends"])
        hour = unsealed(row["layout_id"], microseconds(row["start"]), block, row["width"])
        columns = await pool.fetch(
            """select labels->>'instance', labels->>'room'
               from layout_series join series on id = series_id where layout_id = $1
               order by position""",
            row["layout_id"],
        )
        for at, cells in zip(hour.at.tolist(), hour.values.view(np.uint64).tolist(), strict=True):
            assert hour.start_us < at <= hour.start_us + HOUR_US
            for (instance, room), cell in zip(columns, cells, strict=True):
                if cell != ABSENT_BITS:
                    found[instance, room, at] = cell
    return found


def walk(rows: int, seed: int = 1) -> Floats:
    """A counter that is reset now and then, and a gauge."""
    random_ = np.random.default_rng(seed)
    steps = random_.integers(0, 9, rows).cumsum().astype(np.float64)
    steps[rows // 2 :] -= steps[rows // 2]
    return np.stack([steps, random_.normal(20, 3, rows)], axis=1)


async def test_a_closed_hour_goes_into_a_block_to_the_bit_and_an_open_one_stays(
    pool: Pool,
) -> None:
    rows = [[1.5, ABSENT], [STALE, float("nan")], *walk(118).tolist()]
    await store(pool, sample_message(*rows, at_us=DAY + STEP, step_us=STEP))
    before = await head(pool)
    assert await seal(pool, instant(DAY) + timedelta(hours=2), progress()) == timedelta(0)
    sealed, left = await blocks(pool), await head(pool)
    assert {at for _, _, at in sealed} == {DAY + n * STEP for n in range(1, 61)}
    assert {at for _, _, at in left} == {DAY + n * STEP for n in range(61, 121)}
    assert sealed | left == before


async def test_an_hour_is_open_for_an_hour_after_its_end(pool: Pool) -> None:
    await store(pool, sample_message([1.0, 2.0], at_us=DAY + HOUR_US))
    closed = instant(DAY) + timedelta(hours=2)
    await seal(pool, closed - timedelta(microseconds=1), progress())
    assert await blocks(pool) == {}
    await seal(pool, closed, progress())
    assert len(await blocks(pool)) == 2


async def test_midnight_belongs_to_the_day_before(pool: Pool) -> None:
    rows = walk(3).tolist()
    await store(pool, sample_message(*rows, at_us=DAY - STEP, step_us=STEP))
    before = await head(pool)
    await seal(pool, LATER, progress())
    assert await head(pool) == {}
    assert await blocks(pool) == before
    starts = [row["start"] for row in await pool.fetch("select start from blocks order by 1")]
    assert starts == [instant(DAY - HOUR_US), instant(DAY)]


async def test_late_frames_have_their_hour_sealed_again(pool: Pool) -> None:
    at = DAY + STEP
    await store(pool, sample_message([1.0, ABSENT], [2.0, 3.0], at_us=at, step_us=STEP))
    await seal(pool, LATER, progress())
    late = sample_message([9.0, 5.0], at_us=at, seq=1)
    between = sample_message([7.0, 6.0], at_us=at + STEP // 2, seq=2)
    await store(pool, late, between)
    await seal(pool, LATER, progress())
    assert await head(pool) == {}
    assert await blocks(pool) == {
        ("host-1", "a", at): bits(1.0),
        ("host-1", "b", at): bits(5.0),
        ("host-1", "a", at + STEP // 2): bits(7.0),
        ("host-1", "b", at + STEP // 2): bits(6.0),
        ("host-1", "a", at + STEP): bits(2.0),
        ("host-1", "b", at + STEP): bits(3.0),
    }
    view = "select metric, labels->>'room', count, sum, first, last from rollup_5m order by 2"
    assert [tuple(row) for row in await pool.fetch(view)] == [
        ("temperature", "a", 3, 10.0, 1.0, 2.0),
        ("temperature", "b", 3, 14.0, 5.0, 3.0),
    ]


async def test_what_was_sealed_and_comes_again_is_a_duplicate(pool: Pool) -> None:
    messages = [
        sample_message(row, at_us=DAY + n * STEP, seq=n) for n, row in enumerate(walk(90).tolist())
    ]
    assert await store(pool, *messages) == 0
    before = await head(pool)
    await seal(pool, LATER, progress())
    assert await store(pool, *messages[10:]) == 80
    await seal(pool, LATER, progress())
    assert await head(pool) == {}
    assert await blocks(pool) == before
    agent = await pool.fetchrow("select messages, samples, duplicates, last_seq from agents")
    assert tuple(agent) == (90, 180, 80, 89)


async def test_a_late_message_that_is_half_sealed_is_no_duplicate(pool: Pool) -> None:
    await store(pool, sample_message([1.0, 2.0], at_us=DAY + STEP))
    await seal(pool, LATER, progress())
    both = sample_message([1.0, 2.0], [3.0, 4.0], at_us=DAY + STEP, step_us=STEP, seq=1)
    assert await store(pool, both) == 0


async def views(pool: Pool, name: str) -> list[tuple[object, ...]]:
    rows = await pool.fetch(
        f"""select at, labels->>'room', count, sum, min, max, first, last, increase
            from {name} where labels->>'instance' = 'host-1' order by 2, 1"""
    )
    return [tuple(row) for row in rows]


def expected(at: Sequence[int], values: Floats, bucket_us: int) -> list[tuple[object, ...]]:
    """What the views show of series without gaps, counted one sample after another."""
    found: list[tuple[object, ...]] = []
    for room, column in zip("ab", values.T.tolist(), strict=True):
        for end in sorted({-(-one // bucket_us) * bucket_us for one in at}):
            inside = [v for one, v in zip(at, column, strict=True) if end - bucket_us < one <= end]
            resets = sum(before for before, after in pairwise(inside) if after < before)
            found.append(
                (
                    instant(end),
                    room,
                    len(inside),
                    pytest.approx(sum(inside)),
                    min(inside),
                    max(inside),
                    inside[0],
                    inside[-1],
                    pytest.approx(inside[-1] - inside[0] + resets),
                )
            )
    return found


async def test_rollups_read_as_plain_sql(pool: Pool) -> None:
    values = walk(1440)
    at = [DAY + n * STEP for n in range(1, 1441)]
    await store(pool, sample_message(*values.tolist(), at_us=at[0], step_us=STEP))
    await seal(pool, LATER, progress())
    await roll_up_days(pool, LATER, progress())
    assert await views(pool, "rollup_5m") == expected(at, values, 300_000_000)
    assert await views(pool, "rollup_1h") == expected(at, values, HOUR_US)


async def test_numbers_that_overflow_keep_nobody_from_reading_rollups(pool: Pool) -> None:
    largest = 1.7976931348623157e308
    rows = [[-largest, largest], [largest, -largest], [largest, math.inf]]
    await store(pool, sample_message(*rows, at_us=DAY + STEP, series=ROOMS))
    await seal(pool, LATER, progress())
    await roll_up_days(pool, LATER, progress())
    for view in ("rollup_5m", "rollup_1h"):
        found = await pool.fetch(f"select increase from {view} order by labels->>'room'")
        assert [row["increase"] for row in found] == [math.inf, math.inf]


async def test_an_open_day_is_not_rolled_up_yet(pool: Pool) -> None:
    await store(pool, sample_message([1.0, 2.0], at_us=DAY + STEP))
    await seal(pool, LATER, progress())
    early = instant(DAY) + timedelta(hours=25, minutes=59)
    await roll_up_days(pool, early, progress())
    assert await views(pool, "rollup_1h") == []
    await roll_up_days(pool, early + timedelta(minutes=1), progress())
    assert len(await views(pool, "rollup_1h")) == 2
    assert await pool.fetchval("select count(*) from days_due") == 0


async def test_days_of_wide_layouts_are_computed_some_series_at_a_time(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    series = [Series("temperature", {"room": str(number)}, "gauge") for number in range(5)]
    rows = np.random.default_rng(1).normal(20, 3, (600, 5))
    rows[7, 3] = ABSENT
    await store(pool, sample_message(*rows, at_us=DAY + STEP, step_us=STEP, series=series))
    await seal(pool, LATER, progress())
    await roll_up_days(pool, LATER, progress())
    at_once = await stored_rollups(pool, "rollups_1h", "host-1")
    asked = []
    monkeypatch.setattr(days, "SERIES_AT_ONCE", 2)
    original = days._hours

    async def counted(connection: Any, whole: Any, first: int, last: int) -> bytearray:
        asked.append((first, last))
        return await original(connection, whole, first, last)

    monkeypatch.setattr(days, "_hours", counted)
    await pool.execute("insert into days_due select layout_id, start from rollups_1h")
    await roll_up_days(pool, LATER, progress())
    assert asked == [(0, 2), (2, 4), (4, 5)]
    assert await stored_rollups(pool, "rollups_1h", "host-1") == at_once != []


@pytest.mark.parametrize("seed", range(3))
async def test_a_replayed_day_leaves_what_a_host_that_was_never_away_leaves(
    pool: Pool, seed: int
) -> None:
    """Late, in any order, in part twice, with sealing and daily rollups at any time between."""
    choice = random.Random(seed)
    rows = walk(480, seed).tolist()
    step = 3 * STEP
    steady = [
        sample_message(row, at_us=DAY + n * step, seq=n, instance="steady")
        for n, row in enumerate(rows, 1)
    ]
    await store(pool, *steady)
    await seal(pool, LATER, progress())
    await roll_up_days(pool, LATER, progress())

    replay = [
        sample_message(row, at_us=DAY + n * step, seq=n, instance="replay")
        for n, row in enumerate(rows, 1)
    ]
    choice.shuffle(replay)
    replay += choice.sample(replay, 50)
    while replay:
        size = choice.randint(1, 150)
        await store(pool, *replay[:size])
        del replay[:size]
        if choice.random() < 0.7:
            await seal(pool, LATER, progress())
        if choice.random() < 0.4:
            await roll_up_days(pool, LATER, progress())
    await seal(pool, LATER, progress())
    await roll_up_days(pool, LATER, progress())

    for table in ("rollups_5m", "rollups_1h"):
        steady_rows = await stored_rollups(pool, table, "steady")
        assert len(steady_rows) == (24 if table == "rollups_5m" else 1)
        assert await stored_rollups(pool, table, "replay") == steady_rows
    assert await head(pool) == {}
    sealed = await blocks(pool)
    assert len(sealed) == 2 * 2 * len(rows)
    for (instance, room, at), value in sealed.items():
        assert sealed["steady", room, at] == value, instance
    samples = await pool.fetch("select instance, messages, samples from agents order by 1")
    assert [tuple(row) for row in samples] == [("replay", 480, 960), ("steady", 480, 960)]


async def stored_rollups(pool: Pool, table: str, instance: str) -> list[tuple[object, ...]]:
    rows = await pool.fetch(
        f"""select start, counts, array_send(sums), array_send(mins), array_send(maxs),
                   array_send(firsts), array_send(lasts), array_send(resets)
            from {table} join layouts on layouts.id = layout_id
            where source->>'instance' = $1 order by start""",
        instance,
    )
    return [tuple(row) for row in rows]


async def test_layouts_of_many_widths_and_batches_of_a_few_hours(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealing, "CELLS_PER_BATCH", 700)
    monkeypatch.setattr(sealing, "LAYOUTS_PER_PAGE", 3)
    messages = []
    for host in range(8):
        width = 1 + host % 4
        series = [Series("m", {"room": str(n)}) for n in range(width)]
        values = walk(150, host)[:, :1] * np.arange(1, width + 1)
        messages.append(
            sample_message(
                *values.tolist(),
                at_us=DAY + host,
                step_us=STEP,
                series=series,
                instance=f"host-{host}",
            )
        )
    await store(pool, *messages)
    before = await head(pool)
    await seal(pool, LATER, progress())
    assert await head(pool) == {}
    assert await blocks(pool) == before
    counts = await pool.fetchval("select sum(count) from rollup_5m")
    assert counts == len(before)


async def test_frames_that_come_while_sealing_are_not_lost(pool: Pool) -> None:
    rows = walk(240).tolist()
    messages = [
        sample_message(row, at_us=DAY + n * STEP, seq=n, instance=f"host-{host}")
        for n, row in enumerate(rows, 1)
        for host in range(3)
    ]
    random.Random(1).shuffle(messages)
    over = asyncio.Event()

    async def write() -> int:
        duplicates = 0
        for first in range(0, len(messages), 40):
            # Each is sent twice, as after a lost acknowledgement.
            duplicates += await store(pool, *messages[max(0, first - 40) : first + 40])
        over.set()
        return duplicates

    async def keep_sealing() -> None:
        while not over.is_set():
            await seal(pool, LATER, progress())

    duplicates, *_ = await asyncio.gather(write(), keep_sealing(), keep_sealing())
    await seal(pool, LATER, progress())
    assert await head(pool) == {}
    assert await blocks(pool) == {
        (one.source["instance"], room, DAY + one.seq * STEP): bits(rows[one.seq - 1][place])
        for one in messages
        for place, room in enumerate("ab")
    }
    assert duplicates == len(messages) - 40
    assert await pool.fetchval("select sum(messages) from agents") == len(messages)


async def test_a_frame_that_is_filled_while_it_is_sealed_is_sealed_filled(pool: Pool) -> None:
    at = DAY + STEP
    await store(pool, sample_message([1.0, ABSENT], at_us=at))
    async with pool.acquire() as connection:
        filling = connection.transaction()
        await filling.start()
        await connection.execute("update frames set values[2] = 2.0")
        sealed = asyncio.create_task(seal(pool, LATER, progress()))

        async def waits_or_is_done() -> bool:
            waiting = "select from pg_locks where locktype = 'transactionid' and not granted"
            return sealed.done() or bool(await pool.fetchval(f"select exists ({waiting})"))

        await eventually(waits_or_is_done)
        await filling.commit()
    await sealed
    assert await blocks(pool) == {
        ("host-1", "a", at): bits(1.0),
        ("host-1", "b", at): bits(2.0),
    }


async def test_a_day_that_is_computed_while_an_hour_of_it_is_sealed_is_complete(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store(pool, sample_message([1.0, 2.0], at_us=DAY + STEP))
    await seal(pool, LATER, progress())
    await store(pool, sample_message([3.0, 4.0], at_us=DAY + 2 * STEP, seq=1))
    written, go_on = asyncio.Event(), asyncio.Event()
    write = sealing._write

    async def write_and_wait(*arguments: Any) -> None:
        await write(*arguments)
        written.set()
        await go_on.wait()

    monkeypatch.setattr(sealing, "_write", write_and_wait)
    sealed = asyncio.create_task(seal(pool, LATER, progress()))
    await written.wait()
    computed = asyncio.create_task(roll_up_days(pool, LATER, progress()))

    async def waits_or_is_done() -> bool:
        waiting = "select from pg_locks where locktype = 'advisory' and not granted"
        return computed.done() or bool(await pool.fetchval(f"select exists ({waiting})"))

    await eventually(waits_or_is_done)
    go_on.set()
    await asyncio.gather(sealed, computed)
    await roll_up_days(pool, LATER, progress())
    assert [row[2] for row in await views(pool, "rollup_1h")] == [2, 2]


CHILD = """
import asyncio, sys
from datetime import datetime, timedelta
from services.database import open_pool
from services.ingest.days import roll_up_days
from services.ingest.jobs import Progress
from services.ingest.sealing import seal

async def main():
    async with open_pool(sys.argv[1]) as pool:
        for job in (seal, roll_up_days):
            now = datetime.fromisoformat(sys.argv[2])
            await job(pool, now, Progress(timedelta(minutes=1)))

asyncio.run(main())
"""


async def killed_at(failpoint: str, url: str, now: datetime) -> None:
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        CHILD,
        url,
        now.isoformat(),
        env={**os.environ, "VERVET_FAILPOINT": failpoint},
    )
    assert await asyncio.wait_for(child.wait(), 60) == -signal.SIGKILL


async def test_killed_before_its_commit_sealing_has_changed_nothing(database_url: str) -> None:
    async with open_pool(database_url) as pool:
        await store(pool, sample_message(*walk(90).tolist(), at_us=DAY + STEP, step_us=STEP))
        before = await head(pool)
        await killed_at("sealing.before_commit", database_url, LATER)
        assert await head(pool) == before
        assert await blocks(pool) == {}
        await seal(pool, LATER, progress())
        assert await blocks(pool) == before


async def test_killed_after_its_commit_sealing_has_done_it_once(database_url: str) -> None:
    async with open_pool(database_url) as pool:
        await store(pool, sample_message(*walk(60).tolist(), at_us=DAY + STEP, step_us=STEP))
        before = await head(pool)
        await killed_at("sealing.after_commit", database_url, LATER)
        assert await head(pool) == {}
        assert await blocks(pool) == before
        await seal(pool, LATER, progress())
        assert await blocks(pool) == before


async def test_killed_before_its_commit_a_day_is_still_due(database_url: str) -> None:
    async with open_pool(database_url) as pool:
        await store(pool, sample_message(*walk(60).tolist(), at_us=DAY + STEP, step_us=STEP))
        await killed_at("days.before_commit", database_url, LATER)
        assert await views(pool, "rollup_1h") == []
        await roll_up_days(pool, LATER, progress())
        assert len(await views(pool, "rollup_1h")) == 2


async def test_out_of_time_it_keeps_what_it_sealed_and_goes_on_later(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealing, "CELLS_PER_BATCH", 1)
    await store(pool, sample_message(*walk(150).tolist(), at_us=DAY + STEP, step_us=STEP))
    before = await head(pool)

    class Short(Progress):
        def __call__(self, text: str, lag: timedelta | None = None) -> None:
            super().__call__(text, lag)
            if text.startswith(f"{instant(DAY):%Y-%m-%d}: 1 hours"):
                raise OutOfTime

    short = Short(timedelta(minutes=1))
    with pytest.raises(OutOfTime):
        await seal(pool, LATER, short)
    assert short.lag == LATER - instant(DAY + HOUR_US)
    assert len(await blocks(pool)) == 120
    assert await blocks(pool) | await head(pool) == before
    await seal(pool, LATER, progress())
    assert await blocks(pool) == before


async def test_blocks_that_late_frames_open_again_count_in_what_a_batch_takes(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store(pool, sample_message(*walk(180).tolist(), at_us=DAY + STEP, step_us=STEP))
    await seal(pool, LATER, progress())
    late = [[1.0, 2.0]] * 3
    await store(pool, sample_message(*late, at_us=DAY + 1, step_us=HOUR_US, seq=1))
    monkeypatch.setattr(sealing, "CELLS_PER_HOUR", 0)
    monkeypatch.setattr(sealing, "CELLS_PER_BATCH", 2 * 2 * 61 - 1)
    shown: list[str] = []

    class Recording(Progress):
        def __call__(self, text: str, lag: timedelta | None = None) -> None:
            shown.append(text)

    await seal(pool, LATER, Recording(timedelta(minutes=1)))
    assert [text.split(": ")[-1].split()[0] for text in shown] == ["0", "1", "2", "3"]
    assert len(await blocks(pool)) == 2 * 183


async def test_what_comes_after_its_history_was_dropped_is_dropped_and_counted(pool: Pool) -> None:
    values = walk(1440)
    at = [DAY + n * STEP for n in range(1, 1441)]
    await store(pool, sample_message(*values.tolist(), at_us=at[0], step_us=STEP))
    await seal(pool, LATER, progress())
    await roll_up_days(pool, LATER, progress())
    rollups = [await views(pool, "rollup_5m"), await views(pool, "rollup_1h")]
    await pool.execute("delete from blocks")
    await pool.execute("update retention set floor = $1 where tier = 'raw'", instant(DAY + DAY_US))
    late = [[1.0, ABSENT], [2.0, 3.0]]
    await store(pool, sample_message(*late, at_us=DAY + 1, step_us=DAY_US, seq=1))
    before = REGISTRY.get_sample_value("vervet_storage_expired_samples_total") or 0.0
    await seal(pool, LATER + timedelta(days=1), progress())
    await roll_up_days(pool, LATER + timedelta(days=1), progress())
    expired = REGISTRY.get_sample_value("vervet_storage_expired_samples_total") or 0.0
    assert expired - before == 1
    assert {at for _, _, at in await blocks(pool)} == {DAY + DAY_US + 1}
    assert await head(pool) == {}
    assert (await views(pool, "rollup_5m"))[:288] == rollups[0][:288]
    assert (await views(pool, "rollup_1h"))[:24] == rollups[1][:24]


async def test_history_is_not_dropped_while_an_hour_is_sealed(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store(pool, sample_message([1.0, 2.0], at_us=DAY + STEP))
    write = sealing._write
    refused: list[BaseException] = []

    async def raise_floor_and_write(*arguments: Any) -> None:
        try:
            async with pool.acquire() as connection, connection.transaction():
                await connection.execute("set local lock_timeout = '50ms'")
                await connection.execute("update retention set floor = now() where tier = 'raw'")
        except asyncpg.LockNotAvailableError as error:
            refused.append(error)
        await write(*arguments)

    monkeypatch.setattr(sealing, "_write", raise_floor_and_write)
    await seal(pool, LATER, progress())
    assert len(refused) == 1
    assert len(await blocks(pool)) == 2


async def test_a_damaged_block_holds_up_no_other_and_its_frames_stay(pool: Pool) -> None:
    await store(pool, sample_message(*walk(150).tolist(), at_us=DAY + STEP, step_us=STEP))
    await seal(pool, LATER, progress())
    sound = await pool.fetchval("select data from blocks where start = $1", instant(DAY))
    await pool.execute("update blocks set data = 'x' where start = $1", instant(DAY))
    late = sample_message(*walk(150).tolist(), at_us=DAY + STEP // 2, step_us=STEP, seq=1)
    await store(pool, late)
    assert await seal(pool, LATER, progress()) == LATER - instant(DAY)
    assert {at // HOUR_US for _, _, at in await head(pool)} == {DAY // HOUR_US}
    await pool.execute("update blocks set data = $2 where start = $1", instant(DAY), sound)
    assert await seal(pool, LATER, progress()) == timedelta(0)
    assert await head(pool) == {}
