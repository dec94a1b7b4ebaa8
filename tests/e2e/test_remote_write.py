"""A real Prometheus writes into Vervet: both answer the same, whatever happens on the way."""

import json
import math
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import asyncpg
import httpx
import pytest

from tests.e2e.test_up import home as home
from tests.processes import Running, eventually, free_port, vervet
from tests.stack.peer_servers import PeerServer, prometheus_server
from tests.stack.session import Stack

CONFIGURATION = """
global: {{scrape_interval: 1s, scrape_timeout: 1s}}
scrape_configs:
  - job_name: node
    static_configs: [{{targets: ["127.0.0.1:{exporter}"]}}]
remote_write:
  - url: http://{address}/api/v1/write
    queue_config:
      min_shards: {shards}
      max_samples_per_send: {size}
      batch_send_deadline: 700ms
      max_backoff: 500ms
"""

SECONDS = 8
"""Instants that are compared at least."""

QUERIES = [
    "up",
    "node_load1",
    "sum by (mode) (rate(node_cpu_seconds_total[4s]))",
    'topk(3, node_memory_MemFree_bytes or node_memory_Cached_bytes{job!=""})',
    "count by (job, instance) ({job=~'.+'})",
    "quantile by (cpu) (0.9, node_cpu_seconds_total)",
]


@pytest.fixture(scope="module")
def exporter(node_exporter: Path) -> Iterator[int]:
    """The port of a node_exporter."""
    port = free_port()
    command = [str(node_exporter), f"--web.listen-address=127.0.0.1:{port}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    yield port
    process.kill()
    process.wait(10)


@contextmanager
def prometheus(
    stack: Stack, exporter: int, address: str, shards: int, size: int
) -> Iterator[PeerServer]:
    text = CONFIGURATION.format(exporter=exporter, address=address, shards=shards, size=size)
    with prometheus_server(stack, configuration=text) as server:
        yield server


def asked(root: str, path: str, **parameters: Any) -> Any:
    answer = httpx.get(f"{root}/api/v1/{path}?{urlencode(parameters)}", timeout=20, trust_env=False)
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]["result"]


def samples(root: str, since_s: int, at_s: int) -> dict[str, Any]:
    """Every sample between two instants, by series; values as they are spelled."""
    found = asked(root, "query", query=f'{{job="node"}}[{at_s - since_s}s]', time=at_s)
    return {json.dumps(one["metric"], sort_keys=True): one["values"] for one in found}


async def same_samples(prometheus: PeerServer, ours: Running, since_s: int) -> None:
    at_s = await newest_after(prometheus, since_s)
    expected = samples(prometheus.url, since_s, at_s)
    assert len(expected) > 400
    root = f"http://{ours.address}"
    await eventually(
        lambda: samples(root, since_s, at_s) == expected,
        lambda: ours.text()[-3000:],
        within_s=60,
    )
    for query in QUERIES:
        instant = asked(root, "query", query=query, time=at_s)
        assert canonical(instant) == canonical(
            asked(prometheus.url, "query", query=query, time=at_s)
        ), query
        over = {"query": query, "start": since_s, "end": at_s, "step": 1}
        assert canonical(asked(root, "query_range", **over)) == canonical(
            asked(prometheus.url, "query_range", **over)
        ), query


def canonical(result: list[Any]) -> Any:
    """Independent of the order of series, and of the last bits of what was computed."""
    return sorted(
        (
            json.dumps(one["metric"], sort_keys=True),
            [(at, _rounded(value)) for at, value in one.get("values", [one.get("value")])],
        )
        for one in result
    )


def _rounded(text: str) -> str:
    value = float(text)
    return text if not math.isfinite(value) else f"{value:.9g}"


async def newest_after(prometheus: PeerServer, after_s: int) -> int:
    """A second that lies so long after another one that all of `SECONDS` lie between."""
    query = 'max(timestamp(up{job="node"}))'

    def newest() -> float:
        result = asked(prometheus.url, "query", query=query)
        return float(result[0]["value"][1]) if result else 0.0

    await eventually(lambda: newest() >= after_s + SECONDS + 1, within_s=60)
    return int(newest()) - 1


def now_s(prometheus: PeerServer) -> int:
    return int(float(asked(prometheus.url, "query", query="time()")[1]))


@asynccontextmanager
async def separate(
    tmp_path: Path, broker_url: str, database_url: str, address: str
) -> AsyncIterator[dict[str, str]]:
    """The services but for the api, as processes over a broker; settings for the api."""
    settings = {"broker_url": broker_url, "database_url": database_url}
    async with vervet("migrate", log=tmp_path / "migrate", **settings) as migrate:
        assert await migrate.ended() == 0, migrate.text()
    async with (
        vervet("ingest", log=tmp_path / "ingest", **settings) as ingest,
        vervet("evaluator", log=tmp_path / "evaluator", **settings) as evaluator,
    ):
        await ingest.until_ready()
        await evaluator.until_ready()
        yield {**settings, "listen": address}


@asynccontextmanager
async def api(tmp_path: Path, settings: dict[str, str]) -> AsyncIterator[Running]:
    async with vervet("api", log=tmp_path / "api", **settings) as running:
        running.address = settings["listen"]
        await running.until_ready()
        yield running


async def test_both_answer_the_same_though_the_api_is_killed_and_the_sender_restarted(
    stack: Stack, exporter: int, tmp_path: Path, broker_url: str, database_url: str
) -> None:
    address = f"127.0.0.1:{free_port()}"
    async with separate(tmp_path, broker_url, database_url, address) as settings:
        with prometheus(stack, exporter, address, shards=4, size=97) as sender:
            began_s = now_s(sender)
            async with api(tmp_path, settings) as first:
                await eventually(lambda: bool(asked(f"http://{address}", "query", query="up")))
                first.kill()
            async with api(tmp_path, settings) as second:
                await same_samples(sender, second, began_s)
                sender.stop()
                sender.start()
                await same_samples(sender, second, now_s(sender))
                sender.stop()  # while there is somebody to take what it has left
                agents = json.loads(second.get("/v1/agents")[1])["items"]
                assert {agent["version"] for agent in agents} == {"remote write"}
                assert {agent["missing"] for agent in agents} == {0}
    connection = await asyncpg.connect(database_url)
    series = await connection.fetchval("select count(*) from series")
    newest = await connection.fetchval(
        "select count(*) from frames where at = (select max(at) from frames)"
    )
    layouts = await connection.fetchval("select count(*) from layouts")
    await connection.close()
    assert newest <= series / 50
    assert layouts <= series / 30


async def test_all_in_one_takes_what_a_prometheus_writes(
    stack: Stack, exporter: int, home: Path
) -> None:
    async with vervet("up", log=home.parent / "log", home=str(home), interval="1h") as running:
        await eventually(lambda: running.get("/-/ready")[0] == 200, running.text, within_s=60)
        with prometheus(stack, exporter, running.address, shards=1, size=500) as sender:
            await same_samples(sender, running, now_s(sender))
