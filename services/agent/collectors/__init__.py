"""Collectors: what an agent can read. One decorated function per subject, in a module of its own.

    LOAD1 = gauge("node_load1", "1m load average.")

    @collector("loadavg")
    def loadavg(host: Host, options: Options) -> Iterator[Reading]:
        yield LOAD1(float(host.proc("loadavg").read_text().split()[0]))

A collector does not time itself and catches no error that spoils all of it: the runner does both,
and marks only this collector. Another package adds one by an entry point of the group
`vervet.collectors` that names such a module.
"""

import importlib
import pkgutil
import re
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import structlog
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from schemas.durations import Duration, format_duration
from schemas.layouts import SeriesType
from services.agent.spool import SpoolStats

log = structlog.get_logger("vervet.agent")

ENTRY_POINTS = "vervet.collectors"


@dataclass(frozen=True)
class Metric:
    """A metric's name, type, unit, help, and the names of its labels in order."""

    name: str
    type: SeriesType
    help: str
    labels: tuple[str, ...] = ()
    unit: str = ""

    def __call__(self, value: float, *labels: str) -> "Reading":
        return Reading(self, labels, value)


class Reading(NamedTuple):
    """One value of one series: the values of the metric's labels, in their order."""

    metric: Metric
    labels: tuple[str, ...]
    value: float


def gauge(name: str, text: str, *labels: str) -> Metric:
    """A metric that goes up and down; its unit is the one that its name ends in."""
    return Metric(name, "gauge", text, labels, _unit(name))


def counter(name: str, text: str, *labels: str) -> Metric:
    """A metric that only grows; its unit is the one that its name ends in."""
    return Metric(name, "counter", text, labels, _unit(name.removesuffix("_total")))


def _unit(name: str) -> str:
    word = name.rpartition("_")[2]
    return word if word in ("seconds", "bytes", "ratio", "celsius") else ""


@dataclass
class AgentFacts:
    """What the agent tells about itself; it keeps this fresh, and its own collector reads it."""

    spool: SpoolStats | None = None
    missed_ticks: int = 0
    publish_failures: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("unavailable", "unroutable", "refused"), 0)
    )
    now_s: Callable[[], float] = time.time


@dataclass(frozen=True)
class Host:
    """Where a host's files are. `rootfs` is / on the host itself, /host in a container."""

    rootfs: Path = Path("/")
    agent: AgentFacts = field(default_factory=AgentFacts)

    def proc(self, name: str) -> Path:
        return self.rootfs / "proc" / name

    def sys(self, name: str) -> Path:
        return self.rootfs / "sys" / name

    def init(self, name: str) -> Path:
        """A file of the host's first process, whose mounts and network are the host's own; the
        reading process' where that one is hidden."""
        first = self.proc(f"1/{name}")
        try:
            with first.open("rb"):
                return first
        except (FileNotFoundError, PermissionError):
            return self.proc(f"self/{name}")


SHORTEST = timedelta(milliseconds=100)
"""Least interval: below it, the agent would be what loads the host."""

LONGEST = timedelta(hours=1)


def _is_sane(interval: timedelta) -> timedelta:
    if not SHORTEST <= interval <= LONGEST:
        raise ValueError(f"expected {format_duration(SHORTEST)} to {format_duration(LONGEST)}")
    return interval


Interval = Annotated[Duration, AfterValidator(_is_sane)]
"""Time between readings of a collector."""


class Options(BaseModel):
    """What can be set for every collector, in its table [collectors.<name>]."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    enabled: bool = Field(True, description="whether it is read")
    interval: Interval | None = Field(
        None, description="time between readings; the agent's interval where it is not set"
    )


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"read {pattern[:60]!r}; not a regular expression: {error}") from error
    return pattern


Pattern = Annotated[str, AfterValidator(_compiles)]
"""A regular expression in the options; found anywhere in the text unless it is anchored."""

Read = Callable[[Host, Any], Iterable[Reading]]


@dataclass(frozen=True)
class Collector:
    """A registered collector. `interval` is its default; None is the agent's.

    platforms: values of sys.platform on which it reads; elsewhere it is skipped.
    """

    name: str
    read: Read
    interval: timedelta | None
    platforms: tuple[str, ...]
    options: type[Options]

    def skipped(self) -> str | None:
        """Why this platform has it not; None where it is read."""
        if sys.platform in self.platforms:
            return None
        return f"reads {' and '.join(self.platforms)} only; this is {sys.platform}"


_registered: dict[str, Collector] = {}


def collector(
    name: str,
    *,
    interval: timedelta | None = None,
    platforms: tuple[str, ...] = ("linux",),
    options: type[Options] = Options,
) -> Callable[[Read], Read]:
    """Register a function as the collector `name`."""

    def register(read: Read) -> Read:
        known = _registered.get(name)
        if known is not None and known.read.__module__ != read.__module__:
            raise ValueError(f"collector {name}: in {known.read.__module__} and {read.__module__}")
        _registered[name] = Collector(name, read, interval, platforms, options)
        return read

    return register


@cache
def load() -> dict[str, Collector]:
    """All collectors by name: the modules of this package, then those of entry points."""
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        importlib.import_module(module.name)
    for entry in metadata.entry_points(group=ENTRY_POINTS):
        try:
            entry.load()
        except Exception as error:
            log.exception("collector not loaded", entry_point=entry.value, reason=str(error))
    return dict(_registered)
