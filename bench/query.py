"""The benchmark `query`: what reading a range costs, over HTTP, ours beside the peers'.

A week of history that all systems have sealed or compacted. Each question is asked again and again
by one client, at other ends of the range in turn, so that no cache of answers serves them:
processor time of the server and all that works for it, and latency as the client sees it.
"""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import httpx
import numpy as np

from bench.disk import PEERS
from bench.figures import Failed, Figure, Options
from bench.history import History, fill_peer, ours
from bench.processes import Roots, cpu_of_all_s
from bench.recording import Recording, read
from bench.replay import Replay, collectors, resized
from schemas.layouts import Series
from tests.stack.process import Say
from tests.stack.session import Stack

BENCH = "query"
SYSTEM = "vervet"
STRETCH = 3
"""Of the recording's 5 s; a sample each 15 s is what is usual where a week is kept."""

SERIES = 250
HOSTS, FULL_HOSTS = 1, 10
"""10^7 and 10^8 samples."""

DAYS = 7
DAY_S = 86_400
HOUR_S = 3600
MANY = 100
SLOT = "slot"
"""The label that chooses one series, or a hundred of a few collectors."""

STEPS_S = {"1h": 15, "24h": 60, "7d": 600}
SPANS_S = {"1h": HOUR_S, "24h": DAY_S, "7d": DAYS * DAY_S}
LEAST_S = 0.7
"""A run asks for at least so long, and at least LEAST times."""

LEAST, MOST = 5, 500
ENDS = 40
"""Different ends of the range that are asked for in turn."""

TIMEOUT_S = 60.0
MOST_BY_PROMETHEUS = 1.0
COMPARED = ("prometheus", "victoria-metrics")
HEADERS = {"Accept-Encoding": "identity"}


class Question(NamedTuple):
    """Something to ask: of `series` series, over `span`."""

    path: str
    expression: str
    series: int
    span: str

    def parameters(self, end_s: float) -> dict[str, str]:
        asked = {"query": self.expression, "nocache": "1"}
        if self.path == "query":
            return {**asked, "time": f"{end_s:.3f}"}
        step, span = STEPS_S[self.span], SPANS_S[self.span]
        end_s -= end_s % step
        return {**asked, "start": f"{end_s - span:.3f}", "end": f"{end_s:.3f}", "step": f"{step}s"}

    @property
    def step_s(self) -> int:
        return STEPS_S[self.span]


class Asked(NamedTuple):
    """One run: per query, what the processors worked and the client waited, in ms."""

    cpu_ms: float
    latency_ms: float


@dataclass(frozen=True)
class Server:
    """A system that answers. api: where Prometheus' HTTP API is."""

    system: str
    api: str
    roots: Roots


def questions() -> list[Question]:
    """Ranges as a panel asks for them, and the stored samples of an hour as they are."""
    found = []
    for series, slot in ((1, "one"), (MANY, "one|many")):
        selector = f'{{instance="host-00000",{SLOT}=~"{slot}"}}'
        found += [Question("query_range", selector, series, span) for span in SPANS_S]
        found.append(Question("query", f"{selector}[1h]", series, "1h"))
    return found


async def measure(stack: Stack, say: Say, options: Options) -> list[Figure]:
    """Fill every system, then ask them turn by turn."""
    history = week(options)
    stored = history.samples()
    say(f"{BENCH}: {stored:,} samples of {history.hosts * SERIES} series over {DAYS} days")
    async with AsyncExitStack() as resources:
        servers = [
            await resources.enter_async_context(filled(stack, system, history, say))
            for system in (SYSTEM, *COMPARED)
        ]
        figures = []
        for question in questions():
            await agree(servers, question, history.end_ms / 1000)
            runs = await asked(servers, question, history.end_ms / 1000, options.runs)
            figures += figures_of(question, runs, stored)
            said = ", ".join(f"{system} {run[-1].cpu_ms:.2f}" for system, run in runs.items())
            say(f"{BENCH}: {question.path}, {question.series} series, {question.span}: ms {said}")
    return figures


def week(options: Options) -> History:
    """What is stored: 10^7 samples, or 10^8."""
    replay = Replay(labelled(resized(read(), SERIES)), 0, stretch=STRETCH)
    ticks = DAYS * DAY_S * 1000 // replay.interval_ms
    return History.of_whole_days(replay, FULL_HOSTS if options.full else HOSTS, ticks)


def labelled(recording: Recording) -> Recording:
    """The recording with a label on its first hundred series, collector by collector."""
    order = np.concatenate(list(collectors(recording.series).values()))[:MANY]
    slots = {int(column): "many" for column in order} | {int(order[0]): "one"}
    series = tuple(
        Series(one.name, {**one.labels, SLOT: slots[column]} if column in slots else one.labels,
               one.type, one.unit)
        for column, one in enumerate(recording.series)
    )  # fmt: skip
    return Recording(series, recording.at_ms, recording.values)


@asynccontextmanager
async def filled(stack: Stack, system: str, history: History, say: Say) -> AsyncIterator[Server]:
    """A system with the history, compacted, and its processes."""
    say(f"{BENCH}: {system}: filling")
    if system == SYSTEM:
        async with ours(stack) as store:
            await store.fill(history, say)
            say(f"{BENCH}: {system}: sealing")
            await store.seal(history)
            async with store.answering() as (url, roots):
                yield Server(system, f"{url}/api/v1", roots)
    else:
        with PEERS[system].serve(stack) as server:
            await fill_peer(system, server, history, say)
            yield Server(system, f"{server.url}/api/v1", {"server": [server.pid]})


async def asked(
    servers: Sequence[Server], question: Question, end_s: float, runs: int
) -> dict[str, list[Asked]]:
    """Each server's runs, in turns; the first run of each, which warms it up, is not kept."""
    found: dict[str, list[Asked]] = {server.system: [] for server in servers}
    for number in range(runs + 1):
        for server in servers:
            run = await asyncio.to_thread(ask, server, question, end_s)
            if number:
                found[server.system].append(run)
    return found


def ask(server: Server, question: Question, end_s: float) -> Asked:
    """Ask for a while."""
    waited: list[float] = []
    with httpx.Client(timeout=TIMEOUT_S, trust_env=False, headers=HEADERS) as client:
        before, began = cpu_of_all_s(server.roots), time.monotonic()
        while len(waited) < LEAST or time.monotonic() - began < LEAST_S:
            if len(waited) == MOST:
                break
            asked_at = time.monotonic()
            back = len(waited) % ENDS
            _get(client, server, question, end_s - back * question.step_s)
            waited.append((time.monotonic() - asked_at) * 1000)
        used = sum(cpu_of_all_s(server.roots).values()) - sum(before.values())
    return Asked(used / len(waited) * 1000, statistics.median(waited))


async def agree(servers: Sequence[Server], question: Question, end_s: float) -> None:
    """Raises Failed unless ours answers as Prometheus does, and none lacks a series.

    VictoriaMetrics fills gaps and rounds in ways of its own: its numbers are not compared.
    """
    found = {}
    for server in servers:
        with httpx.Client(timeout=TIMEOUT_S, trust_env=False, headers=HEADERS) as client:
            answer = await asyncio.to_thread(_get, client, server, question, end_s)
        found[server.system] = numbers(answer.json()["data"]["result"])
        if len(found[server.system]) != question.series:
            raise Failed(
                f"{server.system} answers {len(found[server.system])} series of"
                f" {question.series}: {question}"
            )
    if found[SYSTEM] != found["prometheus"]:
        raise Failed(f"vervet and prometheus answer differently: {question}")


def numbers(result: Sequence[Mapping[str, Any]]) -> dict[tuple[tuple[str, str], ...], Any]:
    """Instants in ms and values by labels."""
    return {
        tuple(sorted(series["metric"].items())): [
            (round(at * 1000), float(value)) for at, value in series["values"]
        ]
        for series in result
    }


def figures_of(
    question: Question, runs: Mapping[str, Sequence[Asked]], stored: int
) -> list[Figure]:
    """Each system's cost and latency, and ours by Prometheus'."""
    figures = []
    parameters = {
        "api": question.path, "series": question.series, "range": question.span, "stored": stored,
    }  # fmt: skip
    for system, found in runs.items():
        for name in Asked._fields:
            values = tuple(getattr(run, name) for run in found)
            figures.append(
                Figure(BENCH, system, name.removesuffix("_ms"), values, "ms", parameters)
            )
    for name in Asked._fields:
        for other in COMPARED:
            values = tuple(
                getattr(one, name) / max(getattr(two, name), 1e-9)
                for one, two in zip(runs[SYSTEM], runs[other], strict=True)
            )
            what = f"{name.removesuffix('_ms')}_by_{other.replace('-', '_')}"
            target = MOST_BY_PROMETHEUS if other == "prometheus" else None
            figures.append(Figure(BENCH, SYSTEM, what, values, "ratio", parameters, target))
    return figures


def _get(client: httpx.Client, server: Server, question: Question, end_s: float) -> httpx.Response:
    url = f"{server.api}/{question.path}"
    answer = client.get(url, params=question.parameters(end_s))
    if not answer.is_success:
        raise Failed(f"{server.system} answered {answer.status_code}: {answer.text[:500]}")
    return answer
