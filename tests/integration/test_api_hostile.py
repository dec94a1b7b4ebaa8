"""Whatever is asked: an answer in the right envelope, never a failure of the server."""

import threading
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.topology import topology
from services.api import queries
from services.api.parameters import instant_us, span_us
from services.bus_memory import memory_bus
from tests import promqlgrammar
from tests.api_rig import LOAD, MINUTE_US, START_US, answers, serving, store
from tests.builders import sample_message
from tests.processes import eventually

PATHS = [
    *("query", "query_range", "series", "labels", "label/instance/values", "metadata", "rules"),
    *("alerts", "targets", "targets/metadata", "format_query", "parse_query", "query_exemplars"),
    *("status/tsdb", "status/flags", "scrape_pools"),
]
NAMES = [
    *("query", "time", "start", "end", "step", "timeout", "lookback_delta", "limit", "stats"),
    *("match[]", "metric", "state", "type", "rule_name[]", "exclude_alerts", "match_target"),
]
REQUESTS = 150

TEXTS = [
    *("", "0", "-1", "1e400", "-1e300", "nan", "inf", "9" * 30, "1e18", "253402300799"),
    *("-62135596800", "5m", "-5m", "290y", "9999999999999999999999y", "1ms", "0s"),
    *("2026-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "0001-01-01T00:00:00+14:00"),
    *("2026-13-01T00:00:00Z", "\x00", "é", "'", "true", "%", "up", "{}"),
    *('{__name__=~".+"}', "node_load1", "node_load1[5m]", "'; drop table x;--"),
    *("node_load1 offset 290y", "node_load1 @ 1e15", "node_load1 offset -290y"),
    *("node_load1[290y]", "max_over_time(node_load1[1d:1ms])", "sum(", '"text"', "time()"),
    *("vector(1)", "1/0", "-(1)", "rate(node_load1[1m:10s] @ end())", "node_load1 ^ 1e9"),
    *('count_values("v", node_load1)', "topk(1e300, node_load1)", "quantile(NaN, node_load1)"),
    *("node_load1 * 1e308 * 10", "{a=~'(((('}", "{a=~'\\\\pL{1000}'}", "hour(vector(-1e18))"),
    *("limit_ratio(-2, node_load1)", "round(node_load1, 0)", "day_of_month(vector(1e300))"),
    *("predict_linear(node_load1[5m], 1e300)", "(" * 200, "a" * 20_000, "+".join(["1"] * 400)),
    *("absent_over_time(x[292y:1ms])", 'node_load1{a="\\x00"}', '{__name__="\\x00"}'),
    *('{instance="\\x00"}', '{"a\\x00b"="c"}', '{instance=~"\\x00|a"}', "node_load1 @ -1e15"),
    *('label_replace(node_load1, "a", "\\xff", "", "")', 'node_load1{a="\\ud800"}'),
    *('label_replace(node_load1, "a", "$1", "job", "(" * 9)', "x[5m:1ms] offset 1d"),
    *("stddev_over_time(node_load1[1d:1ms])", "vector(1e400)", "node_load1[0s]"),
    *("quantile_over_time(0.5, vector(1)[10d:1ms])", "sum(sum(sum(x[1d:1s])))"),
    *("max_over_time(max_over_time(node_load1[1d:1s])[1d:1s])", "sort_by_label(up, 'a')"),
]


@pytest.fixture
async def client(database_url: str) -> AsyncIterator[httpx.AsyncClient]:
    rows = [[float(n), 30.0 * n] for n in range(11)]
    message = sample_message(*rows, at_us=START_US, step_us=MINUTE_US, series=LOAD)
    await store(database_url, message)
    async with memory_bus() as bus:
        await bus.declare(topology(1))
        async with serving(bus, database_url) as opened:
            await eventually(lambda: answers(opened, "/-/ready"))
            yield opened


def made_up(rng: Random) -> tuple[str, list[tuple[str, str]]]:
    """A path and parameters of no sense, or nearly some."""
    names = rng.sample(NAMES, rng.randint(0, 6))
    chosen = [(name, rng.choice(TEXTS)) for name in names]
    if rng.random() < 0.3:
        chosen.append(("query", promqlgrammar.expression(rng)))
    if rng.random() < 0.5:
        span = {"start": str(START_US / 1e6), "end": str(START_US / 1e6 + 60), "step": "15"}
        chosen = [*((n, t) for n, t in chosen if n not in span), *span.items()]
    return rng.choice(PATHS), chosen


def is_right(answer: httpx.Response) -> bool:
    """Whether it is one of the envelope's two forms, with a status that goes with it."""
    if answer.status_code == 200:
        return bool(answer.json()["status"] == "success" and "data" in answer.json())
    body: dict[str, Any] = answer.json()
    statuses = {"bad_data": (400, 405), "execution": (422,), "timeout": (503,)}
    return body["status"] == "error" and answer.status_code in statuses[body["errorType"]]


async def test_no_parameter_makes_the_server_fail(client: httpx.AsyncClient) -> None:
    rng = Random(5)
    succeeded = 0
    for _ in range(REQUESTS):
        path, chosen = made_up(rng)
        if rng.random() < 0.5:
            answer = await client.get(f"/api/v1/{path}", params=chosen)
        else:
            form = httpx.QueryParams(chosen)
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            answer = await client.post(f"/api/v1/{path}", content=str(form), headers=headers)
        assert is_right(answer), (path, chosen, answer.status_code, answer.text[:300])
        succeeded += answer.is_success
    assert succeeded > 10


async def test_no_text_makes_the_server_fail(client: httpx.AsyncClient) -> None:
    for text in TEXTS:
        given = {"query": text, "match[]": text, "start": "0", "end": "60", "step": "15"}
        for path in ("query_range", "parse_query", "series"):
            answer = await client.post(f"/api/v1/{path}", data=given)
            assert is_right(answer), (path, text[:80], answer.status_code, answer.text[:300])
        short = text[:1000]
        named = {"match[]": short, "metric": short, "match_target": short, "time": short}
        for path in ("label/a/values", "targets/metadata"):
            answer = await client.get(f"/api/v1/{path}", params=named)
            assert is_right(answer), (path, text[:80], answer.status_code, answer.text[:300])


async def test_other_resources_do_not_fail_either(client: httpx.AsyncClient) -> None:
    for text in TEXTS:
        answer = await client.get("/v1/explain", params={"query": text})
        assert answer.status_code in (200, 400, 422), (text, answer.text[:300])
        answer = await client.get("/federate", params={"match[]": text})
        assert answer.status_code in (200, 400, 422), (text, answer.text[:300])
        assert "Traceback" not in answer.text


async def test_a_body_that_is_too_large_is_refused(client: httpx.AsyncClient) -> None:
    answer = await client.post("/api/v1/query", content=b"query=" + b"1" * 2**21)
    assert (answer.status_code, answer.json()["errorType"]) == (400, "bad_data")


async def test_many_selectors_cost_no_more_than_one(client: httpx.AsyncClient) -> None:
    heavy = [("match[]", f'{{a=~"\\\\w{{30}}{n}"}}') for n in range(20)]
    light = [("match[]", f'{{a=~"b{n}.*"}}') for n in range(20)]
    for path in ("/api/v1/series", "/api/v1/labels", "/federate"):
        assert (await client.get(path, params=light)).status_code == 200
        assert (await client.get(path, params=heavy[:1])).status_code == 200
        refused = await client.get(path, params=heavy)
        assert refused.status_code == 400
        assert "too large" in refused.text


async def test_a_long_selector_is_refused_like_a_long_expression(
    client: httpx.AsyncClient,
) -> None:
    long = [("match[]", f'{{a="{"b" * 1000}"}}')] * 17
    for path in ("/api/v1/series", "/api/v1/labels", "/api/v1/rules", "/federate"):
        assert (await client.get(path, params=long[:16])).status_code == 200
        refused = await client.get(path, params=long)
        assert refused.status_code == 400
        assert "at most 16,384" in refused.text


async def test_expressions_are_printed_beside_the_event_loop(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = threading.get_ident()
    threads: list[int] = []

    def noted(text: str) -> str:
        threads.append(threading.get_ident())
        return text

    monkeypatch.setattr(queries, "printed", noted)
    monkeypatch.setattr(queries, "tree_of", noted)
    for path in ("format_query", "parse_query"):
        answer = await client.get(f"/api/v1/{path}", params={"query": "up"})
        assert answer.json()["data"] == "up"
    assert len(threads) == 2
    assert here not in threads


async def test_a_form_of_many_parameters_is_not_read(client: httpx.AsyncClient) -> None:
    answer = await client.post("/api/v1/labels", content=b"a=&" * 80_000)
    assert (answer.status_code, answer.json()["errorType"]) == (400, "bad_data")
    assert "parameters" in answer.json()["error"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text())
def test_instants_and_durations_are_read_or_refused(text: str) -> None:
    for read in (instant_us, span_us):
        try:
            microseconds = read(text)
        except ValueError as error:
            refusal = str(error)
        else:
            assert abs(microseconds) < 2**63
            continue
        assert refusal.startswith("cannot parse ")
