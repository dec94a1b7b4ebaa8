"""Readings become frames: one layout per collector, encoded once and kept while its series stay."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from schemas.layouts import MAX_VALUE_CHARS, Series, check_layout, encode_layout
from schemas.samples import Frame, frame
from schemas.values import ABSENT, STALE
from services.agent.collectors import Metric, Reading

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True)
class Columns:
    """Frames of one collector at one tick, the series of each, and how many samples they carry."""

    frames: tuple[Frame, ...]
    series: tuple[tuple[Series, ...], ...]
    samples: int

    def __add__(self, other: "Columns") -> "Columns":
        return Columns(
            self.frames + other.frames, self.series + other.series, self.samples + other.samples
        )


Key = tuple[Metric, tuple[str, ...]]


class Layout:
    """One collector's layout as it is now. Series that come and go change this one only."""

    def __init__(self, collector: str) -> None:
        self.collector = collector
        self.series: tuple[Series, ...] = ()
        self.encoded = b""
        self._keys: tuple[Key, ...] = ()

    def columns(self, readings: Iterable[Reading], at_us: int) -> Columns:
        """The frame of these readings. Where series vanished, before it one in the old layout that
        marks them stale. Raises Invalid, and changes nothing, where the readings are no layout."""
        readings = list(readings)
        keys = tuple((reading.metric, reading.labels) for reading in readings)
        stale = None
        if keys != self._keys:
            series = tuple(_series(metric, labels) for metric, labels in keys)
            check_layout(series)
            stale = self._stale(set(keys), at_us)
            self.series, self._keys, self.encoded = series, keys, encode_layout(series)
        now = self._columns([reading.value for reading in readings], len(readings), at_us)
        return now if stale is None else stale + now

    def _stale(self, present: set[Key], at_us: int) -> Columns | None:
        row = [ABSENT if key in present else STALE for key in self._keys]
        vanished = sum(key not in present for key in self._keys)
        return self._columns(row, vanished, at_us) if vanished else None

    def _columns(self, row: Sequence[float], samples: int, at_us: int) -> Columns:
        one = frame(self.collector, self.encoded, [at_us], [row])
        return Columns((one,), (self.series,), samples)

    def partial(self, readings: Sequence[Reading], at_us: int) -> Columns:
        """The frame of a collector that failed: these readings, and absent for all its others."""
        values = {(reading.metric, reading.labels): reading.value for reading in readings}
        if not values.keys() <= set(self._keys):
            return self.columns(readings, at_us)
        row = [values.get(key, ABSENT) for key in self._keys]
        return self._columns(row, len(values), at_us)


def _series(metric: Metric, labels: tuple[str, ...]) -> Series:
    pairs = zip(metric.labels, map(_printable, labels), strict=True)
    return Series(metric.name, dict(pairs), metric.type, metric.unit)


def _printable(text: str) -> str:
    """A label's value as the data model allows it: a mount point may hold any byte."""
    whole = text.encode(errors="surrogateescape").decode(errors="replace")
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", whole)[:MAX_VALUE_CHARS]
