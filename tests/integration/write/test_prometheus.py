"""A real Prometheus that scrapes, and writes to ours: we know what it knows, and give it back."""

import asyncio
import json
from collections import Counter as Multiset
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter, Enum, Gauge, Histogram, Info, Summary
from prometheus_client import exposition as text
from prometheus_client.openmetrics import exposition as openmetrics

from services.bus import Bus
from services.database import Pool
from tests.api_rig import serving
from tests.processes import eventually, free_port
from tests.stack.peer_servers import PeerServer, prometheus_server
from tests.stack.session import Stack

WITHIN_S = 60.0


def registry(help_: str = "Jobs done.") -> CollectorRegistry:
    """A metric of each type, with awkward texts; histograms and summaries with children."""
    made = CollectorRegistry()
    Counter("jobs", help_, ["kind"], registry=made).labels("a").inc(3)
    Counter("plain_total", 'Quotes " and \\ and\na line.', registry=made).inc()
    Gauge("depth_bytes", "", registry=made, unit="bytes").set(float("inf"))
    seconds = Histogram("wait_seconds", "Zeit é.", ["q"], unit="seconds", registry=made)
    for queue in ("x", "y"):
        seconds.labels(queue).observe(0.3)
    Summary("size", "Sizes.", registry=made).observe(7)
    Info("build", "Of what.", registry=made).info({"version": "1"})
    Enum("mode", "Which.", states=["on", "off"], registry=made).state("off")
    # Between the series of `wait_seconds`, by name.
    Gauge("wait_seconds_cap", "Bound.", registry=made).set(9)
    return made


@contextmanager
def exposed(body: Callable[[], bytes], content_type: str) -> Iterator[str]:
    """The address of a target that answers with what `body` gives."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", content_type)
            self.end_headers()
            self.wfile.write(body())

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def targets() -> Iterator[list[str]]:
    """Three: in OpenMetrics, in the text format, and the same with another help."""
    made, other = registry(), registry("Jobs that were done.")
    with ExitStack() as stack:
        yield [
            stack.enter_context(target)
            for target in (
                exposed(lambda: openmetrics.generate_latest(made), openmetrics.CONTENT_TYPE_LATEST),
                exposed(lambda: text.generate_latest(made), text.CONTENT_TYPE_LATEST),
                exposed(lambda: text.generate_latest(other), text.CONTENT_TYPE_LATEST),
            )
        ]


@asynccontextmanager
async def prometheus(stack: Stack, given: str, **options: Any) -> AsyncIterator[PeerServer]:
    """Started and stopped aside: when it stops, it still writes to what this loop serves."""
    with ExitStack() as exits:
        flags = ["--storage.remote.flush-deadline=5s"]
        server = prometheus_server(stack, flags, configuration=given, **options)
        yield await asyncio.to_thread(exits.enter_context, server)
        await asyncio.to_thread(exits.close)


def configuration(targets: list[str], *ports: int, queue: str = "") -> str:
    """Of a Prometheus that scrapes these every second, and writes to these ports."""
    writes = "".join(
        f"- {{url: 'http://127.0.0.1:{port}/api/v1/write', name: at-{port},"
        f" metadata_config: {{send_interval: 1s, max_samples_per_send: 3}},"
        f" queue_config: {{batch_send_deadline: 200ms, max_backoff: 200ms{queue}}}}}\n"
        for port in ports
    )
    jobs = "".join(
        f"- {{job_name: job-{n}, static_configs: [{{targets: ['{target}']}}]}}\n"
        for n, target in enumerate(targets)
    )
    return f"global: {{scrape_interval: 1s}}\nremote_write:\n{writes}scrape_configs:\n{jobs}"


async def asked(url: str, path: str, **parameters: str) -> Any:
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.get(f"{url}/api/v1/{path}", params=parameters)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]


def unordered(data: Any) -> Any:
    """Metadata, whatever the order in which it is told."""
    rows = (
        data
        if isinstance(data, list)
        else [{"metric": name, **one} for name, told in data.items() for one in told]
    )
    return Multiset(json.dumps(row, sort_keys=True) for row in rows)


async def test_metadata_is_what_the_prometheus_that_wrote_it_says(
    bus: Bus, pool: Pool, database_url: str, stack: Stack, targets: list[str]
) -> None:
    port = free_port()
    own, given = f"http://127.0.0.1:{port}", configuration(targets, port)
    async with serving(bus, database_url, port), prometheus(stack, given) as theirs:

        async def same() -> bool:
            told = unordered(await asked(theirs.url, "metadata"))
            return len(told) > 10 and unordered(await asked(own, "metadata")) == told

        await eventually(same, within_s=WITHIN_S)
        for query in (
            {"metric": "wait_seconds"},
            {"metric": "jobs_total"},
            {"metric": "absent"},
        ):
            theirs_told = unordered(await asked(theirs.url, "metadata", **query))
            assert unordered(await asked(own, "metadata", **query)) == theirs_told
        one = await asked(own, "metadata", limit="2", limit_per_metric="1")
        assert [len(told) for told in one.values()] == [1, 1]


@pytest.mark.parametrize("which", [0, 1], ids=["openmetrics", "text"])
async def test_a_targets_metadata_is_what_the_prometheus_that_wrote_it_says(
    bus: Bus, pool: Pool, database_url: str, stack: Stack, targets: list[str], which: int
) -> None:
    """Of targets that differ, remote write does not tell which said what."""
    port, target = free_port(), targets[which]
    own, given = f"http://127.0.0.1:{port}", configuration([target], port)
    async with serving(bus, database_url, port), prometheus(stack, given) as theirs:
        for query in (
            {"match_target": f'{{instance="{target}"}}'},
            {"match_target": '{job=~"j.*"}', "metric": "wait_seconds"},
            {"metric": "depth_bytes"},
        ):

            async def same(query: dict[str, str] = query) -> bool:
                told = unordered(await asked(theirs.url, "targets/metadata", **query))
                ours = unordered(await asked(own, "targets/metadata", **query))
                return bool(told) and ours == told

            await eventually(same, within_s=WITHIN_S)


def federating(port: int) -> str:
    return (
        "global: {scrape_interval: 1s}\nscrape_configs: [{job_name: federation,"
        " honor_labels: true, metrics_path: /federate, params: {'match[]': ['{job=~\"job-.*\"}']},"
        f" static_configs: [{{targets: ['127.0.0.1:{port}']}}]}}]\n"
    )


async def values(server: PeerServer | str, query: str) -> dict[str, str]:
    url = server if isinstance(server, str) else server.url
    found = await asked(url, "query", query=query)
    return {json.dumps(one["metric"], sort_keys=True): one["value"][1] for one in found["result"]}


async def test_a_prometheus_that_federates_gets_equal_values_and_the_types(
    bus: Bus, pool: Pool, database_url: str, stack: Stack, targets: list[str]
) -> None:
    """What does not change from scrape to scrape is the same on all three."""
    port = free_port()
    own = f"http://127.0.0.1:{port}"
    wanted = '{job=~"job-.*", __name__!~"scrape_.*|.*_created"}'
    async with serving(bus, database_url, port):
        async with (
            prometheus(stack, configuration(targets[:2], port)) as theirs,
            prometheus(stack, federating(port), out_of_order="1h") as central,
        ):

            async def same() -> bool:
                first = await values(theirs, wanted)
                return (
                    len(first) > 30
                    and await values(own, wanted) == first
                    and await values(central, wanted) == first
                    and len(await asked(own, "metadata")) > 8
                )

            await eventually(same, within_s=WITHIN_S)
            expected = {
                **dict.fromkeys(("jobs_total", "plain_total"), "counter"),
                **dict.fromkeys(("depth_bytes", "wait_seconds_cap"), "gauge"),
                "wait_seconds": "histogram",
                "size": "summary",
                "up": "unknown",
            }

            async def typed() -> bool:
                told = await asked(central.url, "metadata")
                types = {name: told[name][0]["type"] for name in expected if name in told}
                return types == expected

            await eventually(typed, within_s=WITHIN_S)
        async with httpx.AsyncClient(trust_env=False) as client:
            body = (await client.get(f"{own}/federate", params={"match[]": wanted})).text
    lines = [line.split()[2] for line in body.splitlines() if line.startswith("# TYPE")]
    assert len(lines) == len(set(lines))


async def test_samples_are_those_of_the_prometheus_whoever_restarts(
    bus: Bus, pool: Pool, database_url: str, stack: Stack, targets: list[str]
) -> None:
    """Ten shards, small requests, to two apis at once: all of it comes twice."""
    left, right = free_port(), free_port()
    given = configuration(targets, left, right, queue=", min_shards: 10, max_samples_per_send: 20")
    over = '{job=~"job-.*"}[1h]'

    async def samples(url: str, up_to_s: float | None = None) -> dict[str, list[Any]]:
        at = {} if up_to_s is None else {"time": str(up_to_s)}
        found = await asked(url, "query", query=over, **at)
        return {json.dumps(one["metric"], sort_keys=True): one["values"] for one in found["result"]}

    async def scraped(least: int) -> bool:
        found = await samples(theirs.url)
        return len(found) > 50 and max(map(len, found.values())) >= least

    async with serving(bus, database_url, right), prometheus(stack, given) as theirs:
        async with serving(bus, database_url, left):
            await eventually(lambda: scraped(3), within_s=WITHIN_S)
            await asyncio.to_thread(theirs.stop)
            await asyncio.to_thread(theirs.start)
            await eventually(lambda: scraped(6), within_s=WITHIN_S)
        await eventually(lambda: scraped(9), within_s=WITHIN_S)
        async with serving(bus, database_url, left):
            newest_s = max(rows[-1][0] for rows in (await samples(theirs.url)).values())

            async def all_there() -> bool:
                told = await samples(theirs.url, newest_s)
                for port in (left, right):
                    if await samples(f"http://127.0.0.1:{port}", newest_s) != told:
                        return False
                return True

            await eventually(all_there, within_s=WITHIN_S)
