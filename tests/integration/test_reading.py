"""Reading what is stored: head and sealed history as one, by any matchers, bounded, cancellable."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from engine.promql import Block, Matcher, MatchOp, QueryError, matches, parse
from engine.promql.blocks import Labels, distinct_blocks
from engine.promql.nodes import Selector
from schemas.errors import Invalid
from schemas.layouts import Series
from schemas.migrations import migrations
from schemas.samples import SampleMessage
from schemas.values import ABSENT, ABSENT_BITS, STALE
from services import sealed
from services.api import labels
from services.api.store import pipeline
from services.clock import instant, now_us, rfc3339
from services.database import Pool, open_pool
from services.frames import PLANS, Limits, Reader
from services.ingest.batch import Layouts, Window, receive
from services.ingest.days import roll_up_days
from services.ingest.jobs import Progress
from services.ingest.sealing import seal
from services.ingest.store import Store
from services.sample_reading import SAMPLES
from tests.builders import GAUGE, delivery, sample_message
from tests.processes import eventually
from tests.reading import read

HOUR_US = 3_600_000_000
MINUTE_US = 60_000_000
DAY_US = 24 * HOUR_US
T0 = now_us() // HOUR_US * HOUR_US - 6 * HOUR_US
WINDOW = Window(timedelta(days=30), timedelta(days=1))
EVERYTHING = [Matcher("__name__", MatchOp.REGEX, ".+")]


@pytest.fixture
def pool(pool_of_either: Pool) -> Pool:
    """Every test that takes it runs on TimescaleDB and on plain PostgreSQL."""
    return pool_of_either


@pytest.fixture
async def any_pool(database_url: str) -> AsyncIterator[Pool]:
    async with open_pool(database_url) as opened:
        yield opened


async def store(pool: Pool, *messages: SampleMessage) -> None:
    layouts, bounds = Layouts(), WINDOW.bounds_us(now_us())
    batch = [receive(delivery(one), one, layouts, bounds) for one in messages]
    await Store(pool).write(batch)


async def seal_until(pool: Pool, end_us: int) -> None:
    """Seals the hours that ended up to then."""
    await seal(
        pool, instant(end_us) + timedelta(hours=1, seconds=1), Progress(timedelta(minutes=1))
    )


def selector(text: str) -> tuple[Matcher, ...]:
    tree = parse(text).tree
    assert isinstance(tree, Selector)
    return tree.matchers


def samples(blocks: Sequence[Block]) -> dict[frozenset[tuple[str, str]], list[tuple[int, int]]]:
    """By series its (instant, bits), absent cells left out."""
    found = {}
    for block in distinct_blocks(blocks):
        bits = block.values.view(np.uint64)
        for column, identity in enumerate(block.columns.identities()):
            rows = np.flatnonzero(bits[:, column] != ABSENT_BITS)
            found[identity] = [(int(block.at[row]), int(bits[row, column])) for row in rows]
    return found


def values_of(block: Block) -> list[list[float]]:
    return [[float(value) for value in row] for row in block.values]


async def test_an_answer_is_the_same_whatever_is_sealed(pool: Pool) -> None:
    width = 2 * sealed.GROUP + 5
    series = [Series(f"m{n % 7}", {"n": str(n)}) for n in range(width)]
    random = np.random.default_rng(3)
    rows = np.round(random.normal(1e4, 50, (200, width)).cumsum(axis=0), 2)
    rows[random.random(rows.shape) < 0.01] = ABSENT
    rows[random.random(rows.shape) < 0.01] = STALE
    first_us = T0 + 7_000_000
    await store(
        pool, sample_message(*rows.tolist(), at_us=first_us, step_us=MINUTE_US, series=series)
    )
    ranges = [
        (T0 - HOUR_US, T0 + 9 * HOUR_US),
        (T0 + HOUR_US + 7_000_000, T0 + HOUR_US + 7_000_000 + 10 * MINUTE_US),
        (T0 + 2 * HOUR_US, T0 + 3 * HOUR_US),
        (T0 + 8 * HOUR_US, T0 + 9 * HOUR_US),
    ]
    selectors = [EVERYTHING, selector("m3"), selector(f'{{n=~"1|{width - 1}"}}')]
    head = [samples(await read(pool, one, *range_)) for one in selectors for range_ in ranges]
    assert sum(len(one) for one in head) > 0
    for hours in (1, 2, 3, 4):
        await seal_until(pool, T0 + hours * HOUR_US)
        again = [samples(await read(pool, one, *range_)) for one in selectors for range_ in ranges]
        assert again == head
    assert await pool.fetchval("select count(*) from frames") == 0
    assert await pool.fetchval("select count(*) from blocks") == 4


async def test_layouts_that_tick_alike_are_read_together_where_one_ends_within_the_hour(
    any_pool: Pool,
) -> None:
    """Their instants are the same bytes once sealed, of more rows and of fewer."""
    hosts = {"whole": 60, "half": 30}
    messages = [
        sample_message(*[[float(n), 1.0] for n in range(rows)], at_us=T0 + MINUTE_US,
                       step_us=MINUTE_US, instance=host)
        for host, rows in hosts.items()
    ]  # fmt: skip
    await store(any_pool, *messages)
    await seal_until(any_pool, T0 + HOUR_US)
    found = samples(await read(any_pool, EVERYTHING, T0, T0 + HOUR_US))
    for host, rows in hosts.items():
        mine = [of for identity, of in found.items() if ("instance", host) in identity]
        expected = [T0 + n * MINUTE_US for n in range(1, rows + 1)]
        assert [[at for at, _ in one] for one in mine] == [expected] * 2


async def test_a_range_is_open_on_its_left_in_head_and_history(pool: Pool) -> None:
    await store(pool, sample_message(*[[float(n), 0.0] for n in range(4)], at_us=T0, step_us=60))
    for _ in range(2):
        (block,) = await read(pool, EVERYTHING, T0 + 60, T0 + 180)
        assert block.at.tolist() == [T0 + 120, T0 + 180]
        await seal_until(pool, T0 + HOUR_US)


async def test_where_head_and_block_hold_a_cell_the_block_wins(pool: Pool) -> None:
    rows = [[1.0, ABSENT], [2.0, 2.5]]
    await store(pool, sample_message(*rows, at_us=T0 + 60, step_us=60))
    await seal_until(pool, T0 + HOUR_US)
    late = [[9.0, 9.0], [9.0, 9.0], [3.0, 3.0]]
    layout_id = await pool.fetchval("select id from layouts")
    await pool.executemany(
        "insert into frames values ($1, $2, $3)",
        [(layout_id, instant(T0 + 60 * n), row) for n, row in enumerate(late, 1)],
    )
    (block,) = await read(pool, EVERYTHING, T0, T0 + HOUR_US)
    assert block.at.tolist() == [T0 + 60, T0 + 120, T0 + 180]
    assert values_of(block) == [[1.0, 9.0], [2.0, 2.5], [3.0, 3.0]]


async def test_a_reader_sees_all_of_an_hour_while_it_is_sealed(any_pool: Pool) -> None:
    hosts = range(20)
    await store(
        any_pool,
        *(
            sample_message(
                *[[float(n), 1.0] for n in range(60)],
                instance=f"host-{host}",
                at_us=T0 + 1,
                step_us=MINUTE_US,
            )
            for host in hosts
        ),
    )
    reader = Reader(any_pool)

    async def count() -> set[int]:
        async with reader.snapshot() as snapshot:
            blocks = await snapshot.read(EVERYTHING, T0, T0 + HOUR_US)
            return {len(block.at) for block in blocks} | {-len(blocks)}

    seen = [await count()]
    sealing = asyncio.ensure_future(seal_until(any_pool, T0 + HOUR_US))
    while not sealing.done():
        seen.append(await count())
    await sealing
    seen.append(await count())
    assert all(one == {60, -len(hosts)} for one in seen)


LAYOUTS = [
    ({"job": "node", "instance": "a"}, ["cpu", "mem", "cpu", "disk"]),
    ({"job": "node", "instance": "b"}, ["cpu", "mem", "cpu", "disk"]),
    ({"job": "node", "instance": "b", "site": "x"}, ["net", "net"]),
    ({"job": "db", "instance": "a", "mode": "primary"}, ["cpu", "up"]),
]
MODES = ("idle", "user", "", "steal")
SELECTORS = [
    "cpu",
    "cpu{}",
    'cpu{instance="a"}',
    'cpu{instance="a",job="db"}',
    'cpu{mode="idle"}',
    'cpu{mode="primary"}',
    'cpu{mode!="idle"}',
    'cpu{mode=""}',
    'cpu{mode=~"i.*|primary"}',
    'cpu{site=""}',
    '{site="x"}',
    '{site!="",job="node"}',
    '{mode="primary"}',
    '{mode="user"}',
    '{mode=~"us.*"}',
    '{instance=~"b|c"}',
    '{job="node",instance!="a"}',
    '{instance="a",instance="b"}',
    '{__name__=~"c.*|up"}',
    '{__name__!="cpu",job="node"}',
    '{__name__=~"c.*",__name__!~".*x"}',
    '{__name__="cpu",__name__="mem"}',
    '{nothing="here"}',
    "nothing",
    '{job=~".+"}',
    'mem{own="1"}',
]


async def stored_layouts(pool: Pool) -> list[Labels]:
    """Stores LAYOUTS; all label sets that this makes. A label of a source wins over a series'."""
    every: list[Labels] = []
    messages = []
    for number, (source, metrics) in enumerate(LAYOUTS):
        own = [{"mode": MODES[place], "own": str(place)} for place in range(len(metrics))]
        own = [{name: value for name, value in one.items() if value} for one in own]
        series = [Series(m, one) for m, one in zip(metrics, own, strict=True)]
        every += [{**one.labels, **source, "__name__": one.name} for one in series]
        messages.append(
            sample_message(
                [1.0] * len(series),
                at_us=T0 + 1,
                seq=number,
                series=series,
                job=source["job"],
                instance=source["instance"],
                labels=source,
            )
        )
    await store(pool, *messages)
    return every


async def test_any_matchers_select_the_series_that_they_match(pool: Pool) -> None:
    every = await stored_layouts(pool)
    reader = Reader(pool)
    for _ in range(2):  # read, then remembered
        for text in SELECTORS:
            async with reader.snapshot() as snapshot:
                blocks = await snapshot.read(selector(text), T0, T0 + 1)
            found = [labels for block in blocks for labels in block.labels]
            expected = [one for one in every if matches(selector(text), one)]
            assert sorted(map(sorted, (one.items() for one in found))) == sorted(
                map(sorted, (one.items() for one in expected))
            ), text


async def test_label_names_and_values_are_those_of_the_series_that_match(pool: Pool) -> None:
    every = await stored_layouts(pool)
    ever = (None, None)
    async with Reader(pool).snapshot() as snapshot:
        known = snapshot.connection, snapshot.catalogue
        for text in [*SELECTORS, None]:
            asked = () if text is None else selector(text)
            matching = [one for one in every if matches(asked, one)]
            names = {name for one in matching for name in one}
            assert await labels.names(*known, asked, ever) == names, text
            for name in ("__name__", "mode", "instance", "site", "none"):
                values = {one[name] for one in matching if name in one}
                assert await labels.values(*known, name, asked, ever) == values, (text, name)


async def test_series_are_those_of_layouts_with_samples_in_the_range(pool: Pool) -> None:
    await store(
        pool,
        sample_message([1.0, 2.0], instance="old", at_us=T0 + 1),
        sample_message([1.0, 2.0], instance="new", at_us=T0 + 3 * HOUR_US),
    )
    await seal_until(pool, T0 + HOUR_US)

    async def instances(start_us: int | None, end_us: int | None) -> set[str]:
        async with Reader(pool).snapshot() as snapshot:
            found = await labels.series(
                snapshot.connection, snapshot.catalogue, EVERYTHING, (start_us, end_us), 10
            )
        return {one["instance"] for one in found}

    assert await instances(None, None) == {"old", "new"}
    assert await instances(T0, T0 + HOUR_US) == {"old"}
    assert await instances(T0 + 2 * HOUR_US, None) == {"new"}
    assert await instances(None, T0 - HOUR_US) == set()


async def test_a_layout_has_one_columns_object_from_query_to_query(any_pool: Pool) -> None:
    await store(any_pool, sample_message([1.0, 2.0], at_us=T0 + 1))
    reader = Reader(any_pool)
    found = []
    for _ in range(2):
        async with reader.snapshot() as snapshot:
            (block,) = await snapshot.read(selector('temperature{room="a"}'), T0, T0 + 1)
            found.append(block.columns)
    assert found[0] is found[1]


async def test_history_that_is_remembered_is_what_is_stored(pool: Pool) -> None:
    series = [Series("m", {"n": str(n)}, "gauge") for n in range(40)]
    rows = [[1000.0 * row + n for n in range(40)] for row in range(24)]
    reader, texts = Reader(pool), ("m", 'm{n="0"}', 'm{n="1"}', 'm{n=~"3.*"}', 'm{n="39"}')
    ranges = [(0, HOUR_US), (0, 4 * HOUR_US), (HOUR_US, 2 * HOUR_US), (HOUR_US // 2, 3 * HOUR_US)]

    async def agrees() -> int:
        samples = 0
        for text, (start_us, end_us) in [(text, span) for text in texts for span in ranges] * 2:
            asked = selector(text), T0 + start_us, T0 + end_us
            async with reader.snapshot() as snapshot:
                found = await snapshot.read(*asked)
            for block, expected in zip(found, await read(pool, *asked), strict=True):
                assert block.at.tolist() == expected.at.tolist()
                assert block.values.tolist() == expected.values.tolist()
                samples += block.values.size
        return samples

    await store(pool, sample_message(*rows, at_us=T0 + 1, step_us=10 * MINUTE_US, series=series))
    before = await agrees()
    for hour in (1, 2, 4):
        await seal_until(pool, T0 + hour * HOUR_US)
        assert await agrees() == before
    for late in range(2):
        extra = [float(n) for n in range(40)]
        at_us = T0 + HOUR_US + late * MINUTE_US + 7
        await store(pool, sample_message(extra, at_us=at_us, seq=1 + late, series=series))
        with_head = await agrees()
        assert with_head > before
        await seal_until(pool, T0 + 4 * HOUR_US)
        assert await agrees() == with_head
        before = with_head
    await pool.execute("delete from blocks where start = $1", instant(T0 + HOUR_US))
    assert await agrees() < before


async def test_history_is_sent_once_while_its_hours_stay_as_they_are(any_pool: Pool) -> None:
    rows = [[1.0 * row, 2.0 * row] for row in range(8)]
    await store(any_pool, sample_message(*rows, at_us=T0 + 1))
    await seal_until(any_pool, T0 + HOUR_US)
    reader, asked = Reader(any_pool), (selector("temperature"), T0, T0 + HOUR_US)
    found, counted = [], []
    for _ in range(2):
        async with reader.snapshot() as snapshot:
            (block,) = await snapshot.read(*asked)
            found.append(block.values.tolist())
            counted.append(dict(snapshot.samples))
        await any_pool.execute("update blocks set data = 'none that could be read'")
    assert found[0] == found[1] == rows
    assert counted == [{"sealed": 16}] * 2
    with pytest.raises(Invalid):
        await read(any_pool, *asked)


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (Limits(series=1), "selects 2 series; at most 1"),
        (Limits(cells=5), "reads 6 samples; at most 5"),
    ],
)
@pytest.mark.parametrize("text", ["temperature", '{room=~"a|b"}'])
async def test_a_query_past_a_limit_is_refused(
    any_pool: Pool, text: str, limits: Limits, reason: str
) -> None:
    await store(any_pool, sample_message(*[[1.0, 2.0]] * 3, at_us=T0 + 1))
    for _ in range(2):
        with pytest.raises(QueryError, match=reason):
            async with Reader(any_pool).snapshot(limits) as snapshot:
                await snapshot.read(selector(text), T0, T0 + HOUR_US)
        await seal_until(any_pool, T0 + HOUR_US)


async def test_too_many_samples_are_refused_before_they_are_read(any_pool: Pool) -> None:
    await store(any_pool, sample_message([1.0, 2.0], at_us=T0 + 1))
    await seal_until(any_pool, T0 + HOUR_US)
    await any_pool.execute("update blocks set rows = 4000, data = 'none that could be read'")
    with pytest.raises(QueryError, match="reads 8,000 samples; at most 7,000"):
        async with Reader(any_pool).snapshot(Limits(cells=7_000)) as snapshot:
            await snapshot.read(EVERYTHING, T0, T0 + HOUR_US)


async def test_too_many_rollups_are_refused_before_they_are_read(any_pool: Pool) -> None:
    first_us = now_us() // DAY_US * DAY_US - 3 * DAY_US
    await store(any_pool, sample_message([1.0, 2.0], at_us=first_us + 1))
    await seal(any_pool, instant(now_us()), Progress(timedelta(minutes=1)))
    await any_pool.execute("update rollups_5m set lasts = '{}', counts = '{}'")
    await any_pool.execute(
        "update retention set floor = $1 where tier = 'raw'", instant(first_us + DAY_US)
    )
    with pytest.raises(QueryError, match="reads 24 samples; at most 23"):
        async with Reader(any_pool).snapshot(Limits(cells=23)) as snapshot:
            await snapshot.read(EVERYTHING, first_us, first_us + DAY_US)


async def test_a_cancelled_read_ends_on_the_server_too(any_pool: Pool) -> None:
    await store(any_pool, sample_message([1.0, 2.0], at_us=T0 + 1))
    waiting = """select count(*) from pg_stat_activity
                 where datname = current_database() and wait_event_type = 'Lock'"""

    async def reads_wait() -> bool:
        return bool(await any_pool.fetchval(waiting))

    async with any_pool.acquire() as other, other.transaction():
        await other.execute("lock table frames in access exclusive mode")
        reading = asyncio.ensure_future(read(any_pool, EVERYTHING, T0, T0 + HOUR_US))
        await eventually(reads_wait)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert not await reads_wait()
    assert len(await read(any_pool, EVERYTHING, T0, T0 + HOUR_US)) == 1


async def answer(pool: Pool, text: str, start_us: int, end_us: int) -> tuple[list[Any], list[str]]:
    """By series its values at steps of an hour; and what the reader is told of the answer."""
    query = parse(text)
    async with Reader(pool).snapshot() as snapshot:
        if await snapshot.lacks(min(one.start_us for one in query.selects(start_us, end_us))):
            query = query.over_rollups(on_grid=False)
        blocks = {one: await snapshot.read_select(one) for one in query.selects(start_us, end_us)}
    found = query.range(start_us, end_us, HOUR_US, blocks)
    return [
        (dict(labels), at.tolist(), values.tolist()) for labels, at, values in found.series()
    ], list(snapshot.notes)


async def test_where_samples_were_dropped_rollups_answer_and_say_so(pool: Pool) -> None:
    first_us = now_us() // DAY_US * DAY_US - 5 * DAY_US
    rows = [[float(n), float(n % 97)] for n in range(3 * 24 * 20)]
    step_us = 3 * MINUTE_US
    await store(pool, sample_message(*rows, at_us=first_us + 1, step_us=step_us))
    await seal(pool, instant(now_us()), Progress(timedelta(minutes=1)))
    await roll_up_days(pool, instant(now_us()), Progress(timedelta(minutes=1)))
    asked = [
        f"{name}_over_time(temperature[1h])"
        for name in ("sum", "min", "max", "count", "avg", "last", "first", "present")
    ]
    range_ = first_us + HOUR_US, first_us + 3 * DAY_US
    expected = [await answer(pool, text, *range_) for text in asked]
    assert not any(notes for _, notes in expected)
    increases = await answer(pool, 'increase(temperature{room="a"}[1h])', *range_)

    for tier, days in (("raw", 2), ("5m", 1)):
        floor_us = first_us + days * DAY_US
        table = "blocks" if tier == "raw" else "rollups_5m"
        await pool.execute(f"delete from {table} where start < $1", instant(floor_us))
        await pool.execute(
            "update retention set floor = $1 where tier = $2", instant(floor_us), tier
        )
    for text, (before, _) in zip(asked, expected, strict=True):
        after, notes = await answer(pool, text, *range_)
        assert [one[:2] for one in after] == [one[:2] for one in before], text
        for one, other in zip(after, before, strict=True):
            assert one[2] == pytest.approx(other[2], rel=1e-12), text
        assert notes == [
            f"answered from rollups of {name} before {rfc3339(first_us + days * DAY_US)}"
            for name, days in (("1h", 1), ("5m", 2))
        ]
    (one,), _ = await answer(pool, 'increase(temperature{room="a"}[1h])', *range_)
    assert one[1] == increases[0][0][1][1:], "nothing is known before the first bucket's end"
    assert one[2] == pytest.approx(increases[0][0][2][1:], rel=0.06)
    recent, notes = await answer(pool, asked[0], range_[1] - HOUR_US, range_[1])
    assert recent
    assert notes == []


async def test_windows_on_the_edges_of_buckets_are_answered_by_rollups_exactly(
    pool: Pool,
) -> None:
    first_us = now_us() // DAY_US * DAY_US - 2 * DAY_US
    step_us, half = 7 * 1_000_000, 12 * 60 * 10
    rows = [[float(n % 991) - 300, float(n)] for n in range(half)]
    moved = (Series("other", {}, "gauge"), *GAUGE)  # the same series in another layout, mid-bucket
    end_us = first_us + 1 + half * step_us
    await store(
        pool,
        sample_message(*rows, at_us=first_us + 1, step_us=step_us),
        sample_message(
            *[[0.0, *row] for row in rows], at_us=end_us, step_us=step_us, series=moved, seq=1
        ),
    )
    await seal(pool, instant(now_us()), Progress(timedelta(minutes=1)))
    late_us = first_us + 20 * HOUR_US + 30 * MINUTE_US
    await store(pool, sample_message([5000.0, 5.0], at_us=late_us, seq=2))

    start_us, stop_us = first_us + 2 * HOUR_US, first_us + 27 * HOUR_US
    for name in ("sum", "min", "max", "count", "avg", "last", "first", "present"):
        plain = parse(f"{name}_over_time(temperature[15m])")
        answers, samples_read = [], []
        for query in (plain, plain.over_rollups(on_grid=True)):
            async with Reader(pool).snapshot() as snapshot:
                selects = query.selects(start_us, stop_us)
                blocks = {one: await snapshot.read_select(one) for one in selects}
            found = query.range(start_us, stop_us, 5 * MINUTE_US, blocks)
            answers.append([(labels, at.tolist(), v.tolist()) for labels, at, v in found.series()])
            samples_read.append(snapshot.samples)
        assert not snapshot.notes
        assert samples_read[1]["rollups_5m"] > 0
        assert samples_read[1]["sealed"] < samples_read[0]["sealed"] / 2
        for before, after in zip(*answers, strict=True):
            assert after[:2] == before[:2], name
            assert after[2] == pytest.approx(before[2], rel=1e-9), name


async def test_a_reader_notices_what_is_dropped_between_two_queries(any_pool: Pool) -> None:
    first_us = now_us() // DAY_US * DAY_US - 3 * DAY_US
    await store(any_pool, sample_message(*[[1.0, 2.0]] * 9, at_us=first_us + 1))
    await seal(any_pool, instant(now_us()), Progress(timedelta(minutes=1)))
    reader = Reader(any_pool)

    async def read_day() -> tuple[int, dict[str, int]]:
        async with reader.snapshot(alone=True) as snapshot:
            (block,) = await snapshot.read(EVERYTHING, first_us, first_us + DAY_US)
        return len(block.at), dict(snapshot.samples)

    assert await read_day() == (9, {"sealed": 18})
    await any_pool.execute("delete from blocks")
    await any_pool.execute(
        "update retention set floor = $1 where tier = 'raw'", instant(first_us + DAY_US)
    )
    for _ in range(2):
        assert await read_day() == (12, {"rollups_5m": 24})


async def test_what_an_agent_said_last_counts_when_it_is_sealed(pool: Pool) -> None:
    own = tuple(
        Series(f"vervet_agent_{name}", {}, "counter")
        for name in ("samples_generated_total", "samples_dropped_total", "spool_samples")
    )
    rows = [[3.0 * n, 0.0, 2.0] for n in range(5)]
    first_us = now_us() // DAY_US * DAY_US - 3 * DAY_US
    await store(pool, sample_message(*rows, at_us=first_us + 1, step_us=MINUTE_US, series=own))
    before = await pipeline(pool)
    assert before["generated"] == 12 + before["stored"]
    await seal(pool, instant(now_us()), Progress(timedelta(minutes=1)))
    assert await pipeline(pool) == before
    await roll_up_days(pool, instant(now_us()), Progress(timedelta(minutes=1)))
    await pool.execute("delete from rollups_5m")
    assert await pipeline(pool) == before


async def test_each_layout_is_read_along_its_key(pool: Pool) -> None:
    for day in range(3):
        await store(pool, sample_message([1.0, 2.0], at_us=T0 - day * DAY_US, seq=day))
    await seal_until(pool, T0 - DAY_US + HOUR_US)
    types = ", ".join(["timestamptz"] * 2 + ["integer[]"] * 9 + ["bigint[]"])
    given = ", ".join(["'2026-01-01'", "'2027-01-01'"] + ["'{1}'"] * 10)
    async with pool.acquire() as connection:
        for name, value in PLANS.items():
            await connection.execute(f"set {name} = {value}")
        await connection.execute(f"prepare samples ({types}) as {SAMPLES}")
        plan = await connection.fetch(f"explain (costs off) execute samples ({given})")
    lines = [row[0].strip() for row in plan]
    conditions = [line for line in lines if line.startswith("Index Cond:")]
    whole = [line for line in lines if "Seq Scan" in line]
    assert whole == ["->  Seq Scan on retention", "->  Seq Scan on registered"]
    assert len(conditions) >= 2
    assert all("layout_id = wanted" in line for line in conditions), lines


async def test_layouts_of_an_older_version_are_found(any_pool: Pool) -> None:
    await stored_layouts(any_pool)
    registered = """
        select metric, layout_id, first, length, positions, type, unit, labels, names, hash
        from layout_shapes join shapes using (metric) where shapes.id = shape_id order by 1, 2"""
    before = await any_pool.fetch(registered)
    await any_pool.execute("truncate shapes, layout_shapes")
    (migration,) = [one for one in migrations() if one.number == 5]
    filling = migration.sql[migration.sql.index("create temporary table members") :]
    async with any_pool.acquire() as connection, connection.transaction():
        await connection.execute(filling)
    assert await any_pool.fetch(registered) == before
    assert any(row["positions"] for row in before)
