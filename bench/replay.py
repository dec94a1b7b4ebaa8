"""Many hosts out of one recording: each begins at a place of its own and goes on for ever.

Where the recording ends it begins again, later; what counts goes on from where it was, as it would
on a host that stays up. Each time again, whatever changes does so by a factor of its own, rounded
as the number was: a compressor that remembers hours would find exact repeats, which no host gives
it. Frames are laid out as an agent's are: a layout per collector, another one while other series
are there.
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

LEAST_FACTOR, FACTOR_SPREAD = 0.8, 0.4
MOST_DECIMALS = 9
PAGES = (4096.0, 1024.0, 512.0)
"""What memory and disks are counted in."""

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
    """start_ms: when every host begins. jitter_ms: at most, to either side.

    stretch: by how much ticks are further apart than the recorded ones.
    """

    recording: Recording
    start_ms: int
    jitter_ms: int = JITTER_MS
    stretch: int = 1

    @cached_property
    def interval_ms(self) -> int:
        return int(np.median(np.diff(self.recording.at_ms))) * self.stretch

    @cached_property
    def span_ms(self) -> int:
        """From the first tick to the one after the last."""
        recorded = self.recording.at_ms
        return int(recorded[-1] - recorded[0]) * self.stretch + self.interval_ms

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
        within = (recorded[rows] - recorded[begin_row]) * self.stretch
        passed = within + (loops - begin_loop) * self.span_ms
        lots = ((first + np.arange(count)) * PRIME + host * 31) >> 7
        jitter = lots % (2 * self.jitter_ms + 1) - self.jitter_ms
        beside = (host * PRIME) % self.interval_ms
        return np.asarray(self.start_ms + beside + passed + jitter, np.int64)

    def values(self, host: int, first: int, count: int) -> NDArray[np.float64]:
        """The values (count, series of the recording) of a host's ticks."""
        loops, rows = self._places(host, first, count)
        values = self.recording.values[rows]
        for loop in np.unique(loops[loops > 0]).tolist():
            again = np.flatnonzero(loops == loop)
            values[again] = self._changed(host, loop, values[again])
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

    def _changed(self, host: int, loop: int, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rows of the recording, the `loop`th time again."""
        kinds = self._kinds
        factors = LEAST_FACTOR + FACTOR_SPREAD * _lots(host, loop + 1)
        ran = kinds.rounded(factors[:-1, None] * (kinds.last - kinds.first)).sum(axis=0)
        base = np.where(kinds.counts, kinds.first, 0)
        changed = (
            kinds.rounded(factors[-1] * (values - base)) + base + np.where(kinds.counts, ran, 0)
        )
        # Sums of decimals are rounded to what they stand for; NaN keeps its bits.
        return np.where(kinds.vary & np.isfinite(values), kinds.rounded(changed), values)

    @cached_property
    def _kinds(self) -> "Kinds":
        return Kinds.of(self.recording)


@dataclass(frozen=True)
class Kinds:
    """What each column is like, all (series,).

    vary: not one number throughout. counts: only rises. first, last: of its values. Every value is
    a multiple of step / scale: of a page, a byte, a hundredth.
    """

    vary: NDArray[np.bool_]
    counts: NDArray[np.bool_]
    first: NDArray[np.float64]
    last: NDArray[np.float64]
    step: NDArray[np.float64]
    scale: NDArray[np.float64]

    @staticmethod
    def of(recording: Recording) -> "Kinds":
        width = len(recording.series)
        kinds = Kinds(
            np.zeros(width, bool), np.zeros(width, bool),
            *(np.zeros(width), np.zeros(width), np.ones(width), np.ones(width)),
        )  # fmt: skip
        for column, series in enumerate(recording.series):
            values = recording.values[:, column]
            values = values[np.isfinite(values)]
            if values.size == 0:
                continue
            kinds.vary[column] = bool((values != values[0]).any())
            kinds.counts[column] = _counts(series, values)
            kinds.first[column], kinds.last[column] = values[0], values[-1]
            kinds.step[column], kinds.scale[column] = _granularity(values)
        return kinds

    def rounded(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The nearest multiples."""
        nearest = np.round(values * self.scale / self.step) * self.step / self.scale
        return np.asarray(nearest, np.float64)


def _lots(host: int, count: int) -> NDArray[np.float64]:
    """`count` numbers in 0..1 that look drawn by lot: one for each time a host begins again."""
    return ((np.arange(count) + 1) * PRIME + host * 7919) % 1009 / 1009


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


def _granularity(values: NDArray[np.float64]) -> tuple[float, float]:
    """A step and a scale of which all values are multiples of step / scale."""
    for step in PAGES:
        if (values % step == 0).all():
            return step, 1.0
    exact = (n for n in range(MOST_DECIMALS) if (np.round(values, n) == values).all())
    return 1.0, 10.0 ** next(exact, MOST_DECIMALS)
