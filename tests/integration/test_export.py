"""`vervet export` on a real database, read back by what others wrote."""

import asyncio
import csv
import io
import math
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from schemas.errors import Invalid
from schemas.layouts import Series
from schemas.samples import SampleMessage
from schemas.values import ABSENT, STALE
from services import export as exporting
from services import export_formats
from services.clock import instant, now_us, rfc3339
from services.database import Pool, open_pool
from services.export import export, request
from services.ingest.batch import Layouts, Window, receive
from services.ingest.jobs import Progress
from services.ingest.sealing import seal
from services.ingest.store import Store
from services.runtime import Unable
from tests.builders import delivery, sample_message

WINDOW = Window(timedelta(days=366), timedelta(days=1))
HOUR_US = 3_600_000_000
SECOND_US = 1_000_000
START_US = (now_us() // HOUR_US - 30) * HOUR_US
"""30 hours ago, on the hour: what stands there is of the hour before."""

LOAD = [Series("load", {}, "gauge")]
Sample = tuple[str, int, float]


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[Pool]:
    async with open_pool(database_url) as opened:
        yield opened


async def store(pool: Pool, *messages: SampleMessage) -> None:
    layouts = Layouts()
    bounds = WINDOW.bounds_us(now_us())
    await Store(pool).write([receive(delivery(one), one, layouts, bounds) for one in messages])


async def seal_all(pool: Pool) -> None:
    await seal(pool, instant(now_us() + 3 * HOUR_US), Progress(timedelta(minutes=1)))
    assert await pool.fetchval("select count(*) from frames") == 0


async def exported(url: str, selector: str, output: Path, **changes: Any) -> bytes:
    given = {"start_us": START_US, "end_us": START_US + 30 * HOUR_US, "form": "openmetrics"}
    given |= changes
    start, end = rfc3339(given["start_us"]), rfc3339(given["end_us"])
    await export(request(selector, start, end, given["form"], output), url)
    return output.read_bytes()


def exposed(text: bytes) -> list[Sample]:
    """(instance, µs, value) as the reference parser of OpenMetrics reads them."""
    return [
        (one.labels["instance"], round(float(one.timestamp) * SECOND_US), one.value)
        for family in text_string_to_metric_families(text.decode())
        for one in family.samples
    ]


def dumped(promtool: Path, text: Path, blocks: Path) -> list[Sample]:
    """The same as Prometheus holds them, once promtool made its blocks of the file."""
    command = [str(promtool), "tsdb", "create-blocks-from", "openmetrics", str(text), str(blocks)]
    subprocess.run(command, check=True, timeout=60, capture_output=True)
    (blocks / "wal").mkdir()  # `dump` takes a folder without it for no database
    dump = subprocess.run(
        [str(promtool), "tsdb", "dump", str(blocks)],
        check=True,
        timeout=60,
        capture_output=True,
        text=True,
    )
    found = re.findall(r'^\{.*instance="([^"]*)".*\} (\S+) (\d+)$', dump.stdout, re.MULTILINE)
    return [(name, int(at) * 1000, float(value)) for name, value, at in found]


async def test_prometheus_takes_all_that_head_and_history_hold(
    pool: Pool, database_url: str, promtool: Path, tmp_path: Path
) -> None:
    messages, expected = [], []
    for name in ("host-1", "host-2"):
        for hour in range(5):
            at_us = START_US + hour * HOUR_US
            values = [1.5 + hour, -0.1, 1e300]
            rows = [[value] for value in values]
            messages.append(sample_message(*rows, instance=name, at_us=at_us, series=LOAD))
            instants = [at_us, at_us + SECOND_US, at_us + 2 * SECOND_US]
            expected += zip([name] * 3, instants, values, strict=True)
    await store(pool, *messages[:7])
    await seal_all(pool)
    await store(pool, *messages[7:])
    file = tmp_path / "samples.txt"
    await exported(database_url, "load", file)
    assert sorted(dumped(promtool, file, tmp_path / "blocks")) == expected


async def test_an_export_begins_at_its_start_and_ends_before_its_end(
    pool: Pool, database_url: str, tmp_path: Path
) -> None:
    rows = [[float(second)] for second in range(6)]
    await store(pool, sample_message(*rows, at_us=START_US, series=LOAD))
    bounds = {"start_us": START_US + SECOND_US, "end_us": START_US + 4 * SECOND_US}
    text = await exported(database_url, "load", tmp_path / "out", **bounds)
    assert [value for _, _, value in exposed(text)] == [1.0, 2.0, 3.0]
    bounds = {"start_us": START_US, "end_us": START_US + 1}
    text = await exported(database_url, "load", tmp_path / "out", **bounds)
    assert exposed(text) == [("host-1", START_US, 0.0)]


async def test_every_value_and_label_survives_the_text(
    pool: Pool, database_url: str, tmp_path: Path
) -> None:
    odd = 'a"b\\c,é=\\n'
    series = [Series("load", {"path": odd}, "gauge")]
    values = [0.1, -0.0, 5e-324, math.inf, -math.inf, math.nan]
    rows = [[value] for value in values]
    at_us = START_US + 1
    await store(pool, sample_message(*rows, at_us=at_us, series=series))
    text = await exported(database_url, "load", tmp_path / "out")
    (family,) = text_string_to_metric_families(text.decode())
    assert {one.labels["path"] for one in family.samples} == {odd}
    assert list(map(repr, (one.value for one in family.samples))) == list(map(repr, values))
    assert [one[1] for one in exposed(text)] == [at_us + i * SECOND_US for i in range(6)]


async def test_absent_cells_and_stale_markers_are_no_samples(
    pool: Pool, database_url: str, tmp_path: Path
) -> None:
    await store(pool, sample_message([1.0, ABSENT], [STALE, 2.0], at_us=START_US))
    text = await exported(database_url, "temperature", tmp_path / "out")
    assert exposed(text) == [
        ("host-1", START_US, 1.0),
        ("host-1", START_US + SECOND_US, 2.0),
    ]


async def test_a_series_that_changes_its_layout_stays_in_order_of_time(
    pool: Pool, database_url: str, promtool: Path, tmp_path: Path
) -> None:
    wide = [*LOAD, Series("temperature", {}, "gauge")]
    for second, series in enumerate([wide, LOAD, wide, LOAD]):
        row = [float(second)] * len(series)
        at_us = START_US + second * SECOND_US
        await store(pool, sample_message(row, at_us=at_us, seq=second, series=series))
    file = tmp_path / "samples.txt"
    await exported(database_url, "load", file)
    found = dumped(promtool, file, tmp_path / "blocks")
    assert [value for _, _, value in found] == [0.0, 1.0, 2.0, 3.0]


async def test_instances_are_exported_some_at_a_time(
    pool: Pool, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "BATCH_SERIES", 3)
    names = [f"host-{number}.(a|b)+" for number in range(7)]
    await store(
        pool,
        *(sample_message([1.0], instance=name, at_us=START_US, series=LOAD) for name in names),
        sample_message([1.0], instance="other", job="db", at_us=START_US, series=LOAD),
    )
    text = await exported(database_url, 'load{job="node"}', tmp_path / "out")
    assert sorted(exposed(text)) == [(name, START_US, 1.0) for name in names]


async def test_a_range_of_all_times_costs_no_more_than_what_is_stored(
    pool: Pool, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at = []
    cut = exporting._cut

    def counted(start_us: int, end_us: int, span_us: int) -> list[tuple[int, int]]:
        found = list(cut(start_us, end_us, span_us))
        looked_at.extend(found)
        return found

    monkeypatch.setattr(exporting, "_cut", counted)
    await store(pool, sample_message([1.0], at_us=START_US, series=LOAD))
    asked = request("load", "0001-01-01", "3000-01-01", "openmetrics", tmp_path / "out")
    await export(asked, database_url)
    assert b" 1.0 " in (tmp_path / "out").read_bytes()
    assert len(looked_at) < 100


async def test_series_without_job_and_instance_are_exported_beside_others(
    pool: Pool, database_url: str, tmp_path: Path
) -> None:
    await store(
        pool,
        sample_message([1.0], instance="", job="", at_us=START_US, series=LOAD),
        sample_message([2.0], at_us=START_US, series=LOAD),
    )
    text = (await exported(database_url, "load", tmp_path / "out")).decode()
    assert re.findall(r"^load .*", text, re.MULTILINE) == [f"load 1.0 {START_US // SECOND_US}"]
    assert re.findall(r"^load{.*} (\S+) ", text, re.MULTILINE) == ["2.0"]


async def test_names_of_instances_may_be_long(
    pool: Pool, database_url: str, tmp_path: Path
) -> None:
    names = [f"{number}{'.' * 700}" for number in range(5)]
    messages = [sample_message([1.0], instance=name, at_us=START_US, series=LOAD) for name in names]
    await store(pool, *messages)
    text = await exported(database_url, "load", tmp_path / "out")
    assert sorted(exposed(text)) == [(name, START_US, 1.0) for name in names]


async def test_csv_has_a_row_per_sample_and_a_column_per_label(
    pool: Pool, database_url: str, tmp_path: Path
) -> None:
    series = [
        Series("load", {"time": "=1+1", "path": 'a,"b'}, "gauge"),
        Series("level", {}, "gauge"),
    ]
    await store(pool, sample_message([-1.5, math.inf], at_us=START_US + 5, series=series))
    text = await exported(database_url, '{job="node"}', tmp_path / "out", form="csv")
    header, *rows = csv.reader(io.StringIO(text.decode()))
    at = rfc3339(START_US + 5)
    assert header == ["metric", "time", "value", "instance", "job", "path", "label_time"]
    assert sorted(rows) == [
        ["level", at, "Inf", "host-1", "node", "", ""],
        ["load", at, "-1.5", "host-1", "node", 'a,"b', "'=1+1"],
    ]


async def test_parquet_holds_the_same_typed(
    pool: Pool, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_formats, "ROW_GROUP", 3)
    for name in ("host-1", "host-2"):
        await store(pool, sample_message([1.0, 2.0], [3.0, ABSENT], instance=name, at_us=START_US))
    await store(pool, sample_message([4.0], at_us=START_US, series=LOAD, seq=9))
    await exported(database_url, '{job="node"}', tmp_path / "out", form="parquet")
    file = parquet.ParquetFile(tmp_path / "out")
    assert file.num_row_groups > 1
    table = file.read()
    assert str(table.schema.field("time").type) == "timestamp[us, tz=UTC]"
    found = [
        (row["metric"], row["instance"], row["room"], row["time"], row["value"])
        for row in table.to_pylist()
    ]
    first, second = instant(START_US), instant(START_US + SECOND_US)
    assert sorted(found, key=repr) == sorted(
        [("load", "host-1", None, first, 4.0)]
        + [
            ("temperature", name, room, at, value)
            for name in ("host-1", "host-2")
            for room, at, value in (("a", first, 1.0), ("b", first, 2.0), ("a", second, 3.0))
        ],
        key=repr,
    )


async def test_without_pyarrow_parquet_is_refused_by_name(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(Unable, match="the extra `parquet`"):
        await exported(database_url, "load", tmp_path / "out", form="parquet")


async def test_nothing_found_is_a_file_without_samples(database_url: str, tmp_path: Path) -> None:
    assert await exported(database_url, "load", tmp_path / "out") == b"# EOF\n"


async def test_a_label_that_comes_up_meanwhile_ends_the_export_with_no_file(
    pool: Pool, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def none(*_: object) -> set[str]:
        return {"instance", "job"}

    await store(pool, sample_message([1.0, 2.0], at_us=START_US))
    monkeypatch.setattr(exporting.Source, "label_names", none)
    with pytest.raises(Unable, match="new label 'room'"):
        await exported(database_url, "temperature", tmp_path / "out", form="csv")
    assert list(tmp_path.iterdir()) == []


async def test_a_file_that_cannot_be_written_is_named(database_url: str, tmp_path: Path) -> None:
    with pytest.raises(Unable, match="out: No such file"):
        await exported(database_url, "load", tmp_path / "missing" / "out")
    with pytest.raises(Unable, match="/dev/full: No space left"):
        await exported(database_url, "load", Path("/dev/full"))


async def test_a_database_without_a_schema_or_away_is_named(
    empty_database_url: str, tmp_path: Path
) -> None:
    with pytest.raises(Unable, match="run: vervet migrate"):
        await exported(empty_database_url, "load", tmp_path / "out")
    with pytest.raises(Unable, match=r"postgresql 127\.0\.0\.1:1/x: "):
        await exported("postgresql://nobody@127.0.0.1:1/x", "load", tmp_path / "out")


async def test_a_selector_that_leaves_too_much_to_read_is_told(
    pool: Pool, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = exporting.DEFAULT_LIMITS._replace(cells=1)
    monkeypatch.setattr(exporting, "DEFAULT_LIMITS", limits)
    await store(pool, sample_message([1.0, 2.0], at_us=START_US))
    with pytest.raises(Invalid, match="narrow it"):
        await exported(database_url, "temperature", tmp_path / "out")


@pytest.mark.parametrize(
    ("selector", "start", "end", "complaint"),
    [
        ("up{", "2026-01-01", None, "unexpected end of input"),
        ("rate(up[5m])", "2026-01-01", None, "expected a selector"),
        ("up offset 5m", "2026-01-01", None, "expected a selector"),
        ("up", "yesterday", None, "--start: read 'yesterday'"),
        ("up", "999999999999", None, "--start: read"),
        ("up", "2026-01-01", "2026-01-01T00:00:00Z", "--end: 2026-01-01T00:00:00Z is not after"),
    ],
)
def test_what_cannot_be_exported_is_said(
    selector: str, start: str, end: str | None, complaint: str
) -> None:
    with pytest.raises(Invalid, match=re.escape(complaint)):
        request(selector, start, end, "csv", Path("-"))


def test_parquet_is_not_written_to_a_pipe() -> None:
    with pytest.raises(Invalid, match="needs a file"):
        request("up", "0", None, "parquet", Path("-"))


@pytest.mark.parametrize("start", ["2026-01-02", "1767312000", "2026-01-02T01:00:00+01:00"])
def test_an_instant_is_a_date_a_time_or_unix_seconds(start: str) -> None:
    assert request("up", start, None, "csv", Path("-")).start_us == 1_767_312_000 * SECOND_US


async def test_the_command_writes_to_stdout_and_tells_what_it_did_on_stderr(
    pool: Pool, database_url: str
) -> None:
    await store(pool, sample_message([1.0], at_us=START_US, series=LOAD))
    command = [sys.executable, "-m", "services.cli", "export", "load"]
    command += ["--start", rfc3339(START_US), "--database-url", database_url]
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, timeout=60, check=True
    )
    assert exposed(done.stdout) == [("host-1", START_US, 1.0)]
    assert done.stderr == b"exported 1 samples\n"


async def test_a_reader_that_leaves_ends_the_command_without_a_traceback(
    pool: Pool, database_url: str
) -> None:
    rows = [[float(value)] for value in range(20_000)]
    await store(pool, sample_message(*rows, at_us=START_US, step_us=1000, series=LOAD))
    command = [sys.executable, "-m", "services.cli", "export", "load"]
    command += ["--start", rfc3339(START_US), "--database-url", database_url]
    assert await asyncio.to_thread(left_early, command) == (
        69,
        b"vervet export: nobody reads the output any more\n",
    )


def left_early(command: list[str]) -> tuple[int, bytes]:
    """Exit status and complaint of a command of whose output one line is read."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr
        return process.wait(60), process.stderr.read()


def test_progress_is_told_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    seconds = iter([0.0, 1.0, 6.0, 6.0, 7.0])
    progress = exporting.Progress(lambda: next(seconds))
    for _ in range(3):
        progress.count(1_000_000, START_US)
    said = f"2,000,000 samples, up to {instant(START_US):%Y-%m-%d %H:%M}\n"
    assert capsys.readouterr().err == said
