"""Our answers beside those of a real Prometheus that holds the same samples."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest

from schemas.topology import topology
from services.bus_memory import memory_bus
from services.clock import now_us
from services.database import open_pool
from tests import promqlgrammar
from tests.api_rig import LOAD, MINUTE_US, START_US, answers, serving, store
from tests.builders import sample_message
from tests.processes import eventually
from tests.stack.peer_servers import PeerServer, prometheus_server
from tests.stack.remote_write import post, write_request
from tests.stack.session import Stack

RULES = """
groups:
- name: g
  rules:
  - {alert: A, expr: vector(1), labels: {severity: page}, annotations: {summary: x}}
"""
HOSTS = ("web-1", "web-2")
START_S = START_US // 1_000_000
INSTANTS = 11


@pytest.fixture(scope="module")
def theirs(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PeerServer]:
    """Ten minutes of two hosts, and an alert that fires."""
    rules = tmp_path_factory.mktemp("rules") / "rules.yml"
    rules.write_text(RULES)
    configuration = (
        f"rule_files: [{rules}]\nglobal: {{evaluation_interval: 1s, scrape_interval: 1s}}\n"
        "scrape_configs: [{job_name: x, static_configs: [{targets: ['127.0.0.1:1']}]}]\n"
    )
    with prometheus_server(stack, configuration=configuration) as server:
        series = [
            (
                {"__name__": one.name, **one.labels, "instance": host, "job": "node"},
                [(factor * n, (START_US + n * MINUTE_US) // 1000) for n in range(INSTANTS)],
            )
            for host in HOSTS
            for one, factor in zip(LOAD, (1.0, 30.0), strict=True)
        ]
        assert post(server.write_url, write_request(series)).is_success
        yield server


@pytest.fixture
async def ours(database_url: str) -> AsyncIterator[httpx.AsyncClient]:
    rows = [[float(n), 30.0 * n] for n in range(INSTANTS)]
    messages = [
        sample_message(*rows, instance=host, at_us=START_US, step_us=MINUTE_US, series=LOAD)
        for host in HOSTS
    ]
    await store(database_url, *messages)
    async with memory_bus() as bus:
        await bus.declare(topology(1))
        async with serving(bus, database_url) as client:
            await eventually(lambda: answers(client, "/-/ready"))
            yield client


AT = {"time": str(START_S + 130)}
RANGE = {"start": str(START_S + 60), "end": str(START_S + 600), "step": "30"}
OUTSIDE = {"start": "1", "end": "1000"}
UP = 'node_load1{instance="web-1"}'

SAME: list[tuple[str, Mapping[str, str]]] = [
    ("query", {"query": "node_load1", **AT}),
    ("query", {"query": "rate(node_cpu_seconds_total[2m1s])", **AT}),
    ("query", {"query": "node_load1[2m1s]", **AT}),
    ("query", {"query": "1 / 3", **AT}),
    ("query", {"query": '"text"', **AT}),
    ("query", {"query": "node_load1 / 0", **AT}),
    ("query", {"query": "node_load1 * 1e-9", **AT}),
    ("query", {"query": "node_load1 * 1e21", **AT}),
    ("query", {"query": "absent_metric", **AT}),
    ("query", {"query": "node_load1", "time": "2000-01-01T00:00:00Z"}),
    ("query_range", {"query": "node_load1", **RANGE}),
    ("query_range", {"query": "node_load1 > 5", **RANGE}),
    ("query_range", {"query": "sum by (mode) (rate(node_cpu_seconds_total[2m1s]))", **RANGE}),
    ("query_range", {"query": "1", **RANGE}),
    ("query_range", {"query": "absent_metric", **RANGE}),
    ("series", {"match[]": 'node_load1{instance=~"web-.*"}'}),
    ("series", {"match[]": "node_load1", **OUTSIDE}),
    ("labels", {"match[]": "node_load1"}),
    ("labels", {"match[]": '{__name__=~"node_.*"}'}),
    ("label/instance/values", {"match[]": "node_load1"}),
    ("label/mode/values", {"match[]": '{instance="web-1"}'}),
    ("label/absent/values", {}),
    ("query_exemplars", {"query": "node_load1"}),
    ("format_query", {"query": "sum(x)by(a)"}),
    ("targets", {"state": "dropped"}),
    ("alertmanagers", {}),
    ("status/walreplay", {}),
]

REFUSED: list[tuple[str, Mapping[str, str]]] = [
    ("query", {}),
    ("query", {"query": "sum("}),
    ("query", {"query": "raet(x[5m])"}),
    ("query", {"query": "rate(x)"}),
    ("query", {"query": '{job=~".*"}'}),
    ("query", {"query": 'x{a=~"("}'}),
    ("query", {"query": "x", "time": "soon"}),
    ("query", {"query": "x", "timeout": "1ns"}),
    ("query", {"query": "x", "timeout": "0"}),
    ("query", {"query": "node_load1 * on () node_load1", **AT}),
    ("query", {"query": 'label_replace(node_load1, "", "", "", "")', **AT}),
    ("query_range", {"query": "x", "start": "1", "end": "2"}),
    ("query_range", {"query": "x", "start": "1", "end": "2", "step": "0"}),
    ("query_range", {"query": "x", "start": "1", "end": "2", "step": "-5s"}),
    ("query_range", {"query": "x", "start": "2", "end": "1", "step": "1"}),
    ("query_range", {"query": "x[1m]", "start": "1", "end": "2", "step": "1"}),
    ("query_range", {"query": '"x"', "start": "1", "end": "2", "step": "1"}),
    ("series", {}),
    ("series", {"match[]": "{}"}),
    ("series", {"match[]": "sum(x)"}),
    ("series", {"match[]": "x offset 5m"}),
    ("labels", {"start": "soon"}),
    ("label/0a/values", {}),
    ("label/a-b/values", {}),
    ("format_query", {"query": "x{"}),
    ("query_exemplars", {"query": "x{"}),
    ("metadata", {"limit": "many"}),
    ("rules", {"type": "x"}),
]

COVERED: list[tuple[str, Mapping[str, str]]] = [
    ("query", {"query": "node_load1", "stats": "all", **AT}),
    ("rules", {}),
    ("alerts", {}),
    ("targets", {}),
    ("status/runtimeinfo", {}),
    ("status/buildinfo", {}),
    ("status/config", {}),
    ("status/tsdb", {}),
]


async def both(
    ours: httpx.AsyncClient, theirs: PeerServer, path: str, given: Mapping[str, str]
) -> tuple[httpx.Response, httpx.Response]:
    """Their answer and ours."""
    async with httpx.AsyncClient(base_url=theirs.url, trust_env=False) as client:
        their = await client.get(f"/api/v1/{path}", params=given)
    return their, await ours.get(f"/api/v1/{path}", params=given)


async def test_answers_are_the_same_to_the_letter(
    ours: httpx.AsyncClient, theirs: PeerServer
) -> None:
    for path, given in SAME:
        their, our = await both(ours, theirs, path, given)
        assert their.is_success, (path, given)
        assert our.json() == their.json(), (path, given)
        assert our.headers["content-type"] == their.headers["content-type"]


async def test_what_is_refused_is_refused_with_the_same_status_and_type(
    ours: httpx.AsyncClient, theirs: PeerServer
) -> None:
    for path, given in REFUSED:
        their, our = await both(ours, theirs, path, given)
        assert not their.is_success, (path, given)
        verdict = (our.status_code, our.json()["status"], our.json()["errorType"])
        wanted = (their.status_code, their.json()["status"], their.json()["errorType"])
        assert verdict == wanted, (path, given, our.text, their.text)
        assert our.json().keys() == their.json().keys()


async def test_what_differs_by_nature_has_the_same_keys_and_types(
    ours: httpx.AsyncClient, theirs: PeerServer, database_url: str
) -> None:
    await an_alert_fires(database_url)
    await eventually(lambda: has_scraped_and_evaluated(theirs))
    for path, given in COVERED:
        their, our = await both(ours, theirs, path, given)
        covers(our.json(), their.json(), path)


async def an_alert_fires(url: str) -> None:
    """As the evaluator stores it."""
    rule = {
        "alert": "A",
        "expr": "vector(1)",
        "for_s": 0.0,
        "keep_firing_for_s": 0.0,
        "no_data_s": None,
        "labels": {"severity": "page"},
        "annotations": {"summary": "x"},
    }
    async with open_pool(url) as pool:
        await pool.execute(
            "insert into rule_groups (position, file, name, interval_s, rules)"
            " values (0, 'rules.yml', 'g', 1, $1)",
            [rule],
        )
        await pool.execute(
            """insert into alerts (rule, fingerprint, instance, partition, state, active_at, value,
                   labels, annotations)
               values ('g/A', 'f', 'web-1', 0, 'firing', now(), 1, $1, $2)""",
            {"alertname": "A", "severity": "page"},
            {"summary": "x"},
        )


def has_scraped_and_evaluated(theirs: PeerServer) -> bool:
    with httpx.Client(base_url=f"{theirs.url}/api/v1", trust_env=False) as client:
        targets = client.get("/targets").json()["data"]["activeTargets"]
        alerts = client.get("/alerts").json()["data"]["alerts"]
    return bool(alerts) and [one["health"] for one in targets] == ["down"]


def covers(our: Any, their: Any, path: str) -> None:
    """Everything that is in theirs is in ours, of the same type: numbers, texts, lists, objects."""
    if isinstance(their, dict):
        assert isinstance(our, dict), path
        assert their.keys() <= our.keys() or path.endswith((".metric", "abels")), path
        for key in their.keys() & our.keys():
            covers(our[key], their[key], f"{path}.{key}")
    elif isinstance(their, list):
        assert isinstance(our, list), path
        if their:
            assert our, path
            covers(our[0], their[0], f"{path}[0]")
    else:
        kinds = [float if type(one) is int else type(one) for one in (our, their)]
        assert kinds[0] is kinds[1], (path, our, their)


async def test_expressions_are_printed_as_prometheus_prints_them(
    ours: httpx.AsyncClient, theirs: PeerServer
) -> None:
    rng = Random(11)
    printed = 0
    for _ in range(200):
        given = {"query": promqlgrammar.expression(rng)}
        their, our = await both(ours, theirs, "format_query", given)
        assert our.status_code == their.status_code, (given, our.text)
        if their.is_success:
            printed += "\n" in their.json()["data"]
            assert our.json() == their.json(), given
    assert printed > 10


async def test_a_prometheus_federates_from_it(
    ours: httpx.AsyncClient, database_url: str, stack: Stack
) -> None:
    # Federation gives what is there now; START_US may be long ago when a whole suite runs.
    fresh = [
        sample_message([1.5, 45.0], instance=host, at_us=now_us(), seq=1, series=LOAD)
        for host in HOSTS
    ]
    await store(database_url, *fresh)
    target = ours.base_url.netloc.decode()
    configuration = (
        "global: {scrape_interval: 1s}\n"
        "scrape_configs: [{job_name: vervet, honor_labels: true, metrics_path: /federate,"
        " params: {'match[]': ['{job=\"node\"}']},"
        f" static_configs: [{{targets: ['{target}']}}]}}]\n"
    )
    with prometheus_server(stack, configuration=configuration, out_of_order="1h") as server:

        async def found() -> list[Any]:
            async with httpx.AsyncClient(trust_env=False) as client:
                query = {"query": '{job="node"}'}
                answer = await client.get(f"{server.url}/api/v1/query", params=query)
            result: list[Any] = answer.json()["data"]["result"]
            return result

        async def federated() -> bool:
            return len(await found()) == 4

        await eventually(federated, within_s=20)
        federated_samples = {str(one["metric"]): one["value"][1] for one in await found()}
    own = (await ours.get("/api/v1/query", params={"query": '{job="node"}'})).json()
    assert {str(one["metric"]): one["value"][1] for one in own["data"]["result"]} == (
        federated_samples
    )


async def test_promtool_queries_it(
    ours: httpx.AsyncClient, theirs: PeerServer, promtool: Path
) -> None:
    """Its own client, on ours and on theirs: the same output."""
    end = START_S + 600
    for command in (
        ["instant", f"--time={START_S + 130}", "{url}", "node_load1"],
        ["range", f"--start={START_S}", f"--end={end}", "--step=60s", "{url}", "node_load1 * 2"],
        ["series", "--match=node_load1", f"--start={START_S}", f"--end={end}", "{url}"],
        ["labels", "{url}", "instance"],
    ):

        async def said(url: str, command: list[str] = command) -> list[str]:
            given = [one.format(url=url) for one in command]
            process = await asyncio.create_subprocess_exec(
                promtool, "query", *given, stdout=asyncio.subprocess.PIPE
            )
            output, _ = await process.communicate()
            assert process.returncode == 0
            return sorted(output.decode().splitlines())

        own = await said(str(ours.base_url).rstrip("/"))
        assert own
        assert set(own) <= set(await said(theirs.url)), command
