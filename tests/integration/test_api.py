"""The api over HTTP on a real database: Prometheus' interface, own resources, live streams."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from schemas.layouts import Series
from schemas.topology import ALERTS, INTAKE
from schemas.transitions import (
    TRANSITION_JSON,
    AlertState,
    Transition,
    encode_transition,
    fingerprint,
    transition_id,
)
from services.bus import Bus, Message
from services.clock import instant, now_us
from services.database import open_pool
from services.ingest.jobs import Progress
from services.ingest.sealing import seal
from tests.api_rig import LOAD, MINUTE_US, START_US, answers, serving, store
from tests.builders import bus_message, sample_message
from tests.processes import eventually, free_port, vervet


@pytest.fixture
async def client(bus: Bus, database_url: str) -> AsyncIterator[httpx.AsyncClient]:
    """Ten minutes of two hosts: load 0, 1, 2 …, a counter that grows by 30 a minute."""
    rows = [[float(n), 30.0 * n] for n in range(11)]
    await store(
        database_url,
        *(
            sample_message(*rows, instance=host, at_us=START_US, step_us=MINUTE_US, series=LOAD)
            for host in ("web-1", "web-2")
        ),
    )
    async with serving(bus, database_url) as opened:
        await eventually(lambda: answers(opened, "/-/ready"))
        yield opened


async def test_an_instant_query_answers_as_prometheus_does(client: httpx.AsyncClient) -> None:
    at = START_US / 1e6 + 130
    answer = await client.get(
        "/api/v1/query", params={"query": 'node_load1{instance="web-1"}', "time": str(at)}
    )
    assert answer.json() == {
        "status": "success",
        "data": {
            "resultType": "vector",
            "result": [
                {
                    "metric": {"__name__": "node_load1", "instance": "web-1", "job": "node"},
                    "value": [at, "2"],
                }
            ],
        },
    }


async def test_a_range_query_may_be_a_form(client: httpx.AsyncClient) -> None:
    start = START_US / 1e6
    answer = await client.post(
        "/api/v1/query_range",
        data={
            "query": "sum by (mode) (rate(node_cpu_seconds_total[2m]))",
            "start": str(start + 240),
            "end": str(start + 360),
            "step": "1m",
        },
    )
    (series,) = answer.json()["data"]["result"]
    assert series["metric"] == {"mode": "idle"}
    assert series["values"] == [[start + n, "1"] for n in (240, 300, 360)]


async def test_labels_values_and_series_are_found(client: httpx.AsyncClient) -> None:
    async def data(path: str, **params: str) -> Any:
        return (await client.get(path, params=params)).json()["data"]

    assert await data("/api/v1/labels") == ["__name__", "cpu", "instance", "job", "mode"]
    assert await data("/api/v1/labels", **{"match[]": "node_load1"}) == [
        "__name__",
        "instance",
        "job",
    ]
    assert await data("/api/v1/label/instance/values") == ["web-1", "web-2"]
    match = {"match[]": '{__name__=~"node_l.*",instance="web-2"}'}
    found = [{"__name__": "node_load1", "instance": "web-2", "job": "node"}]
    assert await data("/api/v1/series", **match) == found
    long_ago = {"start": "0", "end": "1000"}
    assert await data("/api/v1/series", **match, **long_ago) == []


BOOKS = (
    Series("vervet_agent_samples_generated_total", {}, "counter"),
    Series("vervet_agent_samples_dropped_total", {"reason": "full"}, "counter"),
    Series("vervet_agent_spool_samples", {}, "gauge"),
)


@pytest.mark.parametrize(
    ("said", "in_flight", "unaccounted"),
    [((6, 0, 0), 0, 0), ((9, 3, 0), 0, 0), ((9, 0, 3), 3, 0), ((9, 0, 0), 0, 3), ((9, 0, 1), 1, 2)],
)
async def test_the_proof_fails_where_samples_are_lost(
    bus: Bus, database_url: str, said: tuple[float, ...], in_flight: int, unaccounted: int
) -> None:
    """Two messages of three samples before the newest, whose numbers tell what should be there."""
    await store(
        database_url,
        *(
            sample_message(row, at_us=START_US + n, seq=n, series=BOOKS)
            for n, row in enumerate([(0.0, 0.0, 0.0), (3.0, 0.0, 0.0), said])
        ),
    )
    async with serving(bus, database_url) as opened:
        proof = (await opened.get("/v1/pipeline")).json()
    assert (proof["stored"], proof["in_flight"]) == (9, in_flight)
    accounted = proof["stored"] + proof["dropped"] + proof["in_flight"]
    assert proof["generated"] - accounted == unaccounted


async def test_metadata_tells_types_and_units(client: httpx.AsyncClient) -> None:
    everything = (await client.get("/api/v1/metadata")).json()["data"]
    assert everything["node_load1"] == [{"type": "gauge", "help": "", "unit": ""}]
    one = (await client.get("/api/v1/metadata", params={"metric": "node_load1"})).json()["data"]
    assert one.keys() == {"node_load1"}
    assert len((await client.get("/api/v1/metadata?limit=1")).json()["data"]) == 1
    assert (await client.get("/api/v1/metadata?limit=x")).status_code == 400


async def test_settings_are_shown_without_secrets(
    client: httpx.AsyncClient, database_url: str
) -> None:
    flags = (await client.get("/api/v1/status/flags")).json()["data"]
    assert flags["query.timeout"] == flags["query-timeout"] == "30s"
    assert flags["query.max-samples"] == "50000000"
    yaml = (await client.get("/api/v1/status/config")).json()["data"]["yaml"]
    assert "query_timeout: 30s" in yaml
    password = str(urlsplit(database_url).password)
    for path in ("flags", "config", "runtimeinfo", "buildinfo"):
        assert password not in (await client.get(f"/api/v1/status/{path}")).text


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({}, {"host": ["HighLoad", "LowMemory"], "disk": ["Full"]}),
        ({"rule_name[]": "Full"}, {"disk": ["Full"]}),
        ({"rule_group[]": "host"}, {"host": ["HighLoad", "LowMemory"]}),
        ({"file[]": "b.yml"}, {"disk": ["Full"]}),
        ({"match[]": '{severity="page"}'}, {"host": ["HighLoad"], "disk": ["Full"]}),
        ({"type": "record"}, {}),
        ({"type": "alert", "rule_name[]": "none"}, {}),
    ],
)
async def test_rules_are_found_by_name_group_file_type_and_labels(
    client: httpx.AsyncClient, database_url: str, given: dict[str, str], names: dict[str, Any]
) -> None:
    def rule(name: str, severity: str) -> dict[str, Any]:
        spans = dict.fromkeys(("for_s", "keep_firing_for_s"), 0.0)
        labels = {"severity": severity}
        own = {"alert": name, "expr": "up", "no_data_s": None, "labels": labels}
        return {**own, **spans, "annotations": {}}

    async with open_pool(database_url) as pool:
        await pool.executemany(
            "insert into rule_groups (position, file, name, interval_s, rules)"
            " values ($1, $2, $3, 60, $4)",
            [
                (0, "a.yml", "host", [rule("HighLoad", "page"), rule("LowMemory", "ticket")]),
                (1, "b.yml", "disk", [rule("Full", "page")]),
            ],
        )
    groups = (await client.get("/api/v1/rules", params=given)).json()["data"]["groups"]
    assert {one["name"]: [r["name"] for r in one["rules"]] for one in groups} == names
    plain = (await client.get("/api/v1/rules", params={**given, "exclude_alerts": "true"})).json()
    rules = [rule for one in plain["data"]["groups"] for rule in one["rules"]]
    assert all("alerts" not in rule for rule in rules)


async def test_targets_are_the_agents(client: httpx.AsyncClient, database_url: str) -> None:
    await store(
        database_url,
        sample_message([1.0, 2.0], instance="new", series=LOAD),
        sample_message([1.0, 2.0], instance="old", series=LOAD, at_us=START_US),
    )
    data = (await client.get("/api/v1/targets")).json()["data"]
    health = {one["labels"]["instance"]: one["health"] for one in data["activeTargets"]}
    assert (health["new"], health["old"]) == ("up", "down")
    assert health.keys() == {"new", "old", "web-1", "web-2"}
    assert data["droppedTargets"] == []
    pools = {"scrapePool": "other"}
    assert (await client.get("/api/v1/targets", params=pools)).json()["data"]["activeTargets"] == []
    assert (await client.get("/api/v1/scrape_pools")).json()["data"] == {"scrapePools": ["node"]}
    match = {"match_target": '{instance="web-2"}', "metric": "node_load1"}
    metadata = (await client.get("/api/v1/targets/metadata", params=match)).json()["data"]
    (one,) = metadata
    assert (one["target"]["instance"], one["type"]) == ("web-2", "gauge")


async def test_there_are_no_exemplars(client: httpx.AsyncClient) -> None:
    answer = await client.get("/api/v1/query_exemplars", params={"query": "node_load1"})
    assert answer.json() == {"status": "success", "data": []}


@pytest.mark.parametrize(
    ("path", "params", "error"),
    [
        ("query", {}, 'invalid parameter "query": 1:1: parse error: '),
        ("query", {"query": "node_load1 +"}, "1:13: parse error: unexpected end of input"),
        ("query", {"query": "1 + raet(x[5m])"}, "1:5: parse error: unknown function with name"),
        ("query", {"query": "raet(x[5m])"}, "nearest: rate"),
        ("query", {"query": "1", "time": "yesterday"}, 'cannot parse "yesterday"'),
        ("query_range", {"query": "1", "start": "0", "end": "9", "step": "0"}, "step"),
        (
            "query_range",
            {"query": "1", "start": "9", "end": "0", "step": "1"},
            "must not be before",
        ),
        ("query_range", {"query": "x[1m]", "start": "0", "end": "9", "step": "1"}, "range vector"),
        ("series", {}, "no match"),
        ("series", {"match[]": "sum(x)"}, "not a series selector"),
        ("series", {"match[]": '{job=~".*"}'}, "at least one non-empty matcher"),
        ("labels", {"limit": "-1"}, 'invalid parameter "limit"'),
        ("label/0a/values", {}, 'invalid label name: "0a"'),
        ("rules", {"type": "x"}, 'invalid parameter "type": not supported value "x"'),
    ],
)
async def test_bad_input_is_told_in_prometheus_envelope(
    client: httpx.AsyncClient, path: str, params: dict[str, str], error: str
) -> None:
    answer = await client.get(f"/api/v1/{path}", params=params)
    assert answer.status_code == 400
    body = answer.json()
    assert (body["status"], body["errorType"]) == ("error", "bad_data")
    assert error in body["error"]


async def test_agents_are_listed_page_by_page(client: httpx.AsyncClient) -> None:
    first = (await client.get("/v1/agents", params={"limit": 1})).json()
    second = (await client.get("/v1/agents", params={"limit": 1, "cursor": first["next"]})).json()
    names = [item["instance"] for item in first["items"] + second["items"]]
    assert names == ["web-1", "web-2"]
    assert first["items"][0]["missing"] == 0
    assert first["items"][0]["samples"] == 22


@pytest.mark.parametrize("cursor", ["x", "eyJhIjoxfQ==", "W10=", "dHJ1ZQ=="])
async def test_a_foreign_cursor_is_a_problem(client: httpx.AsyncClient, cursor: str) -> None:
    for path in ("/v1/agents", "/v1/transitions", "/v1/inbox", "/v1/deliveries"):
        answer = await client.get(path, params={"cursor": cursor})
        assert answer.status_code == 400
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["detail"].startswith("cursor: not one")


async def test_what_is_not_there_is_a_problem_or_an_envelope(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v1/nothing")).json()["status"] == 404
    assert (await client.get("/api/v1/nothing")).json()["errorType"] == "not_found"
    assert (await client.get("/..%2f..%2fsettings.py")).status_code == 404


async def test_a_method_that_is_not_there_is_refused_with_those_that_are(
    client: httpx.AsyncClient,
) -> None:
    refused = await client.delete("/api/v1/labels")
    assert (refused.status_code, refused.json()["errorType"]) == (405, "bad_data")
    assert {"GET", "POST"} <= set(refused.headers["allow"].split(", "))
    for path in ("query", "query_range", "labels"):
        assert (await client.head(f"/api/v1/{path}")).status_code == 405


async def test_load_balancers_may_probe_without_a_body(client: httpx.AsyncClient) -> None:
    for path in ("/-/healthy", "/-/ready"):
        answer = await client.head(path)
        assert (answer.status_code, answer.content) == (200, b"")


async def test_every_answer_has_the_security_headers(client: httpx.AsyncClient) -> None:
    for path in ("/", "/v1/agents", "/api/v1/alerts", "/metrics", "/absent"):
        headers = (await client.get(path)).headers
        assert headers["content-security-policy"].startswith("default-src 'self'")
        assert headers["x-content-type-options"] == "nosniff"
        assert "server" not in headers


def transition(n: int, instance: str = "web-1") -> Transition:
    labels = {"alertname": "HighLoad", "instance": instance, "severity": "warning"}
    at = instant(START_US + n * 1_000_000)
    return Transition(
        id=transition_id("host/HighLoad", fingerprint(labels), AlertState.FIRING, at),
        rule="host/HighLoad",
        alertname="HighLoad",
        fingerprint=fingerprint(labels),
        severity="warning",
        from_state=AlertState.PENDING,
        to_state=AlertState.FIRING,
        at=at,
        value=float(n),
        labels=labels,
    )


async def publish_transition(bus: Bus, one: Transition) -> None:
    message = Message(encode_transition(one), TRANSITION_JSON, one.id)
    async with bus.consume("notify", prefetch=1) as consumer, asyncio.TaskGroup() as group:
        group.create_task(bus.publish(ALERTS, one.routing_key, message))
        await consumer.ack([await consumer.receive()])


async def publish_samples(bus: Bus, *rows: list[float], instance: str) -> None:
    """Publish while somebody acks, which the memory bus waits for."""
    message = sample_message(*rows, instance=instance, series=LOAD)
    async with (
        bus.consume("ingest", prefetch=1) as ingest,
        bus.consume("evaluate.0", prefetch=1) as evaluate,
        asyncio.TaskGroup() as group,
    ):
        group.create_task(bus.publish(INTAKE, f"node.{instance}", bus_message(message)))
        await ingest.ack([await ingest.receive()])
        await evaluate.ack([await evaluate.receive()])


Events = AsyncIterator[tuple[str, Any]]


async def events(response: httpx.Response) -> Events:
    """(event, data) of a stream of server-sent events."""
    kind, data = "message", ""
    async for line in response.aiter_lines():
        if line.startswith("event: "):
            kind = line.removeprefix("event: ")
        elif line.startswith("data: "):
            data = line.removeprefix("data: ")
        elif not line and data:
            yield kind, json.loads(data)
            kind, data = "message", ""


async def test_samples_arrive_live_narrowed_to_what_was_asked(
    client: httpx.AsyncClient, bus: Bus
) -> None:
    asked = {"instance": "web-1", "metric": "node_cpu_seconds_total"}
    async with client.stream("GET", "/v1/stream", params=asked) as response:
        stream = events(response)
        arrived = asyncio.ensure_future(anext(stream))
        while not arrived.done():  # the subscription begins a moment after the answer's headers
            await publish_samples(bus, [1.0, 2.0], instance="web-2")
            await publish_samples(bus, [3.0, 4.0], instance="web-1")
        kind, data = await arrived
        await stream.aclose()  # type: ignore[attr-defined]
    assert kind == "samples"
    assert data["instance"] == "web-1"
    assert data["values"] == {'node_cpu_seconds_total{cpu="0",mode="idle"}': 4.0}


async def test_transitions_are_resumed_after_the_last_event(
    client: httpx.AsyncClient, bus: Bus, database_url: str
) -> None:
    old = [transition(n) for n in range(3)]
    async with open_pool(database_url) as pool:
        for one in old:
            await pool.execute(
                """insert into transitions (id, rule, alertname, fingerprint, severity, from_state,
                       to_state, at, value, labels, annotations, expr, partition)
                   values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, '{}', '', 0)""",
                *(one.id, one.rule, one.alertname, one.fingerprint, one.severity),
                *(one.from_state, one.to_state, one.at, one.value, one.labels),
            )
    headers = {"Last-Event-ID": old[0].id}
    async with client.stream("GET", "/v1/stream", headers=headers) as response:
        stream = events(response)
        resumed = [await anext(stream), await anext(stream)]
        arrived = asyncio.ensure_future(anext(stream))
        while not arrived.done():
            await publish_transition(bus, transition(7))
        await stream.aclose()  # type: ignore[attr-defined]
    assert [data["value"] for _, data in [*resumed, arrived.result()]] == [1.0, 2.0, 7.0]
    listed = (await client.get("/v1/transitions", params={"instance": "web-1"})).json()["items"]
    assert [item["value"] for item in listed] == [2.0, 1.0, 0.0]
    assert (await client.get("/v1/transitions", params={"instance": "x"})).json()["items"] == []


async def test_without_a_database_it_says_what_it_waits_for(bus: Bus) -> None:
    url = f"postgresql://u:secret@127.0.0.1:{free_port()}/d"
    async with serving(bus, url, until="/-/healthy") as client:
        ready = await client.get("/-/ready")
        assert ready.status_code == 503
        assert "waiting for database: postgresql 127.0.0.1:" in ready.text
        assert "secret" not in ready.text
        answer = await client.get("/v1/agents")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
        assert (await client.get("/api/v1/query?query=up")).json()["errorType"] == "unavailable"


async def test_it_stops_in_time_with_a_stream_open(
    broker_url: str, database_url: str, tmp_path: Path
) -> None:
    servers = {"broker_url": broker_url, "database_url": database_url}
    async with vervet("api", log=tmp_path / "log", **servers) as api:
        await eventually(lambda: api.get("/-/healthy")[0] == 200, api.text)
        async with (
            httpx.AsyncClient(timeout=20) as client,
            client.stream("GET", f"http://{api.address}/v1/stream") as response,
        ):
            assert response.headers["content-type"].startswith("text/event-stream")
            began = time.monotonic()
            api.process.terminate()
            await eventually(lambda: api.process.poll() is not None, api.text)
    assert api.process.returncode == 0
    assert time.monotonic() - began < 5


async def test_an_answer_out_of_rollups_says_so(bus: Bus, database_url: str) -> None:
    day_us = 24 * 60 * MINUTE_US
    first_us = now_us() // day_us * day_us - 3 * day_us
    rows = [[float(n), 30.0 * n] for n in range(120)]
    await store(
        database_url, sample_message(*rows, at_us=first_us + 1, step_us=MINUTE_US, series=LOAD)
    )
    floor = instant(first_us + day_us)
    async with open_pool(database_url) as pool:
        await seal(pool, instant(now_us()), Progress(timedelta(minutes=1)))
        await pool.execute("delete from blocks")
        await pool.execute("update retention set floor = $1 where tier = 'raw'", floor)
    asked = {
        "query": "avg_over_time(node_load1[30m])",
        "start": str(first_us / 1e6 + 3600),
        "end": str(first_us / 1e6 + 7200),
        "step": "30m",
    }
    async with serving(bus, database_url) as client:
        await eventually(lambda: answers(client, "/-/ready"))
        answer = (await client.get("/api/v1/query_range", params=asked)).json()
        explained = (await client.get("/v1/explain", params=asked)).json()
    (series,) = answer["data"]["result"]
    assert [value for _, value in series["values"]] == ["44.5", "74.5", "104.5"]
    said = f"{floor:%Y-%m-%dT%H:%M:%SZ}"
    assert answer["infos"] == [f"answered from rollups of 5m before {said}"]
    assert explained["selectors"][0]["storage"].keys() == {"rollups_5m"}
