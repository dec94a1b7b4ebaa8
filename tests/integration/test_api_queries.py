"""Queries over HTTP: what they cost is told, bounded and given back when nobody wants it."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import httpx
import pytest

from engine.promql import Matrix, Query
from engine.promql.limits import Limits
from services.bus import Bus
from services.database import open_pool
from services.explanation import explained
from tests.api_rig import LOAD, MINUTE_US, START_US, answers, serving, store
from tests.builders import sample_message
from tests.processes import eventually

START_S = START_US // 1_000_000
RANGE = {"start": str(START_S), "end": str(START_S + 600), "step": "60"}


TWICE = {"match[]": ["node_load1", "node_cpu_seconds_total"]}


@pytest.fixture
async def url(database_url: str) -> str:
    """A database with ten minutes of two hosts."""
    rows = [[float(n), 30.0 * n] for n in range(11)]
    messages = [
        sample_message(*rows, instance=host, at_us=START_US, step_us=MINUTE_US, series=LOAD)
        for host in ("web-1", "web-2")
    ]
    await store(database_url, *messages)
    return database_url


@asynccontextmanager
async def api(bus: Bus, url: str, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(bus, url, **settings) as client:
        await eventually(lambda: answers(client, "/-/ready"))
        yield client


@pytest.mark.parametrize(
    ("settings", "path", "given", "named"),
    [
        ({"max_points": 10}, "query_range", RANGE, "maximum resolution of 10 points"),
        ({"query_max_chars": 9}, "query", {}, "expression of 10 characters; at most 9"),
        ({"query_max_series": 1}, "query", {}, "selects more than 1 series"),
        ({"query_max_samples": 21}, "query_range", RANGE, "22 samples; at most 21"),
        ({"query_max_answer": 21}, "query_range", RANGE, "an answer of 22 samples; at most 21"),
        ({"query_max_series": 1}, "series", {"match[]": "node_load1"}, "more than 1 series"),
        ({"query_max_series": 3}, "series", TWICE, "4 series match; at most 3"),
    ],
)
async def test_a_bound_that_is_passed_is_named(
    bus: Bus, url: str, settings: dict[str, Any], path: str, given: dict[str, Any], named: str
) -> None:
    at = {"query": "node_load1", "time": str(START_S + 600)}
    async with api(bus, url, **settings) as client:
        answer = await client.get(f"/api/v1/{path}", params=at | given)
    assert (answer.status_code, answer.json()["errorType"]) == (422, "execution")
    assert named in answer.json()["error"].replace("the query ", "")


async def test_a_limit_cuts_an_answer_and_says_so(bus: Bus, url: str) -> None:
    at = {"time": str(START_S + 600)}
    both = {"query": "node_load1", "match[]": "node_load1", "limit": "1"}
    async with api(bus, url) as client:
        for path in ("query", "query_range", "series", "labels", "label/instance/values"):
            answer = (await client.get(f"/api/v1/{path}", params=both | RANGE | at)).json()
            found = answer["data"]
            assert len(found if isinstance(found, list) else found["result"]) == 1, path
            assert answer["warnings"] == ["results truncated due to limit"], path
            whole = (
                await client.get(f"/api/v1/{path}", params=both | RANGE | at | {"limit": "9"})
            ).json()
            assert "warnings" not in whole


async def test_the_lookback_is_a_parameter(bus: Bus, url: str) -> None:
    late = {"query": "count(node_load1)", "time": str(START_S + 600 + 400)}
    async with api(bus, url) as client:
        nothing = (await client.get("/api/v1/query", params=late)).json()
        found = (await client.get("/api/v1/query", params=late | {"lookback_delta": "10m"})).json()
    assert nothing["data"]["result"] == []
    assert found["data"]["result"][0]["value"][1] == "2"


async def test_likely_mistakes_stand_beside_the_answer(bus: Bus, url: str) -> None:
    async with api(bus, url) as client:
        at = {"time": str(START_S + 600), "query": "quantile(2, rate(node_load1[5m]))"}
        answer = (await client.get("/api/v1/query", params=at)).json()
        nothing = {**at, "query": "rate(absent[5m])"}
        assert (await client.get("/api/v1/query", params=nothing)).json().keys() == {
            "status",
            "data",
        }
    assert answer["data"]["result"][0]["value"][1] == "+Inf"
    (warning,), (info,) = answer["warnings"], answer["infos"]
    assert "between 0 and 1, got 2 (1:10)" in warning
    assert info.endswith('"node_load1" (1:18)')


async def test_an_explanation_tells_what_was_read(bus: Bus, url: str) -> None:
    given = {"query": 'sum(rate(node_cpu_seconds_total{instance="web-1"}[2m])) / 2', **RANGE}
    async with api(bus, url) as client:
        told = (await client.get("/v1/explain", params=given)).json()
        refused = await client.get("/v1/explain", params={"query": "sum("})
    (selector,) = told["selectors"]
    assert selector["selector"] == 'node_cpu_seconds_total{instance="web-1"}'
    assert (selector["series"], selector["layouts"], selector["samples"]) == (1, 1, 11)
    assert selector["storage"] == {"head": 11}
    assert (told["steps"], told["samples_read"]) == (11, 11)
    assert (told["result_series"], told["result_samples"]) == (1, 10)
    assert refused.status_code == 400
    assert "1:5: parse error" in refused.json()["detail"]
    assert "head 11" in explained(told)


IN_A_THREAD = "max_over_time(node_load1[1m:10s])"
"""A subquery, which may have any number of steps."""


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Range queries compute until they are told to stop; what became of them is in the list."""
    became: list[str] = []

    def never(self: Query, start: int, end: int, step: int, blocks: Any, limits: Limits) -> Matrix:
        became.append("began")
        try:
            while True:
                limits.check()
                time.sleep(0.001)
        finally:
            became.append("stopped")

    monkeypatch.setattr(Query, "range", never)
    return became


async def test_a_query_whose_time_is_over_stops_computing(
    bus: Bus, url: str, endless: list[str]
) -> None:
    async with api(bus, url) as client:
        given = {"query": IN_A_THREAD, **RANGE, "timeout": "200ms"}
        answer = await client.get("/api/v1/query_range", params=given)
        assert (answer.status_code, answer.json()["errorType"]) == (503, "timeout")
        assert "expression evaluation" in answer.json()["error"]
        await eventually(lambda: endless == ["began", "stopped"])


async def test_a_query_whose_client_went_away_stops_computing(
    bus: Bus, url: str, endless: list[str]
) -> None:
    async with api(bus, url) as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.get(
                "/api/v1/query_range", params={"query": IN_A_THREAD, **RANGE}, timeout=0.5
            )
        await eventually(lambda: endless == ["began", "stopped"])


async def test_a_statement_ends_when_the_query_does(bus: Bus, url: str) -> None:
    """Another connection holds a lock that the read waits for."""
    async with (
        open_pool(url) as pool,
        api(bus, url) as client,
        pool.acquire() as other,
        other.transaction(),
    ):
        await other.execute("lock table frames in access exclusive mode")
        given = {"query": "node_load1", "timeout": "200ms"}
        answer = await client.get("/api/v1/query", params=given)
        assert (answer.status_code, answer.json()["errorType"]) == (503, "timeout")

        async def nobody_waits() -> bool:
            waiting = "select count(*) from pg_locks where not granted"
            return bool(await other.fetchval(waiting) == 0)

        await eventually(nobody_waits)


async def test_every_statement_of_the_api_ends_in_time(bus: Bus, url: str) -> None:
    async with (
        open_pool(url) as pool,
        api(bus, url, query_timeout=timedelta(milliseconds=200)) as client,
        pool.acquire() as other,
        other.transaction(),
    ):
        await other.execute("lock table agents in access exclusive mode")
        for path in ("/v1/agents", "/api/v1/targets"):
            answer = await client.get(path)
            assert answer.status_code == 503
            assert "took too long" in answer.text


async def test_queries_wait_for_their_turn_and_one_more_is_refused(
    bus: Bus, url: str, endless: list[str]
) -> None:
    async with api(bus, url, query_concurrency=1, query_queue=1) as client:

        async def ask(timeout: str) -> tuple[int, str, str]:
            given = {"query": IN_A_THREAD, "timeout": timeout, **RANGE}
            answer = await client.get("/api/v1/query_range", params=given)
            return answer.status_code, answer.json()["errorType"], answer.json()["error"]

        first = asyncio.create_task(ask("2s"))
        await eventually(lambda: endless == ["began"])
        status, kind, error = await ask("100ms")
        assert (status, kind) == (503, "timeout")
        assert "query queue" in error
        second = asyncio.create_task(ask("1s"))
        refused: list[Any] = []

        async def there_is_no_place() -> bool:
            refused[:] = await ask("1ms")
            return refused[1] == "unavailable"

        await eventually(there_is_no_place)
        assert refused[0] == 503
        assert "query_queue" in refused[2]
        assert "expression evaluation" in (await first)[2]
        await second


async def test_the_loop_goes_on_while_a_large_answer_is_computed_and_written(
    bus: Bus, url: str
) -> None:
    """Some millions of samples: what a computation takes in a row is a fraction of the whole."""
    gaps: list[float] = []

    async def feel() -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0)
            gaps.append(time.perf_counter() - began)
            await asyncio.sleep(0.001)

    expression = " or ".join(
        f'label_replace(sin(vector(time() + {n})), "n", "{n}", "", "")' for n in range(90)
    )
    given = {"query": expression, "start": "0", "end": "10999", "step": "1"}
    async with api(bus, url) as client:
        began = time.perf_counter()
        feeling = asyncio.create_task(feel())
        async with client.stream("GET", "/api/v1/query_range", params=given) as answer:
            size = 0
            async for chunk in answer.aiter_raw():
                size += len(chunk)
        feeling.cancel()
        whole = time.perf_counter() - began
    assert answer.status_code == 200
    assert size > 20_000_000
    assert max(gaps) < whole / 3


MANY = " or ".join(f'label_replace(vector(time() + {n}), "n", "{n}", "", "")' for n in range(40))
LARGE = {"query": MANY, "start": "0", "end": "10999", "step": "1"}


async def test_a_client_that_does_not_read_is_let_go(
    bus: Bus, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While its answer is being sent, no other large one is; then the connection is closed."""
    monkeypatch.setattr("services.api.outgoing.MAX_BYTES", 1)
    monkeypatch.setattr("services.api.outgoing.TIMEOUT_S", 1.0)
    async with api(bus, url) as client:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", client.base_url.port, limit=1024
        )
        path = f"/api/v1/query_range?{httpx.QueryParams(LARGE)}"
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await reader.readline()
        refused = await client.post("/api/v1/query_range", data=LARGE)
        assert (refused.status_code, refused.json()["errorType"]) == (503, "unavailable")

        async def has_room() -> bool:
            return (await client.post("/api/v1/query_range", data=LARGE)).status_code == 200

        await eventually(has_room)
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await reader.readexactly(2**31)
        writer.close()
