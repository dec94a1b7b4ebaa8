"""Many hosts out of one recording: each begins at a place of its own and goes on for ever.

Where the recording ends it begins again, later; what counts goes on from where it was, as it would
on a host that stays up. Frames are laid out as an agent's are: a layout per collector, another one
while other series are there.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.recording import Recording
from schemas.layouts import Series, encode_layout

JITTER_MS = 2
"""How far a tick may be from its place, as a busy host's are."""

SMALL_SHARE = 1 / 64
"""Collectors of less of all series share the frame `host`: an agent has about ten in all."""

MOST_DECIMALS = 9
PRIME = 9_007_199
"""Spreads hosts over the recording and the interval, in each run the same."""


class Part(NamedTuple):
    """One layout of a host: its columns in the recording, and its wire form."""

    collector: str
    columns: NDArray[np.intp]
    series: tuple[Series, ...]
    encoded: bytes


class Piece(NamedTuple):
    """Consecutive rows of one layout. at_ms: (rows,). values: (rows, series of the part)."""

    part: Part
    at_ms: NDArray[np.int64]
    values: NDArray[np.float64]


@dataclass(frozen=True)
class Replay:
    """start_ms: when every host begins. jitter_ms: at most, to either side."""

    recording: Recording
    start_ms: int
    jitter_ms: int = JITTER_MS

    @cached_property
    def interval_ms(self) -> int:
        return int(np.median(np.diff(self.recording.at_ms)))

    @cached_property
    def span_ms(self) -> int:
        """From the first tick to the one after the last."""
        return int(self.recording.at_ms[-1] - self.recording.at_ms[0]) + self.interval_ms

    @cached_property
    def parts(self) -> list[tuple[NDArray[np.bool_], Part]]:
        """Every part, with the rows (rows,) of the recording that are laid out so."""
        present = ~self.recording.absent()
        found = []
        for collector, columns in collectors(self.recording.series).items():
            masks, which = np.unique(present[:, columns], axis=0, return_inverse=True)
            for number, mask in enumerate(masks):
                if mask.any():
                    part = _part(self.recording, collector, columns[mask])
                    found.append((which.reshape(-1) == number, part))
        return found

    def at_ms(self, host: int, first: int, count: int) -> NDArray[np.int64]:
        """The instants (count,) of a host's ticks, in milliseconds."""
        loops, rows = self._places(host, first, count)
        (begin_loop,), (begin_row,) = self._places(host, 0, 1)
        recorded = self.recording.at_ms
        passed = recorded[rows] - recorded[begin_row] + (loops - begin_loop) * self.span_ms
        lots = ((first + np.arange(count)) * PRIME + host * 31) >> 7
        jitter = lots % (2 * self.jitter_ms + 1) - self.jitter_ms
        beside = (host * PRIME) % self.interval_ms
        return np.asarray(self.start_ms + beside + passed + jitter, np.int64)

    def values(self, host: int, first: int, count: int) -> NDArray[np.float64]:
        """The values (count, series of the recording) of a host's ticks."""
        loops, rows = self._places(host, first, count)
        values = self.recording.values[rows]
        later = np.flatnonzero(loops)
        columns, steps, scale = self._growth
        if later.size and columns.size:
            grown = values[np.ix_(later, columns)]
            was_absent = np.isnan(grown)
            exact = np.round((grown + loops[later, None] * steps) * scale) / scale
            values[np.ix_(later, columns)] = np.where(was_absent, grown, exact)
        return np.asarray(values)

    def pieces(self, host: int, first: int, count: int) -> Iterator[Piece]:
        """The same ticks as an agent lays them out."""
        at_ms, values = self.at_ms(host, first, count), self.values(host, first, count)
        _, rows = self._places(host, first, count)
        for where, part in self.parts:
            taken = where[rows]
            if taken.any():
                yield Piece(part, at_ms[taken], values[np.ix_(taken, part.columns)])

    def _places(self, host: int, first: int, count: int) -> tuple[NDArray[np.int64], ...]:
        """Of each tick, how often the recording began again, and the row."""
        begin = (host * PRIME) % len(self.recording.at_ms)
        loops, rows = np.divmod(begin + first + np.arange(count), len(self.recording.at_ms))
        return loops, rows

    @cached_property
    def _growth(self) -> tuple[NDArray[np.intp], NDArray[np.float64], NDArray[np.float64]]:
        """Columns that count, by how much in one recording, and 10 to their decimals."""
        columns, steps, scales = [], [], []
        for column, series in enumerate(self.recording.series):
            values = self.recording.values[:, column]
            values = values[~np.isnan(values)]
            if values.size < 2 or not _counts(series, values):
                continue
            columns.append(column)
            steps.append(values[-1] - values[0])
            scales.append(10.0 ** _decimals(values))
        return np.array(columns, np.intp), np.array(steps), np.array(scales)


def collectors(series: tuple[Series, ...]) -> dict[str, NDArray[np.intp]]:
    """Columns by collector: the second word of node_exporter's names; its own process apart."""
    found: defaultdict[str, list[int]] = defaultdict(list)
    for column, one in enumerate(series):
        first, _, rest = one.name.partition("_")
        found[rest.partition("_")[0] if first == "node" else "exporter"].append(column)
    few = len(series) * SMALL_SHARE
    small = [name for name, columns in found.items() if len(columns) < few]
    shared = [column for name in small for column in found.pop(name)]
    return {
        name: np.array(columns, np.intp)
        for name, columns in (*found.items(), ("host", shared))
        if columns
    }


def resized(recording: Recording, width: int) -> Recording:
    """A recording of `width` series that are always there: evenly chosen ones, or with copies."""
    whole = np.flatnonzero(~recording.absent().any(axis=0) & np.isfinite(recording.values).all(0))
    copies, rest = divmod(width, whole.size)
    chosen = whole[np.linspace(0, whole.size - 1, rest).round().astype(np.intp)]
    columns = np.concatenate([*[whole] * copies, chosen])
    series = []
    for place, column in enumerate(columns):
        one, copy = recording.series[column], place // whole.size
        labels = {**one.labels, "copy": str(copy)} if copy else one.labels
        series.append(Series(one.name, labels, one.type, one.unit))
    return Recording(
        tuple(series), recording.at_ms, np.ascontiguousarray(recording.values[:, columns])
    )


def _part(recording: Recording, collector: str, columns: NDArray[np.intp]) -> Part:
    series = tuple(recording.series[column] for column in columns)
    return Part(collector, columns, series, encode_layout(series))


def _counts(series: Series, values: NDArray[np.float64]) -> bool:
    """Whether it only rises; what node_exporter calls untyped does so in netstat and vmstat."""
    return series.type in ("counter", "unknown") and bool((np.diff(values) >= 0).all())


def _decimals(values: NDArray[np.float64]) -> int:
    """How many decimals the values were written with."""
    exact = (n for n in range(MOST_DECIMALS) if (np.round(values, n) == values).all())
    return next(exact, MOST_DECIMALS)
