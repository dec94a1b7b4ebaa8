"""The servers by others that ours are compared with: they serve, and take what our sender makes."""

import math
import struct
from collections.abc import Iterator

import httpx
import pytest

from tests.stack.peer_servers import (
    PeerServer,
    influxdb_server,
    prometheus_server,
    victoria_metrics_server,
)
from tests.stack.process import is_alive
from tests.stack.remote_write import post, varint, write_request
from tests.stack.session import Stack

AT_MS = 1_700_000_000_000
LABELS = {"__name__": "load", "instance": "a", "zone": "é"}
VALUES = [1.5, -0.0, math.inf, 1e300, 0.1]
SAMPLES = [(value, AT_MS + index * 1000) for index, value in enumerate(VALUES)]


@pytest.fixture(scope="module")
def prometheus(stack: Stack) -> Iterator[PeerServer]:
    with prometheus_server(stack) as server:
        yield server


@pytest.fixture(scope="module")
def victoria_metrics(stack: Stack) -> Iterator[PeerServer]:
    with victoria_metrics_server(stack) as server:
        yield server


def test_prometheus_reads_a_request_as_it_was_meant(prometheus: PeerServer) -> None:
    assert post(prometheus.write_url, write_request([(LABELS, SAMPLES)])).is_success
    last_s = SAMPLES[-1][1] / 1000
    query = {"query": "load[1h]", "time": str(last_s)}
    answer = httpx.get(f"{prometheus.url}/api/v1/query", params=query).json()
    (series,) = answer["data"]["result"]
    assert series["metric"] == LABELS
    assert [(float(text), round(at * 1000)) for at, text in series["values"]] == SAMPLES


def test_prometheus_knows_its_stale_marker_in_a_request(prometheus: PeerServer) -> None:
    (marker,) = struct.unpack("<d", struct.pack("<Q", 0x7FF0000000000002))
    labels = {"__name__": "gone"}
    body = write_request([(labels, [(1.0, AT_MS), (marker, AT_MS + 1000)])])
    assert post(prometheus.write_url, body).is_success
    at = {"query": "gone", "time": str(AT_MS / 1000)}
    after = {"query": "gone", "time": str(AT_MS / 1000 + 2)}
    url = f"{prometheus.url}/api/v1/query"
    assert len(httpx.get(url, params=at).json()["data"]["result"]) == 1
    assert httpx.get(url, params=after).json()["data"]["result"] == []


def test_prometheus_refuses_late_samples_unless_it_has_a_window(
    stack: Stack, prometheus: PeerServer
) -> None:
    labels = {"__name__": "late"}
    new, old = (write_request([(labels, [(1.0, AT_MS - ago)])]) for ago in (0, 600_000))
    with prometheus_server(stack, out_of_order="1h") as lenient:
        for server, status in ((prometheus, 400), (lenient, 204)):
            assert post(server.write_url, new).status_code == 204
            assert post(server.write_url, old).status_code == status


def test_victoria_metrics_reads_a_request_as_it_was_meant(victoria_metrics: PeerServer) -> None:
    # Its blocks share a decimal exponent: numbers far apart in size are not kept exactly.
    samples = [(1.5, AT_MS), (0.1, AT_MS + 1000), (-3.0, AT_MS + 2000)]
    assert post(victoria_metrics.write_url, write_request([(LABELS, samples)])).is_success
    httpx.get(f"{victoria_metrics.url}/internal/force_flush").raise_for_status()
    query = {"match[]": "load"}
    answer = httpx.get(f"{victoria_metrics.url}/api/v1/export", params=query).json()
    assert answer["metric"] == LABELS
    assert list(zip(answer["values"], answer["timestamps"], strict=True)) == samples


def test_influxdb_takes_lines(stack: Stack) -> None:
    with influxdb_server(stack) as server:
        line = f"load,instance=a value=1.5 {AT_MS}"
        assert httpx.post(server.write_url, content=line).status_code == 204
        query = {"db": "samples", "q": "select value from load", "epoch": "ms"}
        answer = httpx.get(f"{server.url}/query", params=query).json()
    assert answer["results"][0]["series"][0]["values"] == [[AT_MS, 1.5]]


def test_a_server_keeps_its_samples_over_a_restart_and_ends_with_its_block(stack: Stack) -> None:
    with prometheus_server(stack) as server:
        assert post(server.write_url, write_request([(LABELS, SAMPLES)])).is_success
        server.stop()
        server.start()
        query = {"query": "load", "time": str(AT_MS / 1000)}
        answer = httpx.get(f"{server.url}/api/v1/query", params=query).json()
        assert len(answer["data"]["result"]) == 1
        process, folder = server.process, server.folder
    assert process is not None
    assert not is_alive(process)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("number", "encoded"),
    [(0, "00"), (127, "7f"), (128, "8001"), (300, "ac02"), (-1, "ffffffffffffffffff01")],
)
def test_a_varint_is_that_of_protobuf(number: int, encoded: str) -> None:
    assert varint(number).hex() == encoded
