"""The benchmark `ingest`: processor time per sample on the way from an agent to the database.

    publisher -> RabbitMQ, quorum queues, confirms -> vervet ingest -> commit -> ack

A run publishes as fast as the broker confirms. It ends when every sample is committed and a
checkpoint has written the tables; both are in the figures. With `queues all`, the evaluator's
queues get their copy of every message, as in service; with `queues ingest` they are unbound.
"""

from collections.abc import Iterable, Sequence

from bench.figures import Figure, Parameters
from bench.pipeline import Pipeline, Run, pipeline
from tests.stack.process import Say
from tests.stack.session import Stack

BENCH = "ingest"
SYSTEM = "vervet"
SAMPLES_PER_MESSAGE = (50, 200, 500, 2000)
QUEUES = {"all": True, "ingest": False}

MESSAGES = 10_000
"""In one run: seconds of work, beside which the kernel's ticks of 10 ms do not matter."""

WARM_UP_MESSAGES = 1_000

TARGET = {("all", 500): 1.5, ("ingest", 500): 1.5}
"""Processor microseconds per sample in all processes together."""


async def measure(stack: Stack, say: Say, runs: int) -> list[Figure]:
    """Every size of message, with and without the evaluator's queues."""
    figures = []
    for queues, evaluator in QUEUES.items():
        for samples in SAMPLES_PER_MESSAGE:
            what = f"ingest: {samples} samples a message, queues {queues}"
            async with pipeline(stack, samples, evaluator=evaluator) as opened:
                measured = await _runs(opened, say, what, runs)
            parameters: Parameters = {"samples_per_message": samples, "queues": queues}
            figures += figures_of(measured, parameters, TARGET.get((queues, samples)))
    return [*figures, *ratios(figures)]


async def _runs(opened: Pipeline, say: Say, what: str, runs: int) -> list[Run]:
    say(f"{what}: warming up")
    await opened.run(WARM_UP_MESSAGES)
    measured = []
    for number in range(runs):
        run = await opened.run(MESSAGES)
        measured.append(run)
        say(
            f"{what}: run {number + 1} of {runs}: {total_us(run):.3f} µs a sample,"
            f" {run.samples / run.wall_s:,.0f} samples/s"
        )
    return measured


def total_us(run: Run) -> float:
    return sum(run.cpu_s.values()) / run.samples * 1e6


def server_us(run: Run) -> float:
    """Without the publisher's share, which falls to the hosts that are watched."""
    return total_us(run) - run.cpu_s["publisher"] / run.samples * 1e6


def figures_of(runs: Sequence[Run], parameters: Parameters, target: float | None) -> list[Figure]:
    """The figures of runs that had the same parameters."""

    def figure(
        name: str,
        values: Iterable[float],
        unit: str,
        at_most: float | None = None,
        **more: str,
    ) -> Figure:
        return Figure(BENCH, SYSTEM, name, tuple(values), unit, {**parameters, **more}, at_most)

    processes = runs[0].cpu_s
    return [
        *(
            figure(
                "cpu_us_per_sample",
                (run.cpu_s[process] / run.samples * 1e6 for run in runs),
                "µs",
                process=process,
            )
            for process in processes
        ),
        figure("server_cpu_us_per_sample", map(server_us, runs), "µs"),
        figure("all_cpu_us_per_sample", map(total_us, runs), "µs", target),
        figure("messages_per_s", (run.messages / run.wall_s for run in runs), "1/s"),
        figure("samples_per_s", (run.samples / run.wall_s for run in runs), "1/s"),
        *(
            figure("peak_memory", (run.peak_mib[process] for run in runs), "MiB", process=process)
            for process in processes
        ),
    ]


def ratios(figures: Sequence[Figure]) -> list[Figure]:
    """What the evaluator's copies cost: all processes with them, by all without."""
    found = {
        (one.parameters["queues"], one.parameters["samples_per_message"]): one.value
        for one in figures
        if one.figure == "all_cpu_us_per_sample"
    }
    return [
        Figure(
            BENCH,
            SYSTEM,
            "all_by_ingest_queue_alone",
            (value / found["ingest", samples],),
            "ratio",
            {"samples_per_message": samples},
        )
        for (queues, samples), value in found.items()
        if queues == "all" and ("ingest", samples) in found
    ]
