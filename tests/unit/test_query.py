"""`vervet query`: what it asks, and how it shows the answer."""

import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from services.cli import main
from services.query import series_text, sparkline
from tests.processes import free_port

LOAD = {"__name__": "node_load1", "instance": 'a"b', "job": "node"}


@contextmanager
def api(status: int, body: object) -> Iterator[tuple[str, list[tuple[str, dict[str, list[str]]]]]]:
    """An api that gives one answer; yields its address and what it was asked."""
    asked: list[tuple[str, dict[str, list[str]]]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            form = self.rfile.read(int(self.headers["Content-Length"])).decode()
            asked.append((self.path, parse_qs(form)))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def vervet(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["query", *arguments])
    return int(ended.value.code or 0)


def success(kind: str, result: Any) -> dict[str, Any]:
    return {"status": "success", "data": {"resultType": kind, "result": result}}


def test_an_instant_answer_is_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"metric": LOAD, "value": [1.0, "0.5"]},
        {"metric": {"job": "x"}, "value": [1.0, "12"]},
    ]
    with api(200, success("vector", rows)) as (address, asked):
        assert vervet("node_load1", "--api", address) == 0
    assert asked == [("/api/v1/query", {"query": ["node_load1"]})]
    name = 'node_load1{instance="a\\"b",job="node"}'
    other = '{job="x"}'.ljust(len(name))
    assert capsys.readouterr().out == f"{name}  0.5\n{other}   12\n"


def test_a_range_has_a_sparkline(capsys: pytest.CaptureFixture[str]) -> None:
    values = [[float(n), str(n)] for n in range(8)]
    with api(200, success("matrix", [{"metric": LOAD, "values": values}])) as (address, asked):
        assert vervet("node_load1", "--api", address, "--range", "1h", "--step", "15s") == 0
    ((path, form),) = asked
    assert path == "/api/v1/query_range"
    assert form["step"] == ["15s"]
    assert float(form["end"][0]) - float(form["start"][0]) == pytest.approx(3600)
    header, line = capsys.readouterr().out.splitlines()
    assert header.split() == ["series", "last", "min", "max"]
    assert line.split()[1:] == ["▁▂▃▄▅▆▇█", "7", "0", "7"]


def test_csv_has_a_row_per_sample(capsys: pytest.CaptureFixture[str]) -> None:
    result = [{"metric": LOAD, "values": [[0.0, "1"], [1.5, "NaN"]]}]
    with api(200, success("matrix", result)) as (address, _):
        assert vervet("x", "--api", address, "--range", "1m", "--output", "csv") == 0
    assert capsys.readouterr().out.splitlines() == [
        "series,time,value",
        '"node_load1{instance=""a\\""b"",job=""node""}",1970-01-01T00:00:00Z,1',
        '"node_load1{instance=""a\\""b"",job=""node""}",1970-01-01T00:00:01.500000Z,NaN',
    ]


def test_json_is_what_the_api_said(capsys: pytest.CaptureFixture[str]) -> None:
    with api(200, success("scalar", [1.0, "2"])) as (address, _):
        assert vervet("2", "--api", f"http://{address}/", "--output", "json") == 0
    assert json.loads(capsys.readouterr().out)["result"] == [1.0, "2"]


def test_what_the_api_refuses_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    refusal = {"status": "error", "errorType": "bad_data", "error": "unknown function"}
    with api(400, refusal) as (address, _):
        assert vervet("x(", "--api", address) == 2
    assert capsys.readouterr().err == "unknown function\n"


@pytest.mark.parametrize(
    ("expression", "refusal", "shown"),
    [
        (
            "sum(x",
            'invalid parameter "query": 1:6: parse error: unexpected end of input',
            "1:6: parse error: unexpected end of input\n  sum(x\n       ^\n",
        ),
        ("a +\n\tb c", "2:4: parse error: no", "2:4: parse error: no\n  \tb c\n  \t  ^\n"),
        ("a", "9:1: parse error: elsewhere", "9:1: parse error: elsewhere\n"),
    ],
)
def test_a_mistake_is_pointed_at(
    expression: str, refusal: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    body = {"status": "error", "errorType": "bad_data", "error": refusal}
    with api(400, body) as (address, _):
        assert vervet(expression, "--api", address) == 2
    assert capsys.readouterr().err == shown


EXPLANATION = {
    "query": "sum(rate(x[5m]))",
    "type": "vector",
    "start": "2026-01-01T00:00:00Z",
    "end": "2026-01-01T01:00:00Z",
    "step_s": 15.0,
    "steps": 241,
    "lookback_s": 300.0,
    "selectors": [
        {
            "selector": "x",
            "start": "2025-12-31T23:55:00Z",
            "end": "2026-01-01T01:00:00Z",
            "series": 1200,
            "layouts": 3,
            "instants": 780,
            "samples": 312_000,
            "storage": {"sealed": 300_000, "head": 12_000},
            "read_s": 0.0123,
        }
    ],
    "samples_read": 312_000,
    "result_series": 1,
    "result_samples": 241,
    "queue_s": 0.0,
    "read_s": 0.0124,
    "evaluate_s": 0.25,
}


def test_an_explanation_has_a_line_per_selector(capsys: pytest.CaptureFixture[str]) -> None:
    with api(200, EXPLANATION) as (address, asked):
        assert vervet("sum(rate(x[5m]))", "--api", address, "--range", "1h", "--explain") == 0
    assert asked[0][0] == "/v1/explain"
    assert set(asked[0][1]) == {"query", "start", "end", "step"}
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("vector, 241 steps of 15 s, 2026-01-01T00:00:00Z to ")
    cells = "1,200 3 312,000 head 12,000, sealed 300,000 12.3 ms"
    assert " ".join(lines[4].split()).endswith(cells)
    assert lines[-1] == "time      queue 0.0 ms, read 12.4 ms, evaluate 250.0 ms"


def test_an_explanation_can_be_json(capsys: pytest.CaptureFixture[str]) -> None:
    with api(200, EXPLANATION) as (address, _):
        assert vervet("x", "--api", address, "--explain", "--output", "json") == 0
    assert json.loads(capsys.readouterr().out) == EXPLANATION


def test_warnings_stand_below_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    body = {**success("vector", []), "warnings": ["cut"], "infos": ["PromQL info: approximate"]}
    with api(200, body) as (address, _):
        assert vervet("x", "--api", address) == 0
    assert capsys.readouterr().out == "no result\nwarning: cut\ninfo: approximate\n"


@pytest.mark.parametrize("output", ["json", "csv"])
def test_remarks_stand_on_stderr_where_stdout_is_for_programs(
    output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    body = {**success("vector", []), "warnings": ["cut"], "infos": ["approximate"]}
    with api(200, body) as (address, _):
        assert vervet("x", "--api", address, "--output", output) == 0
    shown = capsys.readouterr()
    assert shown.err == "warning: cut\ninfo: approximate\n"
    assert "approximate" not in shown.out


def test_an_api_that_cannot_answer_now_is_no_mistake_of_the_asker(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with api(503, {"status": "error", "errorType": "timeout", "error": "too slow"}) as (address, _):
        assert vervet("x", "--api", address) == 69
    assert capsys.readouterr().err == f"vervet query: {address}: HTTP status 503: too slow\n"


def test_who_answers_something_else_is_told_from_an_api(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for body in ({"fine": True}, [1]):
        with api(200, body) as (address, _):
            assert vervet("x", "--api", address) == 69
        told = f"vervet query: {address} answers, but not as this api does\n"
        assert capsys.readouterr().err == told


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (("x", "--range", "soon"), 2, "--range: 'soon' is not a duration"),
        (("x", "--range", "0s"), 2, "--range: expected more than 0s"),
        (("x", "--step", "5s"), 2, "--step: only with --range"),
        (("x", "--range", "1h", "--step", "soon"), 2, "--step: 'soon' is not a duration"),
        (("x", "--range", "1h", "--step", "0s"), 2, "--step: expected more than 0s"),
        (("x", "--api", "localhost:http"), 69, "vervet query: no api answers at localhost:http: n"),
        (("x",), 69, "vervet query: no api answers at 127.0.0.1:"),
    ],
)
def test_what_cannot_be_asked_is_told(
    arguments: tuple[str, ...], status: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert vervet("--api", f"127.0.0.1:{free_port()}", *arguments) == status
    assert capsys.readouterr().err.startswith(told)


def test_a_sparkline_is_bounded_and_shows_gaps() -> None:
    assert len(sparkline([float(n) for n in range(1000)])) == 40
    assert sparkline([1.0, math.nan, 1.0]) == "▁ ▁"
    assert sparkline([math.inf]) == " "


def test_series_without_a_name_or_labels_have_a_text() -> None:
    assert series_text({}) == "{}"
    assert series_text({"__name__": "up"}) == "up"


def test_where_nobody_answers_the_reason_is_told_plainly(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert vervet("up", "--api", f"127.0.0.1:{(port := free_port())}") == 69
    assert capsys.readouterr().err == (
        f"vervet query: no api answers at 127.0.0.1:{port}: Connection refused\n"
    )


def test_an_explanation_is_no_csv(capsys: pytest.CaptureFixture[str]) -> None:
    assert vervet("up", "--explain", "--output", "csv") == 2
    assert capsys.readouterr().err == "--output: expected table or json with --explain\n"


def test_output_that_nobody_reads_ends_the_command_quietly(tmp_path: Path) -> None:
    file = tmp_path / "rules.yml"
    file.write_text("groups: []\n")
    reader, writer = os.pipe()
    os.close(reader)
    try:
        command = [sys.executable, "-m", "services.cli", "check", "rules", str(file)]
        ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    finally:
        os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, b"")
