"""The benchmark `growth`: what a sample and an answer cost when there is 10 and 100 times as much.

Once with history stored before, sealed, at an equal number of series; once with more series. The
stores are filled first and loaded in turns, so that what else the machine does falls on all alike.
Without the evaluator's queues: what nobody takes from them the broker writes again when its log is
full, which costs half as much again in some runs, and does not depend on what is stored.
Figures become plots in docs/growth/.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from bench.disk import RAW, sizes
from bench.figures import Figure, Options
from bench.history import History, Ours, ours
from bench.hosts import STEP_MS, Load
from bench.ingest import server_us
from bench.pipeline import Pipeline, pipeline
from bench.plot import plot
from bench.query import Question, Server, ask, week
from services.clock import now_us
from tests.stack.process import Say
from tests.stack.session import Stack

BENCH = "growth"
SYSTEM = "vervet"
FACTORS = (1, 10, 100)
PLOTS = Path(__file__).parents[1] / "docs" / "growth"

SAMPLES_A_MESSAGE = 500
STORED_SERIES = 10_000
"""Of the load, beside any size of history."""

SERIES, FULL_SERIES = 1_000, 10_000
"""Of the load, times a factor, with nothing stored before."""

MESSAGES = 4_000
FURTHER_RUNS = 2
"""In one run of four or so the broker writes its queues' segments, which doubles its share."""

MARGIN_MS = 60_000
MOST_GROWTH = 1.2
"""Ingest's cost per sample with 100 times as much stored, by that with once."""


class Size(NamedTuple):
    """One store. axis: what of it grows, `stored` or `series`."""

    axis: str
    factor: int

    @property
    def parameters(self) -> dict[str, str | int]:
        return {"axis": self.axis, "factor": self.factor}


class Sized(NamedTuple):
    """A store of that size, ready to be loaded and asked."""

    size: Size
    store: Ours
    pipeline: Pipeline
    api: Server
    question: Question
    end_s: float
    empty_bytes: int


async def measure(stack: Stack, say: Say, options: Options) -> list[Figure]:
    """Both axes; the plots are written as well."""
    options = replace(options, runs=options.runs + FURTHER_RUNS)
    figures = []
    for axis in ("stored", "series"):
        async with AsyncExitStack() as resources:
            opened = []
            for factor in FACTORS:
                size = Size(axis, factor)
                say(f"{BENCH}: {axis} ×{factor}: filling")
                make = stored if axis == "stored" else many_series
                opened.append(await resources.enter_async_context(make(stack, say, size, options)))
            figures += await _measured(opened, say, options.runs)
    for name, drawn in plots(figures).items():
        PLOTS.mkdir(parents=True, exist_ok=True)
        (PLOTS / f"{name}.svg").write_text(drawn)
    return figures


@asynccontextmanager
async def stored(stack: Stack, say: Say, size: Size, options: Options) -> AsyncIterator[Sized]:
    """A store with history of a share of a week, sealed: as long as the factor says."""
    whole = week(options)
    history = History.of_whole_days(
        whole.replay, whole.hosts, whole.ticks * size.factor // FACTORS[-1]
    )
    async with ours(stack) as store:
        empty_bytes = await _raw_bytes(store)
        await store.fill(history, say)
        await store.seal(history)
        question = Question("query_range", '{instance="host-00000",slot="one"}', 1, "1h")
        async with opened(stack, store, STORED_SERIES, options.runs) as (loaded, api):
            yield Sized(size, store, loaded, api, question, history.end_ms / 1000, empty_bytes)


@asynccontextmanager
async def many_series(stack: Stack, say: Say, size: Size, options: Options) -> AsyncIterator[Sized]:
    """An empty store; its load will have as many series as the factor says."""
    series = (FULL_SERIES if options.full else SERIES) * size.factor
    async with ours(stack) as store, opened(stack, store, series, options.runs) as (loaded, api):
        one = loaded.load.parts[0].series[0]
        labels = {"instance": "host-00000", **one.labels}
        matchers = ",".join(f'{name}="{value}"' for name, value in labels.items())
        question = Question("query", f"{one.name}{{{matchers}}}", 1, "1h")
        say(f"{BENCH}: {series} series")
        yield Sized(size, store, loaded, api, question, newest_ms(loaded.load, options) / 1000, 0)


@asynccontextmanager
async def opened(
    stack: Stack, store: Ours, series: int, runs: int
) -> AsyncIterator[tuple[Pipeline, Server]]:
    """A pipeline into the store, and its api."""
    hosts = max(1, series // SAMPLES_A_MESSAGE)
    lasts_ms = ticks_of(hosts, runs) * STEP_MS
    load = Load.of(SAMPLES_A_MESSAGE, hosts, now_us() // 1000 - lasts_ms - MARGIN_MS)
    url = store.database_url
    async with (
        pipeline(stack, load, evaluator=False, database_url=url) as loaded,
        store.answering() as (api, roots),
    ):
        yield loaded, Server(SYSTEM, f"{api}/api/v1", roots)


def warm_up(hosts: int) -> int:
    """Messages before the first run: every host has its turn."""
    return max(hosts, MESSAGES // 10)


def ticks_of(hosts: int, runs: int) -> int:
    """Of each host, in all runs."""
    return (runs * MESSAGES + warm_up(hosts)) // hosts + 1


def newest_ms(load: Load, options: Options) -> int:
    """When the load's last samples are, once it has run."""
    return load.first_ms + ticks_of(load.hosts, options.runs) * STEP_MS


async def _measured(opened: Sequence[Sized], say: Say, runs: int) -> list[Figure]:
    """The figures of an axis: each size's, and how much they grow."""
    found: dict[str, dict[Size, tuple[float, ...]]] = {}
    if opened[0].size.axis == "stored":
        found["bytes_per_sample"] = {one.size: (await _bytes(one),) for one in opened}
    found["server_cpu_us_per_sample"] = await _ingest(opened, say, runs)
    found["query_cpu"] = await _query(opened, runs)
    return [one for name, by_size in found.items() for one in figures_of(name, by_size)]


async def _bytes(one: Sized) -> float:
    """Of a stored sample, rollups and empty tables apart."""
    stored: int = await one.store.connection.fetchval("select sum(samples)::bigint from agents")
    return (await _raw_bytes(one.store) - one.empty_bytes) / stored


async def _raw_bytes(store: Ours) -> int:
    parts, _ = await sizes(store)
    return sum(parts[part] for part in RAW)


async def _ingest(opened: Sequence[Sized], say: Say, runs: int) -> dict[Size, tuple[float, ...]]:
    """Processor time per sample, µs, without the publisher's."""
    for one in opened:
        await one.pipeline.run(warm_up(one.pipeline.load.hosts))
    found: dict[Size, list[float]] = {one.size: [] for one in opened}
    for number in range(runs):
        # To and fro, so that what drifts falls on all alike.
        for one in opened if number % 2 == 0 else reversed(opened):
            run = await one.pipeline.run(MESSAGES)
            found[one.size].append(server_us(run))
            size = f"{one.size.axis} ×{one.size.factor}"
            shares = ", ".join(
                f"{name} {used / run.samples * 1e6:.3f}" for name, used in run.cpu_s.items()
            )
            say(f"{BENCH}: {size}: run {number + 1} of {runs}: µs a sample: {shares}")
    return {size: tuple(costs) for size, costs in found.items()}


async def _query(opened: Sequence[Sized], runs: int) -> dict[Size, tuple[float, ...]]:
    """Processor time of an answer, ms; the first run warms up."""
    found: dict[Size, list[float]] = {one.size: [] for one in opened}
    for _ in range(runs + 1):
        for one in opened:
            asked = await asyncio.to_thread(ask, one.api, one.question, one.end_s)
            found[one.size].append(asked.cpu_ms)
    return {size: tuple(times[1:]) for size, times in found.items()}


UNITS = {"bytes_per_sample": "B", "server_cpu_us_per_sample": "µs", "query_cpu": "ms"}


def figures_of(name: str, by_size: Mapping[Size, tuple[float, ...]]) -> list[Figure]:
    """A figure at every size, and the largest by the smallest, run by run."""
    figures = [
        Figure(BENCH, SYSTEM, name, values, UNITS[name], size.parameters)
        for size, values in by_size.items()
    ]
    first, last = min(by_size), max(by_size)
    grown = tuple(b / a for a, b in zip(by_size[first], by_size[last], strict=True))
    targeted = name == "server_cpu_us_per_sample" and last.axis == "stored"
    target = MOST_GROWTH if targeted else None
    about = {"axis": last.axis, "factor": last.factor}
    return [*figures, Figure(BENCH, SYSTEM, f"{name}_by_x1", grown, "ratio", about, target)]


TITLES = {
    "server_cpu_us_per_sample": "ingest: µs of processor per sample",
    "query_cpu": "one series: ms of processor for an answer",
    "bytes_per_sample": "disk: bytes per sample",
}
NAMES = {"stored": "times the stored samples", "series": "times the series"}


def plots(figures: Sequence[Figure]) -> dict[str, str]:
    """By name the SVG of each figure."""
    drawn = {}
    for name, title in TITLES.items():
        lines = {}
        for axis, said in NAMES.items():
            points = [
                (float(one.parameters["factor"]), one.value)
                for one in figures
                if one.figure == name and one.parameters["axis"] == axis
            ]
            if points:
                lines[said] = points
        if lines:
            drawn[name] = plot(title, lines)
    return drawn
