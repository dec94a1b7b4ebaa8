"""The benchmark `stalls`: for how long a request keeps all others waiting, however hostile it is.

The api process answers from one event loop. Here it runs as it comes, beside a task that wakes each
few milliseconds and notes how late it is. What another process had of the processors meanwhile does
not count: of each delay, what the api process itself worked.

`python -m bench.stalls LISTEN BROKER DATABASE` is that process. For each line on standard input it
tells the longest stall since the last one, in ms; it ends with its input.
"""

import asyncio
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

import httpx
from pydantic import SecretStr

from bench.figures import Failed, Figure, Options
from bench.history import History, Ours, ours
from bench.peers import answers
from bench.recording import read
from bench.replay import Replay
from services.api.service import serve
from services.api.settings import ApiSettings
from services.bus_rabbit import rabbit_bus
from services.clock import now_us
from services.runtime import Context
from tests.stack.process import Say, free_port
from tests.stack.remote_write import (
    HEADERS,
    compressed,
    encode_labels,
    encode_sample,
    time_series,
)
from tests.stack.session import Stack

BENCH = "stalls"
MOST_MS = 100.0
HOSTS = 98
"""Of 507 series each: as many series as one selector may select."""

TICKS, TICK_S = 20, 15
LOOK_S = 0.005
TIMEOUT_S = 60.0
START_TIMEOUT_S = 60.0
ONLY_GET = ("/api/v1/targets/metadata", "/federate")
CHARS = 16_384
"""The longest expression."""


class Hostile(NamedTuple):
    """A request that is much work, or looks so."""

    name: str
    path: str
    form: Mapping[str, str | Sequence[str]] = {}
    body: bytes = b""


def requests(end_s: float) -> list[Hostile]:
    """Of every kind that the api takes. What is much work is given 5 s."""
    at = {"time": f"{end_s}", "timeout": "5s"}
    over = {"start": f"{end_s - 300}", "end": f"{end_s}", "step": "5", "timeout": "5s"}
    every = '{job="node"}'

    def query(name: str, expression: str) -> Hostile:
        return Hostile(name, "/api/v1/query", {"query": expression, **at})

    def ranged(name: str, expression: str) -> Hostile:
        return Hostile(name, "/api/v1/query_range", {"query": expression, **over})

    now_ms = now_us() // 1000
    matchers = ",".join(f"a{n}!='b'" for n in range(1300))
    labels = encode_labels({"__name__": "many", "instance": "i", "job": "j"})
    return [
        query("a regular expression of open brackets", f'x{{a=~"{"[" * (CHARS - 20)}"}}'),
        query("a text of quotes", '"' + '\\"' * (CHARS // 2 - 1)),
        query("thousands of matchers", f"x{{{matchers}}}"),
        query("a large class of letters", r'x{a=~"\\pL{70}"}'),
        query("operators in a row", "+".join("1" * (CHARS // 2))),
        query("parentheses", "(" * CHARS),
        query("50,000 series", every),
        query("50,000 series, sorted", f'sort_by_label({every}, "mode", "cpu", "device")'),
        query("50,000 series by themselves", f"{every} and {every}"),
        query("50,000 values counted", f'count_values("value", {every})'),
        query("a heavy label_replace",
              f'label_replace({every}, "a", "$1$1", "instance", "(.*)(.*)")'),
        query("a subquery of milliseconds", "max_over_time(node_load1[1m:1ms])"),
        query("samples of thousands of series", "node_cpu_seconds_total[5m]"),
        ranged("50,000 series over time", every),
        ranged("a quantile over windows", "quantile_over_time(0.5, node_cpu_seconds_total[5m])"),
        Hostile("format_query", "/api/v1/format_query",
                {"query": "sum(" * 50 + f"x{{{matchers}}}" + ")" * 50}),
        Hostile("parse_query", "/api/v1/parse_query",
                {"query": 'label_join(a, "b", ","' + ', "a"' * 3000 + ")"}),
        Hostile("series", "/api/v1/series", {"match[]": every}),
        Hostile("series, a hundred selectors", "/api/v1/series",
                {"match[]": [f'node_load1{{a!="{n}"}}' for n in range(100)]}),
        Hostile("labels", "/api/v1/labels", {"match[]": every}),
        Hostile("targets/metadata", "/api/v1/targets/metadata"),
        Hostile("federate", "/federate", {"match[]": every}),
        Hostile("a form of escapes", "/api/v1/query", body=b"query=" + b"%41" * 349_000),
        Hostile("remote write, new series", "/api/v1/write", body=compressed(b"".join(
            time_series(encode_labels({"__name__": f"m{n}", "instance": "i", "job": "j"}),
                        encode_sample(1.0, now_ms)) for n in range(20_000)))),
        Hostile("remote write, a bomb", "/api/v1/write", body=compressed(time_series(
            encode_labels({"__name__": "b", "instance": "i", "job": "j", "long": "x" * 20_000_000}),
            encode_sample(1.0, now_ms)))),
        Hostile("remote write, samples of one series", "/api/v1/write", body=compressed(
            time_series(labels, b"".join(encode_sample(1.0, now_ms - n) for n in range(500_000))))),
    ]  # fmt: skip


async def measure(stack: Stack, say: Say, options: Options) -> list[Figure]:
    """Ask for everything, one after the other, again and again."""
    replay = Replay(read(), now_us() // 1000 - TICKS * TICK_S * 1000, stretch=3)
    history = History(replay, HOSTS, TICKS)
    async with ours(stack) as store:
        await store.fill(history, say)
        hostile = requests(history.end_ms / 1000)
        stalls: dict[str, list[float]] = {one.name: [] for one in hostile}
        async with watched(store) as (process, client):
            for _ in range(options.runs):
                for one in hostile:
                    await longest_ms(process)
                    status = await ask(client, one)
                    stalls[one.name].append(await longest_ms(process))
                    say(f"{BENCH}: {one.name}: {status}: {stalls[one.name][-1]:.0f} ms")
    return [
        Figure(BENCH, "vervet", "stall", tuple(found), "ms", {"request": name}, MOST_MS)
        for name, found in stalls.items()
    ]


async def ask(client: httpx.AsyncClient, one: Hostile) -> int:
    """The status of the answer. Raises Failed for an error of the server's."""
    if one.path.endswith("/write"):
        answer = await client.post(one.path, content=one.body, headers=HEADERS)
    elif one.body or one.path not in ONLY_GET:
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        content = one.body or str(httpx.QueryParams(one.form)).encode()
        answer = await client.post(one.path, content=content, headers=kind)
    else:
        answer = await client.get(one.path, params=one.form)
    if answer.status_code in (404, 405, 500):
        raise Failed(f"{one.name}: {answer.status_code}: {answer.text[:300]}")
    return answer.status_code


@asynccontextmanager
async def watched(store: Ours) -> AsyncIterator[tuple[Process, httpx.AsyncClient]]:
    """The api with its watch, in a process of its own, and a client of it."""
    listen = f"127.0.0.1:{free_port()}"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.stalls", listen, store.broker_url, store.database_url),
        stdin=PIPE,
        stdout=PIPE,
    )
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not await asyncio.to_thread(answers, f"http://{listen}/-/ready"):
            if time.monotonic() > deadline or process.returncode is not None:
                raise Failed("the api is not ready")
            await asyncio.sleep(LOOK_S)
        async with httpx.AsyncClient(
            base_url=f"http://{listen}", timeout=TIMEOUT_S, trust_env=False
        ) as client:
            yield process, client
    finally:
        process.stdin.close()
        await process.wait()


async def longest_ms(process: Process) -> float:
    """The longest stall since it was last asked for."""
    process.stdin.write(b"\n")
    return float(await process.stdout.readline())


class Watch:
    """Wakes every LOOK_S, and keeps by how much it was late."""

    def __init__(self) -> None:
        self._longest_s = 0.0

    async def run(self) -> None:
        while True:
            began_s, worked_s = time.perf_counter(), time.process_time()
            await asyncio.sleep(LOOK_S)
            late_s = time.perf_counter() - began_s - LOOK_S
            self._longest_s = max(self._longest_s, min(late_s, time.process_time() - worked_s))

    def taken_ms(self) -> float:
        longest_s, self._longest_s = self._longest_s, 0.0
        return longest_s * 1000


async def main(listen: str, broker_url: str, database_url: str) -> None:
    watch = Watch()
    settings = ApiSettings(database_url=SecretStr(database_url), listen=listen, remote_write=True)
    async with rabbit_bus(broker_url, name="bench") as bus, asyncio.TaskGroup() as group:
        context = Context(bus)
        watching = group.create_task(watch.run(), name="watch")
        group.create_task(serve(settings, context), name="api")
        while await asyncio.to_thread(sys.stdin.readline):
            print(watch.taken_ms(), flush=True)
        context.stopping.set()
        watching.cancel()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
