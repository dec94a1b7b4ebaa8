"""What the database sends of frames and sealed blocks, put together into blocks of samples."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from engine.promql.blocks import Block, Columns, Floats, Indexes, Instants, cell_bits
from schemas.values import ABSENT, ABSENT_BITS
from services import sealed

POSTGRES_EPOCH_US = 946_684_800_000_000
"""2000-01-01 in microseconds since 1970: PostgreSQL counts timestamps from there."""

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
    chosen = bits if len(columns) == width else bits[:, columns]
    cells = chosen.astype("<u8").view(np.float64)
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
    wanted: dict[int, tuple[Indexes, Indexes]]


def spans(positions: Indexes) -> list[Span]:
    """The groups that hold these columns (from 0, in any order), as few rows as pays."""
    groups = positions // sealed.GROUP
    found: list[Span] = []
    for group in np.unique(groups).tolist():
        places = np.flatnonzero(groups == group)
        wanted = (positions[places] - group * sealed.GROUP, places)
        number = group + 1
        if found and number - found[-1].upper <= GAP:
            last = found.pop()
            found.append(Span(last.lower, number, {**last.wanted, number: wanted}))
        else:
            found.append(Span(number, number, {number: wanted}))
    return found


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


def sealed_piece(hour: SealedHour, width: int, columns: int) -> Piece:
    """The samples of one block, whose layout has `width` series. Raises Invalid."""
    values = np.empty((columns, hour.rows))
    for span, data, begin, ends in hour.spans:
        for number, (inside, places) in span.wanted.items():
            low = begin if number == span.lower else ends[number - span.lower - 1]
            group = data[low - begin : ends[number - span.lower] - begin]
            size = min(sealed.GROUP, width - (number - 1) * sealed.GROUP)
            values[places] = sealed.unseal_group(group, hour.rows, size, inside.tolist()).T
    return Piece(sealed.unseal_instants(hour.at, hour.rows), values.T)


def joined(history: Iterable[Piece], head: Iterable[Piece]) -> Piece | None:
    """One piece of all; where both hold a cell, history wins. None where there is nothing.

    Neither holds an instant twice.
    """
    old, new = _in_a_row(history), _in_a_row(head)
    if old is None or new is None:
        return new if old is None else old
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


def block(columns: Columns, piece: Piece | None, start_us: int, end_us: int) -> Block | None:
    """The samples in start_us < at <= end_us; None where there are none."""
    if piece is None:
        return None
    low, high = np.searchsorted(piece.at, [start_us, end_us], side="right")
    if low == high:
        return None
    return Block(columns, piece.at[low:high], piece.values[low:high])
