"""What an evaluator remembers of one instance: recent rows of the columns that rules select.

Pure, without I/O. A layout's columns are chosen once; after that a frame costs one indexing.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from engine.promql import NAME, Block, Columns, Matcher, Select, matching_columns
from engine.promql.blocks import Floats, Indexes, Instants, cell_bits
from schemas.layouts import decode_layout
from schemas.samples import present_labels
from schemas.values import ABSENT, ABSENT_BITS
from services.evaluator.rules import RuleSet

FIRST_ROWS = 4
"""Rows that a new ring has room for; it doubles as it fills."""


class Ring:
    """Recent rows of some columns, oldest first.

    Rows older than the window go. With a window of `newest` samples only, so do rows that a later
    row without holes supersedes.
    """

    def __init__(self, columns: Columns, window_us: int, newest: bool) -> None:
        self.columns = columns
        self.window_us = window_us
        self.newest = newest
        self.whole = False
        """Whether the last row has no hole."""
        self._at: Instants = np.empty(FIRST_ROWS, dtype=np.int64)
        self._values: Floats = np.empty((FIRST_ROWS, len(columns)))
        self._start = self._end = 0

    def __len__(self) -> int:
        return self._end - self._start

    @property
    def last_us(self) -> int | None:
        """The instant of the newest row."""
        return int(self._at[self._end - 1]) if len(self) else None

    def rows(self) -> tuple[Instants, Floats]:
        """at (rows,), values (rows, columns), as views: valid until the next append."""
        return self._at[self._start : self._end], self._values[self._start : self._end]

    def newest_row(self) -> tuple[Instants, Floats]:
        """The last row alone, as views."""
        return self._at[self._end - 1 : self._end], self._values[self._end - 1 : self._end]

    def append(self, at_us: int, row: Floats) -> None:
        """Add a row, which must be newer than the last."""
        self.whole = not bool((cell_bits(row) == ABSENT_BITS).any())
        if self.newest and self.whole:
            self._start = self._end = 0
        oldest = at_us - self.window_us
        while self._start < self._end and self._at[self._start] <= oldest:
            self._start += 1
        if self._end == len(self._at):
            self._make_room()
        self._at[self._end] = at_us
        self._values[self._end] = row
        self._end += 1

    def fill(self, row: Floats) -> bool:
        """Put what the last row lacks, another part of its instant; whether there was anything."""
        last = self._values[self._end - 1]
        found = (cell_bits(last) == ABSENT_BITS) & (cell_bits(row) != ABSENT_BITS)
        if not found.any():
            return False
        last[found] = row[found]
        self.whole = not bool((cell_bits(last) == ABSENT_BITS).any())
        if self.newest and self.whole:
            self._start = self._end - 1
        return True

    def _make_room(self) -> None:
        at, values = self.rows()
        capacity = len(self._at) if 2 * len(at) <= len(self._at) else 2 * len(self._at)
        self._at = np.empty(capacity, dtype=np.int64)
        self._values = np.empty((capacity, len(self.columns)))
        self._at[: len(at)], self._values[: len(at)] = at, values
        self._start, self._end = 0, len(at)


@dataclass(slots=True, eq=False)
class Tracked:
    """A layout as the rules see it. `ring` is None where no rule selects any of its columns."""

    key: int
    source: Mapping[str, str]
    layout: bytes
    width: int
    positions: Indexes
    ring: Ring | None
    feeds: frozenset[int]
    """Indexes of the rules that select from it."""
    last_us: int = 0
    """The instant of its newest frame."""
    saved: bool = False
    """Whether the database knows it."""


def track(rules: RuleSet, instance: str, source: Mapping[str, str], layout: bytes) -> Tracked:
    """A layout with its columns chosen. Raises Invalid when the bytes are no layout."""
    series = decode_layout(layout)
    shared = present_labels(source)
    full = Columns([{NAME: one.name, **one.labels, **shared} for one in series])
    chosen: set[int] = set()
    feeds = set()
    window_us, newest = 0, True
    for index, rule in enumerate(rules.rules):
        for need in rule.needs:
            selected = matching_columns(need.matchers, full)
            if selected:
                chosen.update(selected)
                feeds.add(index)
                window_us = max(window_us, need.window_us)
                newest = newest and need.newest
    positions = np.array(sorted(chosen), dtype=np.intp)
    ring = Ring(Columns([full[p] for p in positions]), window_us, newest) if chosen else None
    return Tracked(
        _key(instance, source, layout, positions),
        dict(source),
        layout,
        len(series),
        positions,
        ring,
        frozenset(feeds),
    )


def _key(instance: str, source: Mapping[str, str], layout: bytes, positions: Indexes) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for part in (instance.encode(), repr(sorted(source.items())).encode(), layout):
        digest.update(len(part).to_bytes(4, "big") + part)
    digest.update(positions.astype("<i4").tobytes())
    return int.from_bytes(digest.digest(), "big", signed=True)


@dataclass(frozen=True, slots=True, eq=False)
class _View:
    """The columns of one ring that one list of matchers selects; `indexes` None means all."""

    ring: Ring
    columns: Columns
    indexes: Indexes | None


@dataclass(slots=True, eq=False)
class Memory:
    """All rings of one instance, as a store for the engine: blocks by matchers."""

    tracked: dict[tuple[str, bytes], Tracked] = field(default_factory=dict)
    """By job and wire bytes of the layout."""
    tidy_at: int = 16
    """Number of layouts above which to look for ones to forget."""
    _views: dict[int, tuple[tuple[Matcher, ...], list[_View]]] = field(default_factory=dict)
    """By the identity of the matchers, since a rule asks with the same ones each time."""

    def add(self, job: str, tracked: Tracked) -> None:
        """Remember a layout from now on."""
        self.tracked[job, tracked.layout] = tracked
        if tracked.ring is not None:
            self._views.clear()

    def forget_before(self, oldest_us: int) -> None:
        """Forget layouts that have had no frame since."""
        for place, one in list(self.tracked.items()):
            if one.last_us <= oldest_us:
                del self.tracked[place]
                self._views.clear()

    def __getitem__(self, select: Select) -> Sequence[Block]:
        known = self._views.get(id(select.matchers))
        if known is None:
            known = (select.matchers, self._viewed(select.matchers))
            self._views[id(select.matchers)] = known
        views = known[1]
        blocks = []
        for view in views:
            ring = view.ring
            if not len(ring):
                continue
            at, values = ring.rows()
            if select.newest and ring.whole and at[-1] <= select.end_us:
                at, values = ring.newest_row()
            elif at[0] <= select.start_us:
                first = int(at.searchsorted(select.start_us, side="right"))
                at, values = at[first:], values[first:]
            if view.indexes is not None:
                values = values[:, view.indexes]
            blocks.append(Block(view.columns, at, values))
        return blocks

    def _viewed(self, matchers: tuple[Matcher, ...]) -> list[_View]:
        views = []
        for one in self.tracked.values():
            if one.ring is None:
                continue
            places = matching_columns(matchers, one.ring.columns)
            if len(places) == len(one.ring.columns):
                views.append(_View(one.ring, one.ring.columns, None))
            elif places:
                indexes = np.array(places, dtype=np.intp)
                views.append(_View(one.ring, one.ring.columns.take(places), indexes))
        return views


def restored_row(old: npt.NDArray[np.int32], values: bytes, positions: Indexes) -> Floats:
    """A saved row of columns `old` as one of columns `positions`; what was not saved is ABSENT."""
    row = np.full(len(positions), ABSENT)
    _, places, saved = np.intersect1d(positions, old, return_indices=True)
    row[places] = np.frombuffer(values, "<f8")[saved]
    return row
