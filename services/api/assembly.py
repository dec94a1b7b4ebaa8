"""Frames and messages of samples that others sent, however they cut them. Pure.

A frame that is cut in two is two frames of one layout and instant; each has the other's cells
absent, and ingest puts them together.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from schemas.samples import MAX_FRAMES, Frame
from schemas.values import ABSENT_BITS, STALE_BITS
from services.api.placement import NEVER_US, Placement, Source
from services.api.remote_write import Integers, Samples

COLLECTOR = "remote_write"

SAMPLES_AT_ONCE = 4_000
"""Samples that one call puts into frames. At worst each makes a row of its own: 6 MB."""

MAX_FRAME_BYTES = 256 * 1024
"""Values of a frame; further rows make another one."""

MAX_BYTES = 512 * 1024
"""Values and layouts of a message, which is to stay well below what consumers accept."""

PLAIN_NAN_BITS = 0x7FF8_0000_0000_0001
"""Prometheus' ordinary NaN, in place of one that happens to mean "absent" here."""


@dataclass(slots=True)
class Part:
    """What one request holds of one source. newest_us: its newest instant."""

    source: Source
    frames: list[Frame] = field(default_factory=list)
    newest_us: int = NEVER_US
    ended: bool = True
    """Whether all series of the newest instant end there (stale markers)."""


def assemble(placement: Placement, samples: Samples) -> list[Part]:
    """The samples' frames, by source. All their series stand in layouts.

    Where a series has an instant twice, its first value counts, as in what is stored.
    """
    at_us = samples.at_ms * 1000
    layouts, places = placement.places(samples.numbers, at_us)
    order = np.lexsort((at_us, layouts))
    layouts, places, at_us = layouts[order], places[order], at_us[order]
    bits = np.where(samples.bits == ABSENT_BITS, PLAIN_NAN_BITS, samples.bits)[order]

    begins = np.ones(len(order), np.bool_)
    begins[1:] = (layouts[1:] != layouts[:-1]) | (at_us[1:] != at_us[:-1])
    firsts = np.flatnonzero(begins)
    row_layouts, row_at = layouts[firsts], at_us[firsts]
    ends = np.cumsum(placement.widths[row_layouts])
    starts = ends - placement.widths[row_layouts]

    cells = np.full(int(ends[-1]), ABSENT_BITS, "<u8")
    filled = starts[np.cumsum(begins) - 1] + places
    cells[filled[::-1]] = bits[::-1]
    live = np.logical_or.reduceat(bits != STALE_BITS, firsts)
    np.maximum.at(placement.last_us, row_layouts, row_at)

    parts: dict[Source, Part] = {}
    for first, last in _runs(row_layouts):
        layout = placement.layouts[int(row_layouts[first])]
        part = parts.get(layout.source)
        if part is None:
            part = parts[layout.source] = Part(layout.source)
        _note(part, int(row_at[last - 1]), bool(live[last - 1]))
        step = max(1, MAX_FRAME_BYTES // (8 * len(layout.members)))
        for begin in range(first, last, step):
            end = min(begin + step, last)
            at = row_at[begin:end].astype("<i8").tobytes()
            values = cells[int(starts[begin]) : int(ends[end - 1])].tobytes()
            part.frames.append(Frame(COLLECTOR, layout.wire, at, values))
    return list(parts.values())


def _runs(row_layouts: Integers) -> Iterator[tuple[int, int]]:
    """First row, and the one after the last, of each layout."""
    cuts = np.flatnonzero(np.diff(row_layouts)) + 1
    bounds = [0, *cuts.tolist(), len(row_layouts)]
    return pairwise(bounds)


def _note(part: Part, newest_us: int, live: bool) -> None:
    if newest_us > part.newest_us:
        part.newest_us, part.ended = newest_us, not live
    elif newest_us == part.newest_us:
        part.ended = part.ended and not live


def portions(frames: Iterable[Frame]) -> Iterator[tuple[Frame, ...]]:
    """The frames of each message."""
    portion: list[Frame] = []
    size = 0
    for one in frames:
        more = len(one.layout) + len(one.at) + len(one.values)
        if portion and (size + more > MAX_BYTES or len(portion) == MAX_FRAMES):
            yield tuple(portion)
            portion, size = [], 0
        portion.append(one)
        size += more
    if portion:
        yield tuple(portion)
