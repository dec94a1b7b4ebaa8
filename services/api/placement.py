"""Which series stands where: series that others send in any cut, put into few layouts. Pure.

Series that come together stay together: those of a source that are new in one request and of one
instant make layouts of equal width, in the order in which they came, so that a request that is cut
elsewhere next time cuts one frame in two, not all of them. A layout never changes. Where few series
are new, they and a narrow layout of the same instant make a wider one, which takes the narrow one's
place from the next instant on.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.errors import Invalid
from schemas.layouts import (
    Series,
    check_labels,
    check_series,
    encode_layout,
    layout_hash,
    series_hash,
)
from schemas.samples import present_labels
from services.api.remote_write import Integers, parse_labels

MAX_WIDTH = 192
"""Series in a layout: its row stays below 2 kB, above which PostgreSQL keeps it elsewhere."""

OPEN_WIDTH = MAX_WIDTH // 2
"""A layout narrower than this may be replaced by a wider one."""

MAX_LAYOUT_BYTES = 128 * 1024
"""Encoded layouts above this are halved: a layout goes with each of its frames."""

MAX_LABEL_BYTES = 64 * 1024
"""Encoded labels of one series, so that some layout can hold it."""

MAX_NAME_BYTES = 160
"""Of job and instance, in UTF-8: they stand in the ids of messages."""

SHOWN_CHARS = 200
"""Of a refused series in the answer: a sender logs one line."""

NEVER_US = int(np.iinfo(np.int64).min)

_NAME = "__name__"


class SourceKey(NamedTuple):
    """What makes a source. Of a series without one of these labels it is empty."""

    job: str
    instance: str


@dataclass(slots=True, eq=False)
class Layout:
    """A list of series. `series` is empty once it is too wide to be replaced by another."""

    number: int
    source: "Source"
    wire: bytes
    members: list[int]
    series: tuple[Series, ...]
    id: int | None = None
    """In the database, once it was seen there."""


@dataclass(slots=True, eq=False)
class Source:
    """What is known of one source."""

    key: SourceKey
    numbers: dict[bytes, int] = field(default_factory=dict)
    """Of its series, by their hash."""
    layouts: dict[bytes, Layout] = field(default_factory=dict)
    """By their hash."""
    recalled: int = 0
    """The newest layout (its id) that the database was asked for."""

    @property
    def labels(self) -> dict[str, str]:
        """As a message spells them."""
        return self.key._asdict()

    def hash_of(self, series: Sequence[Series]) -> bytes:
        """Identity of a layout of this source."""
        return layout_hash(present_labels(self.labels), series)


class Recalled(NamedTuple):
    """A layout as the database holds it; `series` without the labels job and instance."""

    id: int
    hash: bytes
    series: tuple[Series, ...]


class _Columns(NamedTuple):
    """Per series, by its number. One that moved stood elsewhere up to the instant `since_us`."""

    layout: NDArray[np.int32]
    place: NDArray[np.int32]
    old_layout: NDArray[np.int32]
    old_place: NDArray[np.int32]
    since_us: Integers


def _columns(room: int) -> _Columns:
    layouts, places = np.full((2, room), -1, np.int32), np.zeros((2, room), np.int32)
    since_us = np.full(room, NEVER_US, np.int64)
    return _Columns(layouts[0], places[0], layouts[1], places[1], since_us)


class Placement:
    """The series and layouts that this process knows."""

    def __init__(self) -> None:
        self.known: dict[bytes, int] = {}
        """Numbers of series by their encoded labels."""
        self.layouts: list[Layout] = []
        self.widths = np.zeros(0, np.int64)
        """Of the layouts."""
        self.last_us = np.zeros(0, np.int64)
        """The newest instant of each layout."""
        self.look_again: dict[Source, float] = {}
        """Sources with new layouts: when (monotonic) others may have made some of the same."""
        self._sources: dict[SourceKey, Source] = {}
        self._new: dict[int, tuple[Source, Series]] = {}
        self._reasons: list[str] = []
        self._count = 0
        self._columns = _columns(1024)

    def __len__(self) -> int:
        """Series, refused ones included."""
        return max(self._count, len(self.known))

    def register(self, labels: bytes) -> int:
        """The number of a series that was not known by these bytes: negative where it is refused,
        for a `reason`. Raises Malformed when they are no labels."""
        pairs = parse_labels(labels)
        try:
            key, series = checked_series(pairs, len(labels))
        except Invalid as error:
            self._reasons.append(f"{_shown(pairs)}: {error}")
            self.known[labels] = -len(self._reasons)
            return self.known[labels]
        source = self._sources.setdefault(key, Source(key))
        number = self._number(source, series)
        if self._columns.layout[number] < 0:
            self._new[number] = (source, series)
        self.known[labels] = number
        return number

    def reason(self, number: int) -> str:
        """Why the series of this negative number is refused."""
        return self._reasons[-number - 1]

    def _number(self, source: Source, series: Series) -> int:
        identity = series_hash(series.name, series.labels)
        number = source.numbers.get(identity)
        if number is None:
            number = source.numbers[identity] = self._count
            self._count += 1
            if self._count > len(self._columns.layout):
                self._make_room()
        return number

    def _make_room(self) -> None:
        grown, had = _columns(2 * self._count), self._count - 1
        for index in range(len(grown)):
            grown[index][:had] = self._columns[index][:had]
        self._columns = grown

    def places(self, numbers: Integers, at_us: Integers) -> tuple[Integers, Integers]:
        """Of each sample the number of its layout, -1 where there is none yet, and its place."""
        columns = self._columns
        before = at_us <= columns.since_us[numbers]
        if not before.any():
            return columns.layout[numbers].astype(np.int64), columns.place[numbers].astype(np.int64)
        layout = np.where(before, columns.old_layout[numbers], columns.layout[numbers])
        place = np.where(before, columns.old_place[numbers], columns.place[numbers])
        return layout.astype(np.int64), place.astype(np.int64)

    def new(self, numbers: Integers) -> list[int]:
        """Those of these series that stand in no layout, in their order."""
        return list(dict.fromkeys(numbers[self._columns.layout[numbers] < 0].tolist()))

    def sources(self, new: Iterable[int]) -> list[Source]:
        """The sources of new series."""
        return list(dict.fromkeys(self._new[number][0] for number in new))

    def recall(self, source: Source, layouts: Sequence[Recalled]) -> None:
        """Take over layouts of the database, given in the order of their ids.

        A series stands in the newest layout that holds it, whoever made that: so processes that
        learned the same series at once come to use the same layouts.
        """
        for one in layouts:
            source.recalled = max(source.recalled, one.id)
            if (known := source.layouts.get(one.hash)) is not None:
                known.id = one.id
        for one in layouts:
            if one.hash in source.layouts or source.hash_of(one.series) != one.hash:
                continue  # the other ones are agents', with types and units
            numbers = [self._number(source, series) for series in one.series]
            layout = self._add(source, numbers, one.series)
            layout.id = one.id
            self._move(layout, [self._is_older(number, one.id) for number in numbers])

    def _is_older(self, number: int, layout_id: int) -> bool:
        """Whether the series stands in an older layout than this, or in none."""
        current = int(self._columns.layout[number])
        if current < 0:
            self._new.pop(number, None)
            return True
        known = self.layouts[current].id
        return known is not None and known < layout_id

    def hear(self, numbers: Integers, at_us: Integers) -> None:
        """Note that layouts have samples of these instants."""
        layouts = self.places(numbers, at_us)[0]
        placed = layouts >= 0
        np.maximum.at(self.last_us, layouts[placed], at_us[placed])

    def place(self, new: Iterable[int], first_us: Sequence[int]) -> set[Source]:
        """Put new series into layouts, given the instant of each one's sample; their sources."""
        runs: dict[tuple[Source, int], tuple[list[int], list[Series]]] = {}
        for number, at_us in zip(new, first_us, strict=True):
            if number in self._new:
                source, series = self._new.pop(number)
                numbers, together = runs.setdefault((source, at_us), ([], []))
                numbers.append(number)
                together.append(series)
        for (source, at_us), (numbers, together) in runs.items():
            self._lay_out(source, numbers, together, at_us)
        return {source for source, _ in runs}

    def _lay_out(
        self, source: Source, numbers: list[int], together: list[Series], at_us: int
    ) -> None:
        """Layouts of series that came at one instant, and of narrow layouts of that instant."""
        narrow = [
            one
            for one in source.layouts.values()
            if one.series and int(self.last_us[one.number]) == at_us
        ]
        for one in sorted(narrow, key=lambda one: len(one.members)):
            wide = len(one.members)
            # At most twice as many are moved as come: so each is moved seldom.
            if wide > 2 * len(numbers) or wide + len(numbers) > MAX_WIDTH:
                break
            numbers, together = one.members + numbers, [*one.series, *together]
            one.series = ()
        count = math.ceil(len(numbers) / MAX_WIDTH)
        cuts = [len(numbers) * part // count for part in range(count + 1)]
        for begin, end in pairwise(cuts):
            self._lay_out_fitting(source, numbers[begin:end], together[begin:end])

    def _lay_out_fitting(self, source: Source, numbers: list[int], series: list[Series]) -> None:
        if len(numbers) > 1 and len(encode_layout(series)) > MAX_LAYOUT_BYTES:
            half = len(numbers) // 2
            self._lay_out_fitting(source, numbers[:half], series[:half])
            self._lay_out_fitting(source, numbers[half:], series[half:])
            return
        layout = self._add(source, numbers, series)
        self._move(layout, [True] * len(numbers))

    def _add(self, source: Source, numbers: list[int], series: Sequence[Series]) -> Layout:
        """A layout that no series uses yet."""
        narrow = tuple(series) if len(series) < OPEN_WIDTH else ()
        layout = Layout(len(self.layouts), source, encode_layout(series), numbers, narrow)
        source.layouts[source.hash_of(series)] = layout
        self.layouts.append(layout)
        self.widths = np.append(self.widths, len(numbers))
        self.last_us = np.append(self.last_us, NEVER_US)
        return layout

    def _move(self, layout: Layout, moves: Sequence[bool]) -> None:
        """Let series of a layout stand there from now on.

        Samples up to the newest instant of where a series stood stay there, so that a request that
        is sent again meets the cells that it filled.
        """
        columns = self._columns
        chosen = np.array(moves, np.bool_)
        numbers = np.array(layout.members, np.int64)[chosen]
        stood = columns.layout[numbers]
        left_us = np.where(stood < 0, NEVER_US, self.last_us[stood])
        held = left_us > columns.since_us[numbers]
        leaving = numbers[held]
        columns.old_layout[leaving] = columns.layout[leaving]
        columns.old_place[leaving] = columns.place[leaving]
        columns.since_us[leaving] = left_us[held]
        columns.layout[numbers] = layout.number
        columns.place[numbers] = np.flatnonzero(chosen)


def _shown(pairs: Sequence[tuple[str, str]]) -> str:
    """A series as it is named to whoever sent it, shortened."""
    text = ", ".join(f"{name}={json.dumps(value)}" for name, value in pairs if name != _NAME)
    return f"{dict(pairs).get(_NAME, '')}{{{text}}}"[:SHOWN_CHARS]


def checked_series(pairs: Sequence[tuple[str, str]], size: int) -> tuple[SourceKey, Series]:
    """Source and series of labels in the order in which they came, of `size` bytes when encoded.

    Raises Invalid where they break the rules (specification: Labels).
    """
    if size > MAX_LABEL_BYTES:
        raise Invalid(f"{size} bytes of labels; at most {MAX_LABEL_BYTES}")
    for before, after in pairwise(pairs):
        if before[0] >= after[0]:
            why = "stands twice" if before[0] == after[0] else f"stands after {before[0][:80]!r}"
            raise Invalid(f"label {after[0][:80]!r} {why}; labels are sent in order, each once")
    for name, value in pairs:
        if not value:
            raise Invalid(f"label {name[:80]!r} is empty")
    found = dict(pairs)
    if _NAME not in found:
        raise Invalid("it has no metric name")
    key = SourceKey(found.pop("job", ""), found.pop("instance", ""))
    for what, text in key._asdict().items():
        if len(text.encode()) > MAX_NAME_BYTES:
            raise Invalid(f"label {what}: longer than {MAX_NAME_BYTES} bytes")
    check_labels(key._asdict(), "labels")
    series = Series(found.pop(_NAME), found)
    check_series(series, "labels")
    return key, series
