"""What the database sends of frames and sealed blocks, put together into blocks of samples."""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from engine.promql.blocks import Block, Columns, Floats, Indexes, Instants, cell_bits
from schemas.values import ABSENT, ABSENT_BITS
from services import sealed
from services.cells import from_stored
from services.clock import POSTGRES_EPOCH_US
from services.unsealing import Group, unseal_groups

GAP = 4
"""Groups of columns that nobody asked for and that are sent nevertheless, to save a row."""

_ARRAY_HEADER_BYTES = 20


class Piece(NamedTuple):
    """Samples of a layout's selected columns. at: (rows,) ascending; values: (rows, columns)."""

    at: Instants
    values: Floats


def head_piece(at: bytes, values: bytes, width: int, columns: Indexes) -> Piece:
    """Of rows as timestamptz_send and array_send write them, in any order.

    width: the length of each array. columns: which of its places are wanted, from 0.
    """
    instants = np.frombuffer(at, ">i8").astype(np.int64) + POSTGRES_EPOCH_US
    cell = np.dtype([("length", ">i4"), ("bits", ">u8")])
    row = np.dtype([("header", f"V{_ARRAY_HEADER_BYTES}"), ("cells", cell, (width,))])
    bits = np.frombuffer(values, row)["cells"]["bits"]
    in_order = len(columns) == width and (columns[1:] > columns[:-1]).all()
    chosen = bits if in_order else bits[:, columns]
    cells = from_stored(chosen.astype("<u8")).view(np.float64)
    if (instants[1:] > instants[:-1]).all():
        return Piece(instants, cells)
    order = instants.argsort()
    return Piece(instants[order], cells[order])


class Span(NamedTuple):
    """Consecutive groups of columns, from 1, both included; and the columns wanted of them.

    wanted: by group which of its columns, and where they go among the selected ones.
    """

    lower: int
    upper: int
    wanted: dict[int, tuple[Indexes, slice | Indexes]]


def spans(positions: Indexes) -> list[Span]:
    """The groups that hold these columns (from 0, in any order), as few rows as pays."""
    return _spans(positions.tobytes())


@lru_cache(maxsize=256)
def _spans(packed: bytes) -> list[Span]:
    """`spans` of positions as bytes: those of hosts of one kind are the same."""
    positions = np.frombuffer(packed, np.intp)
    groups = positions // sealed.GROUP
    found: list[Span] = []
    for group in np.unique(groups).tolist():
        places = np.flatnonzero(groups == group)
        wanted = (positions[places] - group * sealed.GROUP, _run(places))
        number = group + 1
        if found and number - found[-1].upper <= GAP:
            last = found.pop()
            found.append(Span(last.lower, number, {**last.wanted, number: wanted}))
        else:
            found.append(Span(number, number, {number: wanted}))
    return found


def _run(places: Indexes) -> slice | Indexes:
    """Consecutive places as a slice, which is quicker to write to."""
    first, count = int(places[0]), len(places)
    return slice(first, first + count) if int(places[-1]) - first + 1 == count else places


class SealedSpan(NamedTuple):
    """Groups of columns of one block. `ends`: where each ends, as counted from `begin`."""

    span: Span
    data: bytes
    begin: int
    ends: Sequence[int]


class SealedHour(NamedTuple):
    """What is wanted of one block."""

    rows: int
    at: bytes
    spans: list[SealedSpan]


class History(NamedTuple):
    """The blocks of one layout, in order; its series, and how many of them are wanted."""

    hours: Sequence[SealedHour]
    width: int
    columns: int


def sealed_pieces(histories: Sequence[History]) -> list[Piece]:
    """One piece of each history; all are decompressed together. Raises Invalid."""
    pieces = [_room(one) for one in histories]
    groups: list[Group] = []
    targets: list[tuple[Floats, slice | Indexes]] = []
    for history, piece in zip(histories, pieces, strict=True):
        row, columns = 0, piece.values.T
        for hour in history.hours:
            hours_columns = columns[:, row : row + hour.rows]
            row += hour.rows
            for group, places in _groups(hour, history.width):
                groups.append(group)
                targets.append((hours_columns, places))
    for place, values in unseal_groups(groups):
        target, places = targets[place]
        target[places] = values
    _fill_instants(histories, pieces)
    return pieces


def _room(history: History) -> Piece:
    """An empty piece; a column is contiguous in memory."""
    rows = sum(hour.rows for hour in history.hours)
    return Piece(np.empty(rows, np.int64), np.empty((history.columns, rows)).T)


def _groups(hour: SealedHour, width: int) -> Iterator[tuple[Group, slice | Indexes]]:
    """Groups to be decompressed, and where their wanted columns go."""
    for span, data, begin, ends in hour.spans:
        for number, (inside, places) in span.wanted.items():
            low = begin if number == span.lower else ends[number - span.lower - 1]
            size = min(sealed.GROUP, width - (number - 1) * sealed.GROUP)
            packed = data[low - begin : ends[number - span.lower] - begin]
            yield Group(packed, hour.rows, size, inside), places


def _fill_instants(histories: Sequence[History], pieces: Sequence[Piece]) -> None:
    """Layouts of one host have the same instants as a rule: these are decompressed once."""
    keys = list({(hour.at, hour.rows) for history in histories for hour in history.hours})
    groups = [Group(at, rows, 1, _FIRST) for at, rows in keys]
    found = {keys[place]: values.view(np.int64)[0] for place, values in unseal_groups(groups)}
    for history, piece in zip(histories, pieces, strict=True):
        if history.hours:
            every = [found[hour.at, hour.rows] for hour in history.hours]
            np.concatenate(every, out=piece.at)


_FIRST = np.zeros(1, np.intp)


def joined(old: Piece, head: Iterable[Piece]) -> Piece:
    """History and head in one; where both hold a cell, history wins."""
    new = _in_a_row(head)
    if new is None:
        return old
    if not len(old.at):
        return new
    if new.at[0] > old.at[-1]:
        return Piece(np.concatenate([old.at, new.at]), np.concatenate([old.values, new.values]))
    at = np.union1d(old.at, new.at)
    values = np.full((len(at), old.values.shape[1]), ABSENT)
    values[np.searchsorted(at, new.at)] = new.values
    rows = np.searchsorted(at, old.at)
    there = cell_bits(old.values) != ABSENT_BITS
    values[rows] = np.where(there, old.values, values[rows])
    return Piece(at, values)


def _in_a_row(pieces: Iterable[Piece]) -> Piece | None:
    filled = sorted((one for one in pieces if len(one.at)), key=lambda one: int(one.at[0]))
    if len(filled) < 2:
        return filled[0] if filled else None
    at = np.concatenate([one.at for one in filled])
    values = np.concatenate([one.values for one in filled])
    if (at[1:] > at[:-1]).all():
        return Piece(at, values)
    order = at.argsort()  # frames that were cut by the clock, not by their order
    return Piece(at[order], values[order])


def block(columns: Columns, piece: Piece, start_us: int, end_us: int) -> Block | None:
    """The samples in start_us < at <= end_us; None where there are none."""
    low, high = np.searchsorted(piece.at, [start_us, end_us], side="right")
    if low == high:
        return None
    return Block(columns, piece.at[low:high], piece.values[low:high])
