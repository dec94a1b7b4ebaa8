"""What an answer costs: what was read for it, and how long each phase took."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from engine.promql import Select

PHASES = ("queue", "read", "evaluate")


@dataclass(slots=True)
class Read:
    """What one selector read. samples: values, absent ones included; tiers: the same by where they
    were stored."""

    select: Select
    series: int
    layouts: int
    instants: int
    samples: int
    tiers: Mapping[str, int]
    seconds: float


@dataclass(slots=True)
class Costs:
    """What an answer cost: what was read, and how long each phase took, in seconds."""

    reads: list[Read] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    phases: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time of the body to a phase."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.phases[name] += time.perf_counter() - began

    @property
    def samples(self) -> int:
        return sum(read.samples for read in self.reads)
