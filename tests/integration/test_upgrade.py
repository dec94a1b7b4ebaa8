"""A database of an earlier version, brought up to date, answers as it did."""

from collections.abc import Iterator
from datetime import timedelta

import asyncpg
import pytest

from engine.promql.matchers import Matcher, MatchOp
from schemas.migrations import migrations
from schemas.values import ABSENT, ABSENT_BITS, STALE, STALE_BITS
from services import database
from services.clock import instant, microseconds, now_us
from services.database import migrate, open_pool
from tests.reading import read
from tests.stack.session import Stack

FIRST_RELEASE = 3
"""Migrations of the version that kept every frame as it came."""

WITHOUT_VERSIONS = 7
"""Migrations up to blocks without a version."""


@pytest.fixture(params=["timescale", "plain"])
def url(request: pytest.FixtureRequest, stack: Stack) -> Iterator[str]:
    server = stack.database() if request.param == "timescale" else stack.plain_database()
    with server.empty_database() as empty:
        yield empty


async def test_frames_of_the_first_release_keep_their_cells(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = instant(now_us()) - timedelta(minutes=10)
    with monkeypatch.context() as before:
        before.setattr(database, "migrations", lambda: migrations()[:FIRST_RELEASE])
        await migrate(url)
    connection = await asyncpg.connect(url)
    await connection.execute(OLD_LAYOUT)
    await connection.execute("select ensure_partition($1::date)", at.date())
    await connection.execute("insert into frames values (1, $1, $2)", at, [1.5, ABSENT, STALE])
    await connection.close()
    await migrate(url)
    async with open_pool(url) as pool:
        named = Matcher("job", MatchOp.EQUAL, "node")
        (block,) = await read(pool, [named], 0, now_us())
        assert block.at.tolist() == [microseconds(at)]
        assert block.values.view("u8").tolist() == [[0x3FF8 << 48, ABSENT_BITS, STALE_BITS]]
        assert [row["value"] for row in await pool.fetch("select value from samples")] == [1.5]


async def test_blocks_of_before_get_versions_of_their_own(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as before:
        before.setattr(database, "migrations", lambda: migrations()[:WITHOUT_VERSIONS])
        await migrate(url)
    connection = await asyncpg.connect(url)
    for days in range(3):
        start = instant(now_us()) - timedelta(days=days)
        await connection.execute("select ensure_partition('blocks', $1)", start)
        await connection.execute("insert into blocks values (1, $1, 1, '', '', '{}')", start)
    await connection.close()
    await migrate(url)
    async with open_pool(url) as pool:
        assert await pool.fetchval("select count(distinct version) from blocks") == 3


OLD_LAYOUT = """
insert into series (hash, metric, labels, type, unit)
select n::text::bytea, 'm', jsonb_build_object('job', 'node', 'instance', 'a', 'n', n::text),
       'gauge', ''
from generate_series(1, 3) n;
insert into layouts (hash, source, width) values ('x', '{"job": "node", "instance": "a"}', 3);
insert into layout_series select 1, n, n from generate_series(1, 3) n;
"""
