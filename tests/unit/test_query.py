"""`vervet query`: what it asks, and how it shows the answer."""

import json
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
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
    ("arguments", "status", "told"),
    [
        (("x", "--range", "soon"), 2, "--range: 'soon' is not a duration"),
        (("x", "--range", "0s"), 2, "--range: expected more than 0s"),
        (("x", "--step", "5s"), 2, "--step: only with --range"),
        (("x",), 69, "vervet query: no api answers at 127.0.0.1:"),
    ],
)
def test_what_cannot_be_asked_is_told(
    arguments: tuple[str, ...], status: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert vervet(*arguments, "--api", f"127.0.0.1:{free_port()}") == status
    assert capsys.readouterr().err.startswith(told)


def test_a_sparkline_is_bounded_and_shows_gaps() -> None:
    assert len(sparkline([float(n) for n in range(1000)])) == 40
    assert sparkline([1.0, math.nan, 1.0]) == "▁ ▁"
    assert sparkline([math.inf]) == " "


def test_series_without_a_name_or_labels_have_a_text() -> None:
    assert series_text({}) == "{}"
    assert series_text({"__name__": "up"}) == "up"
