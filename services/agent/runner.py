"""Runs collectors: times each, keeps the error or the wait of one from the others, marks it."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import structlog

from schemas.errors import Invalid
from services.agent.collectors import Collector, Host, Options, Reading, gauge
from services.agent.columns import Columns, Layout
from services.agent.hand import Hand

log = structlog.get_logger("vervet.agent")

SUCCESS = gauge("node_scrape_collector_success", "Whether a collector succeeded.", "collector")
DURATION = gauge(
    "node_scrape_collector_duration_seconds", "Duration of a collector's reading.", "collector"
)

PATIENCE_S = 5.0
"""How long a collector may take before the tick goes on without it."""


@dataclass
class Station:
    """One collector at work: its options, its layout, and what is wrong with it."""

    collector: Collector
    options: Options
    interval: timedelta
    layout: Layout = field(init=False)
    trouble: str | None = None
    stuck: "asyncio.Task[tuple[list[Reading], float]] | None" = None

    def __post_init__(self) -> None:
        self.layout = Layout(self.collector.name)


class Runner:
    """Reads collectors one after another on a hand; a new hand when one of them holds it."""

    def __init__(
        self, stations: Mapping[str, Station], host: Host, patience_s: float = PATIENCE_S
    ) -> None:
        self._stations = stations
        self._host = host
        self._patience_s = patience_s
        self._hand = Hand("collectors")

    async def tick(self, names: Sequence[str], at_us: int) -> list[Columns]:
        """The frames of these collectors as of one instant, in order."""
        return [await self._one(self._stations[name], at_us) for name in names]

    def rest(self) -> None:
        self._hand.rest()

    async def _one(self, station: Station, at_us: int) -> Columns:
        name = station.collector.name
        started = time.perf_counter()
        try:
            readings, seconds = await self._read(station)
            own = [SUCCESS(1, name), DURATION(seconds, name)]
            columns = station.layout.columns([*readings, *own], at_us)
        except Exception as error:  # noqa: BLE001 - whatever it raises is this collector's alone
            self._tell(station, _reason(error))
            own = [SUCCESS(0, name), DURATION(time.perf_counter() - started, name)]
            return station.layout.partial(own, at_us)
        self._tell(station, None)
        return columns

    async def _read(self, station: Station) -> tuple[list[Reading], float]:
        """The readings and the seconds that they took. Raises what the collector raises, and
        TimeoutError for one that is not back from an earlier tick."""
        if station.stuck is not None and not station.stuck.done():
            raise TimeoutError("has not come back from an earlier tick")
        task = asyncio.create_task(
            self._hand.do(lambda: _timed(station, self._host)), name=station.collector.name
        )
        done, _ = await asyncio.wait({task}, timeout=self._patience_s)
        if not done:
            station.stuck = task
            self._hand.rest()
            self._hand = Hand("collectors")
            raise TimeoutError(f"took more than {self._patience_s:g} s")
        return task.result()

    def _tell(self, station: Station, trouble: str | None) -> None:
        """Log when a collector begins to fail, fails otherwise, and is well again."""
        if trouble == station.trouble:
            return
        station.trouble = trouble
        if trouble is None:
            log.info("collector reads again", collector=station.collector.name)
        else:
            log.warning("collector failed", collector=station.collector.name, reason=trouble)


def _timed(station: Station, host: Host) -> tuple[list[Reading], float]:
    started = time.perf_counter()
    readings = list(station.collector.read(host, station.options))
    return readings, time.perf_counter() - started


def _reason(error: Exception) -> str:
    """What a person can act on: OSErrors and our own name what they met."""
    if isinstance(error, OSError | Invalid):
        return str(error)
    return f"{type(error).__name__}: {error}"
