"""The benchmark `ingest`: processor time per sample on the way from an agent to the database.

    publisher -> RabbitMQ, quorum queues, confirms -> vervet ingest -> commit -> ack

A run publishes as fast as the broker confirms. It ends when every sample is committed and a
checkpoint has written the tables; both are in the figures. With `queues all`, the evaluator's
queues get their copy of every message, as in service; with `queues ingest` they are unbound.

Peers get the same samples in the same run, turn by turn with ours: a host's tick is one message
there and one request here.
"""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from bench.figures import Figure, Options, Parameters
from bench.hosts import STEP_MS, Load
from bench.peers import PEERS, had, peer
from bench.pipeline import Run, pipeline
from services.clock import now_us
from tests.stack.process import Say
from tests.stack.session import Stack

BENCH = "ingest"
SYSTEM = "vervet"
SAMPLES_PER_MESSAGE = (50, 200, 500, 2000)
TARGETED = 500
"""Samples a message that the targets are about: what a host with all collectors has."""

SERIES = (10_000, 100_000)
"""The larger with messages of the targeted size only, unless all is asked for."""

FULL_SERIES = (10_000, 100_000, 1_000_000)
WORKERS = (2, 4)

MESSAGES = 10_000
"""In one run: seconds of work, beside which the kernel's ticks of 10 ms do not matter."""

PEERS_SAMPLES = 1_000_000
"""The same, of systems whose cost is per sample."""

MOST_SAMPLES = 5_000_000
WARM_UP_SHARE = 0.1
MARGIN_MS = 60_000

MOST_ALL_US = 1.5
"""Processor microseconds per sample in all processes together."""

MOST_PUBLISHER_US = 0.3
MOST_BY_PEER = {"victoria-metrics": 0.5, "prometheus": 0.2}
"""Broker, worker and database together, by the peer's server."""


class Measured(Protocol):
    """What can be loaded: our pipeline or a peer."""

    async def run(self, messages: int) -> Run: ...


@dataclass(frozen=True)
class Contender:
    """One system in one setting. queues: "" for a peer, which has none."""

    system: str
    samples: int
    series: int
    queues: str = ""
    workers: int = 1

    @property
    def messages(self) -> int:
        """In one run."""
        most = PEERS_SAMPLES if self.system in PEERS else MOST_SAMPLES
        return min(MESSAGES, most // self.samples)

    def parameters(self) -> Parameters:
        own = {"queues": self.queues, "workers": self.workers} if self.queues else {}
        return {"samples_per_message": self.samples, "series": self.series, **own}


def rounds(options: Options) -> list[list[Contender]]:
    """Who runs turn by turn with whom. Ratios are taken within a round."""
    everyone = [*PEERS] if options.full else ["victoria-metrics", "prometheus"]
    found = []
    for series in FULL_SERIES if options.full else SERIES:
        sizes = SAMPLES_PER_MESSAGE if options.full or series == SERIES[0] else (TARGETED,)
        for samples in sizes:
            plain = samples == TARGETED and series == SERIES[0]
            one = [Contender(SYSTEM, samples, series, "all")]
            if plain or options.full:
                one.append(Contender(SYSTEM, samples, series, "ingest"))
            peers = [*PEERS] if plain else everyone
            found.append(one + [Contender(system, samples, series) for system in peers])
            if plain:
                found += [[Contender(SYSTEM, samples, series, "all", n)] for n in WORKERS]
    return found


async def measure(stack: Stack, say: Say, options: Options) -> list[Figure]:
    """Every round, and what ours costs by what the peers do."""
    figures = []
    for contenders in rounds(options):
        runs = await _runs(stack, say, contenders, options.runs)
        figures += [one for who, found in runs.items() for one in figures_of(who, found)]
        figures += ratios(runs)
    return figures


async def _runs(
    stack: Stack, say: Say, contenders: Sequence[Contender], runs: int
) -> dict[Contender, list[Run]]:
    """The contenders' runs, in turns, so that what else the machine does falls on all alike."""
    measured: dict[Contender, list[Run]] = {}
    async with AsyncExitStack() as resources:
        systems = {
            one: await resources.enter_async_context(opened(stack, one, runs))
            for one in contenders
            if one.system == SYSTEM or had(stack, one.system, say)
        }
        for one, system in systems.items():
            say(f"{BENCH}: {_title(one)}: warming up")
            await system.run(_warm_up(one))
        for number in range(runs):
            for one, system in systems.items():
                run = await system.run(one.messages)
                measured.setdefault(one, []).append(run)
                say(
                    f"{BENCH}: {_title(one)}: run {number + 1} of {runs}:"
                    f" {server_us(run):.3f} µs a sample without the publisher,"
                    f" {run.samples / run.wall_s:,.0f} samples/s"
                )
    return measured


def _warm_up(one: Contender) -> int:
    """Messages before the first run: every host's series are known then."""
    return max(round(one.messages * WARM_UP_SHARE), _hosts(one))


def _hosts(one: Contender) -> int:
    return max(1, one.series // one.samples)


def _title(one: Contender) -> str:
    about = ", ".join(f"{name} {value}" for name, value in one.parameters().items())
    return f"{one.system}: {about}"


@asynccontextmanager
async def opened(stack: Stack, one: Contender, runs: int) -> AsyncIterator[Measured]:
    """The system, empty. Its samples end now, so that none is in the future."""
    hosts = _hosts(one)
    ticks = (_warm_up(one) + runs * one.messages) // hosts + 1
    load = Load.of(one.samples, hosts, now_us() // 1000 - ticks * STEP_MS - MARGIN_MS)
    if one.system in PEERS:
        async with peer(stack, one.system, load) as found:
            yield found
    else:
        evaluator = one.queues == "all"
        async with pipeline(stack, load, evaluator=evaluator, workers=one.workers) as ours:
            yield ours


def total_us(run: Run) -> float:
    return sum(run.cpu_s.values()) / run.samples * 1e6


def server_us(run: Run) -> float:
    """Without the publisher's share, which falls to the hosts that are watched."""
    return total_us(run) - run.cpu_s["publisher"] / run.samples * 1e6


def figures_of(one: Contender, runs: Sequence[Run]) -> list[Figure]:
    """The figures of one contender's runs."""
    ours = one.system == SYSTEM and one.samples == TARGETED

    def figure(
        name: str,
        values: Iterable[float],
        unit: str,
        at_most: float | None = None,
        **more: str,
    ) -> Figure:
        target = at_most if ours else None
        about = {**one.parameters(), **more}
        return Figure(BENCH, one.system, name, tuple(values), unit, about, target)

    processes = runs[0].cpu_s
    return [
        *(
            figure(
                "cpu_us_per_sample",
                (run.cpu_s[process] / run.samples * 1e6 for run in runs),
                "µs",
                MOST_PUBLISHER_US if process == "publisher" else None,
                process=process,
            )
            for process in processes
        ),
        figure("server_cpu_us_per_sample", map(server_us, runs), "µs"),
        figure("all_cpu_us_per_sample", map(total_us, runs), "µs", MOST_ALL_US),
        figure("messages_per_s", (run.messages / run.wall_s for run in runs), "1/s"),
        figure("samples_per_s", (run.samples / run.wall_s for run in runs), "1/s"),
        *(
            figure("peak_memory", (run.peak_mib[process] for run in runs), "MiB", process=process)
            for process in processes
        ),
    ]


def ratios(measured: Mapping[Contender, Sequence[Run]]) -> list[Figure]:
    """Ours by each peer of the same round, run by run; and with the evaluator's copies by without.

    Runs of one number were made one after another.
    """
    figures = []
    ours = [one for one in measured if one.system == SYSTEM]
    for one in ours:
        for other in (one for one in measured if one.system in PEERS):
            name = f"server_cpu_by_{other.system.replace('-', '_')}"
            target = MOST_BY_PEER.get(other.system) if one.samples == TARGETED else None
            values = _quotients(measured[one], measured[other])
            figures.append(Figure(BENCH, SYSTEM, name, values, "ratio", one.parameters(), target))
    by_queues = {one.queues: one for one in ours}
    if len(by_queues) > 1:
        copies, alone = by_queues["all"], by_queues["ingest"]
        values = _quotients(measured[copies], measured[alone])
        name = "server_cpu_by_ingest_queue_alone"
        figures.append(Figure(BENCH, SYSTEM, name, values, "ratio", copies.parameters()))
    return figures


def _quotients(ours: Sequence[Run], others: Sequence[Run]) -> tuple[float, ...]:
    return tuple(server_us(one) / server_us(other) for one, other in zip(ours, others, strict=True))
