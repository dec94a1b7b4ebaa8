"""What one evaluation may cost, and how it is told to stop."""

from collections.abc import Callable
from typing import NamedTuple

from engine.promql.errors import QueryError


def _go_on() -> None:
    """Never stops an evaluation."""


class Limits(NamedTuple):
    """Bounds of one evaluation; past one of them it raises QueryError, which names it."""

    steps: int = 11_000
    """Steps of a range query; Prometheus' bound."""

    cells: int = 50_000_000
    """Values of one table: 400 MB, as many samples as Prometheus lets a query load."""

    work: int = 10_000_000_000
    """Samples that all windows of one block may hold together: about 20 s of a processor."""

    check: Callable[[], None] = _go_on
    """Called between nodes, between blocks and between chunks of windows. It raises where the
    evaluation is to end."""

    def check_steps(self, steps: int) -> None:
        """Raises QueryError where a range query has too many."""
        if steps > self.steps:
            raise QueryError(
                f"exceeded maximum resolution of {self.steps:,} points per timeseries: {steps:,}"
                " asked. Use a longer step or a shorter range"
            )

    def check_cells(self, series: int, steps: int) -> None:
        """Raises QueryError where a table would be too large."""
        if steps * series > self.cells:
            raise QueryError(
                f"{series:,} series at {steps:,} steps are more than {self.cells:,} samples;"
                " narrow the selector, or use a longer step"
            )

    def check_work(self, samples: int) -> None:
        """Raises QueryError where windows hold too many samples to look at each."""
        if samples > self.work:
            raise QueryError(
                f"{samples:,} samples in all windows; at most {self.work:,}:"
                " use a shorter range, or a longer step"
            )


DEFAULT_LIMITS = Limits()
