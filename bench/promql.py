"""The benchmark `promql`: expressions as dashboards ask them, ours beside Debian's Prometheus.

A day of 100 hosts' processors, sealed and compacted, and 10,000 other series of its last minutes.
Each question is asked of a server that was started for it (cold), then again and again, each time a
step further back, so that nothing is answered from a cache of answers (warm).
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import httpx
import numpy as np

from bench.figures import Failed, Figure, Options, Parameters
from bench.history import History, fill_peer, ours
from bench.processes import cpu_of_all_s
from bench.query import HEADERS, TIMEOUT_S, Asked, Question, Server, ask
from bench.recording import Recording, read
from bench.replay import Replay
from schemas.layouts import Series
from tests import promqljudge
from tests.stack.peer_servers import PeerServer, prometheus_server
from tests.stack.process import Say
from tests.stack.session import Stack

BENCH = "promql"
OURS, THEIRS = "vervet", "prometheus"
STRETCH = 3
"""Of the recording's 5 s; a sample each 15 s is what is usual where a day is kept."""

HOSTS = 100
COPIES = 2
"""Of the recorded host's two processors: a host here has four."""

WIDE = 100
"""Further series of each host."""

DAY_S, MINUTES_S = 86_400, 600
TICK_S = 15
WINDOW_S = 300
STEP_MS = 60_000
"""Of the questions over a day; their windows are a multiple of it."""


class Asking(NamedTuple):
    """A question under its name. at_most: what it may cost as a share of Prometheus'."""

    name: str
    question: Question
    at_most: float


ASKINGS = (
    Asking("one_selector", Question("query", "bench_value", HOSTS * WIDE, "1h"), 1.0),
    Asking("topk", Question("query", "topk(10, bench_value)", 10, "1h"), 1.0),
    Asking(
        "sum_of_rates",
        Question("query_range", "sum by (mode) (rate(node_cpu_seconds_total[5m]))", 8, "24h"),
        1.0,
    ),
    Asking(
        "one_series",
        Question(
            "query_range",
            'node_cpu_seconds_total{instance="host-00007",cpu="0",mode="idle"}',
            1,
            "24h",
        ),
        2.0,
    ),
)


@dataclass(frozen=True)
class Named(History):
    """A history of hosts of another name."""

    prefix: str = "wide"

    def source(self, host: int) -> dict[str, str]:
        return {"job": "node", "instance": f"{self.prefix}-{host:05}"}


Serving = Callable[[], AbstractAsyncContextManager[Server]]
"""Starts a server that has the samples already."""


async def measure(stack: Stack, say: Say, options: Options) -> list[Figure]:
    """Fill both, then ask them turn by turn."""
    day = processors()
    wide = others(day)
    stored = day.samples() + wide.samples()
    say(f"{BENCH}: {stored:,} samples")
    figures = []
    async with ours(stack) as store:
        for history in (wide, day):
            await store.fill(history, say)
        say(f"{BENCH}: {OURS}: sealing")
        await store.seal(day)
        with prometheus_server(stack) as server:
            for history in (day, wide):  # it takes no sample older than the head that it has
                await fill_peer(THEIRS, server, history, say)

            @asynccontextmanager
            async def ours_again() -> AsyncIterator[Server]:
                async with store.answering() as (url, roots):
                    yield Server(OURS, f"{url}/api/v1", roots)

            both = {OURS: ours_again, THEIRS: lambda: _restarted(server)}
            for asking in ASKINGS:
                found = await asked(both, asking.question, day.end_ms / 1000, options.runs)
                figures += figures_of(asking, found, stored)
                said = ", ".join(f"{one} {runs[-1].cpu_ms:.2f}" for one, (_, runs) in found.items())
                say(f"{BENCH}: {asking.name}: ms {said}")
    return figures


@asynccontextmanager
async def _restarted(server: PeerServer) -> AsyncIterator[Server]:
    await asyncio.to_thread(server.stop)
    await asyncio.to_thread(server.start)
    yield Server(THEIRS, f"{server.url}/api/v1", {"server": [server.pid]})


def processors() -> History:
    """A day of the processors of HOSTS hosts, and a window more."""
    recorded = read()
    columns = [n for n, one in enumerate(recorded.series) if one.name == "node_cpu_seconds_total"]
    series = tuple(
        another_processor(recorded.series[column], copy)
        for copy in range(COPIES)
        for column in columns
    )
    values = np.ascontiguousarray(recorded.values[:, columns * COPIES])
    replay = Replay(Recording(series, recorded.at_ms, values), 0, stretch=STRETCH)
    return off_edges(History.of_whole_days(replay, HOSTS, (DAY_S + 2 * WINDOW_S) // TICK_S))


def off_edges(history: History) -> History:
    """The history some milliseconds later, so that no sample stands where a window may begin: it
    is in the window of a Prometheus 2, and not in that of a Prometheus 3."""
    replay = history.replay
    ticks = [replay.at_ms(host, 0, history.ticks) for host in range(history.hosts)]
    beside = set((np.concatenate(ticks) % STEP_MS).tolist())
    later_ms = next(ms for ms in range(STEP_MS) if (STEP_MS - ms) % STEP_MS not in beside)
    moved = replace(replay, start_ms=replay.start_ms + later_ms)
    return History(moved, history.hosts, history.ticks)


def another_processor(one: Series, copy: int) -> Series:
    """The series of another processor of the same host."""
    cpu = int(one.labels["cpu"]) + copy * 2
    return Series(one.name, {**one.labels, "cpu": str(cpu)}, one.type, one.unit)


def others(day: History) -> History:
    """WIDE series of HOSTS hosts, of the day's last minutes."""
    recorded = read()
    whole = np.flatnonzero(~recorded.absent().any(axis=0) & np.isfinite(recorded.values).all(0))
    values = np.ascontiguousarray(recorded.values[:, whole[:WIDE]])
    series = tuple(Series("bench_value", {"slot": f"{n:03}"}, "gauge") for n in range(WIDE))
    start_ms = day.end_ms - MINUTES_S * 1000
    replay = Replay(Recording(series, recorded.at_ms, values), start_ms, stretch=STRETCH)
    return Named(replay, HOSTS, MINUTES_S // TICK_S - 1)


Found = tuple[Asked, list[Asked]]
"""The first answer of a server, and runs of more."""


async def asked(
    both: dict[str, Serving], question: Question, end_s: float, runs: int
) -> dict[str, Found]:
    """What either server needs: alone, after its start; then in turns."""
    found: dict[str, Found] = {}
    async with both[OURS]() as first, both[THEIRS]() as second:
        servers = (first, second)
        answers = {}
        for server in servers:
            cold, answer = await asyncio.to_thread(first_answer, server, question, end_s)
            found[server.system], answers[server.system] = (cold, []), answer
        check(question, answers)
        for number in range(runs + 1):
            for server in servers:
                run = await asyncio.to_thread(ask, server, question, end_s)
                if number:
                    found[server.system][1].append(run)
    return found


def first_answer(server: Server, question: Question, end_s: float) -> tuple[Asked, httpx.Response]:
    """What the first of all questions costs."""
    with httpx.Client(timeout=TIMEOUT_S, trust_env=False, headers=HEADERS) as client:
        before, began = cpu_of_all_s(server.roots), time.monotonic()
        url = f"{server.api}/{question.path}"
        answer = client.get(url, params=question.parameters(end_s)).raise_for_status()
        waited_s = time.monotonic() - began
        used_s = sum(cpu_of_all_s(server.roots).values()) - sum(before.values())
    return Asked(used_s * 1000, waited_s * 1000), answer


def check(question: Question, answers: dict[str, httpx.Response]) -> None:
    """Raises Failed unless both answer the same, with as many series as there should be."""
    mine, theirs = (promqljudge.read(answers[one].json()) for one in (OURS, THEIRS))
    said = promqljudge.difference(mine, theirs)
    if said or len(mine.points) != question.series:
        raise Failed(f"{len(mine.points)} series of {question.series}: {question}: {said}")


def figures_of(asking: Asking, found: dict[str, Found], stored: int) -> list[Figure]:
    """Each system's cost and latency, warm and cold, and ours by Prometheus'."""
    figures: list[Figure] = []
    parameters = {"expression": asking.question.expression, "stored": stored}
    for name in Asked._fields:
        figures += _compared(
            asking.at_most,
            name.removesuffix("_ms"),
            {one: [getattr(run, name) for run in runs] for one, (_, runs) in found.items()},
            {**parameters, "state": "warm"},
        )
    # The kernel counts processor time in ticks of 10 ms: too coarse for one answer.
    first = {one: [cold.latency_ms] for one, (cold, _) in found.items()}
    return figures + _compared(None, "latency", first, {**parameters, "state": "cold"})


def _compared(
    at_most: float | None, name: str, values: dict[str, list[float]], about: Parameters
) -> list[Figure]:
    ratios = tuple(
        mine / max(theirs, 1e-9) for mine, theirs in zip(values[OURS], values[THEIRS], strict=True)
    )
    return [
        *(Figure(BENCH, one, name, tuple(found), "ms", about) for one, found in values.items()),
        Figure(BENCH, OURS, f"{name}_by_prometheus", ratios, "ratio", about, at_most),
    ]
