"""`vervet jobs` and `vervet retention` on a real database, as an operator types them."""

import asyncio
import json
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from services.bus import Bus
from services.cli import main
from services.database import Pool, migrate
from services.embedded import embedded_postgres
from services.ingest.jobs import Job, Progress, State, next_job
from tests.api_rig import serving


class Shell:
    """Runs `vervet …`; `out` and `err` are what the last command wrote."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture
        self.out = self.err = ""

    async def run(self, *arguments: str) -> int:
        def command() -> int:
            with pytest.raises(SystemExit) as ended:
                main(arguments)
            return int(ended.value.code or 0)

        self._capture.readouterr()
        status = await asyncio.to_thread(command)
        self.out, self.err = self._capture.readouterr()
        return status

    def rows(self) -> list[list[str]]:
        """What a table shows, by cells."""
        return [line.split() for line in self.out.splitlines()]


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


@pytest.fixture
def url(either_database_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The database of all commands; every test here runs on TimescaleDB and plain PostgreSQL."""
    monkeypatch.setenv("VERVET_DATABASE_URL", either_database_url)
    return either_database_url


@pytest.fixture
def pool(url: str, pool_of_either: Pool) -> Pool:
    return pool_of_either


async def test_retention_shows_its_defaults(shell: Shell, url: str) -> None:
    assert await shell.run("retention") == 0
    assert shell.rows() == [
        ["tier", "kept", "dropped", "before", "size"],
        ["raw", "15d", "nothing", "0", "B"],
        ["5m", "90d", "nothing", "0", "B"],
        ["1h", "2y", "nothing", "0", "B"],
        [],
        ["0", "B", "in", "all;", "bound:", "none"],
    ]


async def test_retention_is_changed_and_shows_what_is_stored(
    shell: Shell, url: str, pool: Pool
) -> None:
    await pool.execute("select ensure_partition('blocks', now())")
    await pool.execute("insert into blocks values (1, now(), 1, '', '', '{}')")
    await pool.execute("update retention set floor = '2026-01-02 00:00Z' where tier = '5m'")
    changes = ("--raw", "1w", "--5m", "52w", "--1h", "forever", "--max-size", "50GB")
    assert await shell.run("retention", *changes) == 0
    raw, five, hour, _, total = shell.rows()[1:]
    assert raw[:3] == ["raw", "1w", "nothing"]
    assert float(raw[3]) > 0
    assert five[:3] == ["5m", "52w", "2026-01-02T00:00:00Z"]
    assert hour[:2] == ["1h", "forever"]
    assert total[-3:] == ["bound:", "50", "GB"]
    assert await shell.run("retention", "--max-size", "none") == 0
    assert shell.rows()[-1][-2:] == ["bound:", "none"]
    assert await pool.fetchval("select keep from retention where tier = 'raw'") == timedelta(7)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (["--raw", "12h"], "--raw: 12h; expected at least 1d"),
        (["--5m", "1w"], "--5m: 1w is shorter than the 15d of raw; expected at least as long"),
        (["--raw", "ages"], "--raw: 'ages' is not a duration such as 15s, 5m or 1h30m, nor 'for"),
        (["--1h", "forever", "--max-size", "much"], "--max-size: 'much' is not a size such as 50G"),
    ],
)
async def test_what_cannot_be_kept_so_is_refused_and_changes_nothing(
    shell: Shell, url: str, pool: Pool, changes: Sequence[str], reason: str
) -> None:
    before = await pool.fetch("select * from retention order by tier")
    assert await shell.run("retention", *changes) == 2
    assert shell.err.startswith(reason)
    assert await pool.fetch("select * from retention order by tier") == before


async def test_without_our_database_retention_says_so(
    shell: Shell, empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VERVET_DATABASE_URL", empty_database_url)
    monkeypatch.setenv("VERVET_HOME", "/nonexistent")
    assert await shell.run("retention") == 69
    assert "the database has no schema yet; run: vervet migrate" in shell.err
    monkeypatch.delenv("VERVET_DATABASE_URL")
    assert await shell.run("retention") == 2
    assert "no `vervet up` runs on /nonexistent (VERVET_HOME)" in shell.err
    assert "set VERVET_DATABASE_URL" in shell.err


async def test_the_database_of_a_vervet_up_is_found(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not pytest's own directory: as root the server runs as a user who may not enter that.
    with tempfile.TemporaryDirectory(prefix="vervet-test-") as name:
        home = Path(name)
        home.chmod(0o711)
        monkeypatch.delenv("VERVET_DATABASE_URL", raising=False)
        monkeypatch.setenv("VERVET_HOME", name)
        async with embedded_postgres(home / "postgres", port=None) as url:
            await migrate(url)
            assert await shell.run("retention", "--raw", "3d") == 0
            assert shell.rows()[1][:2] == ["raw", "3d"]
        assert await shell.run("retention") == 2
        assert f"no `vervet up` runs on {name} (VERVET_HOME)" in shell.err


AT = datetime(2026, 5, 1, 10, tzinfo=UTC)


async def known_jobs(pool: Pool) -> None:
    """One that runs, one that is fine, one that fails, one that never ran."""
    rows = [
        ("days", 900, AT, None, None, None, None, 1, "3 of 4", ""),
        ("head", 3600, AT, AT, AT, 0.01234, 0.0, 0, "empty partitions dropped: 1", ""),
        ("seal", 300, AT, AT, None, 61.7, 5400.0, 2, "", "disk full"),
        ("unused", 86400, None, None, None, None, None, 0, "", ""),
    ]
    await pool.executemany(
        """insert into jobs (owner, name, every_s, started_at, finished_at, succeeded_at,
                             duration_s, lag_s, failures, progress, error)
           values ('w', $1, $2, $3, $4, $5, $6, $7, $8, $9, $10)""",
        rows,
    )


async def test_jobs_are_shown_as_a_table_and_as_json(
    shell: Shell, url: str, pool: Pool, bus: Bus
) -> None:
    async with serving(bus, url) as client:
        api = str(client.base_url)
        assert await shell.run("jobs", "--api", api) == 0
        assert shell.out == "no job has run yet: no ingest worker was here\n"
        await known_jobs(pool)
        assert await shell.run("jobs", "--api", api) == 0
        assert [" ".join(row) for row in shell.rows()] == [
            "job state every last success took lag progress",
            "days running 15m never - - 3 of 4",
            "head fine 1h 2026-05-01T10:00:00Z 12ms 0s empty partitions dropped: 1",
            "seal failing 5m never 1m2s 1h30m",
            "unused new 1d never - -",
            "seal: disk full",
        ]
        assert await shell.run("jobs", "--api", api, "--output", "json") == 0
        items = json.loads(shell.out)
    assert [item["name"] for item in items] == ["days", "head", "seal", "unused"]
    assert items[2]["lag_s"] == 5400
    assert items[2]["started_at"] == "2026-05-01T10:00:00Z"


async def test_a_job_is_asked_to_run(shell: Shell, url: str, pool: Pool) -> None:
    await known_jobs(pool)
    assert await shell.run("jobs", "--run", "head") == 0

    async def nothing(_: Pool, __: datetime, ___: Progress) -> timedelta:
        return timedelta(0)

    row = await pool.fetchrow("select *, now() as now from jobs where name = 'head'")
    state = State(row["requested_at"], row["started_at"], row["finished_at"])
    job = Job("head", timedelta(days=9999), timedelta(1), nothing)
    assert next_job([job], {"head": state}, row["now"]) == job
    assert await shell.run("jobs", "--run", "heads") == 2
    assert shell.err == "--run: there is no job 'heads'; there are: days, head, seal, unused\n"


async def test_without_an_api_jobs_says_so(shell: Shell) -> None:
    assert await shell.run("jobs", "--api", "127.0.0.1:1") == 69
    assert shell.err.startswith("vervet jobs: no api answers at 127.0.0.1:1")
