"""Blocks of samples: what a store hands to the engine, and how blocks are cut and joined.

A block is a matrix: a row is an instant, a column is a series. Everything in here works on whole
blocks; what depends on labels alone is worked out once per `Columns` and remembered there.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from schemas.values import ABSENT, ABSENT_BITS, STALE_BITS

Floats = npt.NDArray[np.float64]
Instants = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]
Indexes = npt.NDArray[np.intp]
Labels = Mapping[str, str]

NAME = "__name__"

MAX_MEMO = 512
"""Results remembered per Columns. A rule set needs a few dozen; beyond, all are worked out anew."""

T = TypeVar("T")


class Columns(tuple[Labels, ...]):
    """The label sets of a block's columns, with a memory of what was derived from them.

    A store that keeps one Columns object per layout has the engine group, match and rename labels
    once per layout, not once per query. Equality is by identity.
    """

    memo: dict[Any, Any]

    def __new__(cls, labels: Sequence[Labels] = ()) -> "Columns":
        made = super().__new__(cls, labels)
        made.memo = {}
        return made

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other

    def __ne__(self, other: object) -> bool:
        return self is not other

    def remember(self, key: Any, derive: Callable[[], T]) -> T:
        """The result of `derive()` for these columns: worked out at the first call with this key.
        A result of None is not remembered.

        `key` must hold everything that the result depends on besides the columns themselves.
        """
        known: T | None = self.memo.get(key)
        if known is not None:
            return known
        if len(self.memo) >= MAX_MEMO:
            self.memo.clear()
        made = self.memo[key] = derive()
        return made

    def identities(self) -> tuple[frozenset[tuple[str, str]], ...]:
        """One hashable identity per column."""
        return self.remember("identities", lambda: tuple(frozenset(c.items()) for c in self))

    def take(self, indexes: Sequence[int]) -> "Columns":
        """These columns only, in this order; the same object for the same indexes."""
        key = ("take", tuple(indexes))
        return self.remember(key, lambda: Columns([self[index] for index in indexes]))


def columns_of(labels: Sequence[Labels]) -> Columns:
    """`labels` as Columns; a Columns object is returned as it is."""
    return labels if isinstance(labels, Columns) else Columns(labels)


def join_columns(parts: Sequence[Columns]) -> Columns:
    """All columns side by side; the same object for the same parts."""
    if len(parts) == 1:
        return parts[0]
    if not parts:
        return NO_COLUMNS
    key = ("join", *parts[1:])
    return parts[0].remember(key, lambda: Columns([one for part in parts for one in part]))


NO_COLUMNS = Columns()


class Block(NamedTuple):
    """Samples of some series at some instants.

    labels: a full label set per column, `__name__` included; a Columns object is kept as it is.
    at: int64 microseconds since 1970 UTC, (rows,), strictly ascending.
    values: float64, (rows, columns). ABSENT: no sample in this cell; STALE: the series ends here.
    """

    labels: Sequence[Labels]
    at: Instants
    values: Floats

    @property
    def columns(self) -> Columns:
        return columns_of(self.labels)


def cell_bits(values: Floats) -> npt.NDArray[np.uint64]:
    """The IEEE 754 bits of each cell, as a view."""
    return values.view(np.uint64)


def at_rows(values: Floats, rows: Indexes) -> Floats:
    """`values[rows]`, laid out in memory as `values` is: history comes column by column, and what
    is made of it stays so, which is several times as fast."""
    if values.strides[0] < values.strides[1]:
        return np.asarray(values.T.take(rows, axis=1).T)
    return values[rows]


def may_have_nan(values: Floats) -> bool:
    """False only where no value is NaN, absent and stale ones included: one look at each."""
    with np.errstate(all="ignore"):  # the end of a series is a signalling NaN
        return bool(np.isnan(values.sum()))


def dense_parts(
    block: Block, *, keep_stale: bool
) -> Iterator[tuple[Indexes | None, Instants, Floats]]:
    """Cuts a block into parts without holes: (column indexes, or None for all; at; values).

    A hole is an ABSENT cell, and a STALE one unless `keep_stale`. Columns with holes in the same
    rows stand in one part, so a block of one layout is seldom cut at all.
    """
    holes = None
    if may_have_nan(block.values):
        bits = cell_bits(block.values)
        holes = bits == ABSENT_BITS
        if not keep_stale:
            holes |= bits == STALE_BITS
    if holes is None or not holes.any():
        yield None, block.at, block.values
        return
    patterns: dict[bytes, list[int]] = {}
    for column, packed in enumerate(np.packbits(holes, axis=0).T):
        patterns.setdefault(packed.tobytes(), []).append(column)
    for members in patterns.values():
        rows = ~holes[:, members[0]]
        if rows.any():
            indexes = np.array(members, dtype=np.intp)
            yield indexes, block.at[rows], block.values[np.ix_(rows, indexes)]


def distinct_blocks(blocks: Sequence[Block]) -> list[Block]:
    """The same samples in blocks of which no two hold the same series.

    A series that moved from one layout to another, or from recent to older storage, is put together
    again. Where two blocks have a sample for one series and instant, the later block wins.
    """
    filled = [block for block in blocks if len(block.at) and len(block.labels)]
    if len(filled) < 2:
        return filled
    every = [block.columns for block in filled]
    groups = every[0].remember(("sharing", *every[1:]), lambda: _sharing(every))
    return [filled[g[0]] if len(g) == 1 else _merged([filled[i] for i in g]) for g in groups]


def _sharing(every: Sequence[Columns]) -> list[list[int]]:
    """Positions of columns, grouped so that those of different groups share no series."""
    group_of = list(range(len(every)))

    def root(position: int) -> int:
        while group_of[position] != position:
            group_of[position] = group_of[group_of[position]]
            position = group_of[position]
        return position

    first: dict[Any, int] = {}
    seen: dict[Columns, int] = {}
    for position, columns in enumerate(every):
        if columns in seen:
            group_of[root(position)] = root(seen[columns])
            continue
        seen[columns] = position
        for identity in columns.identities():
            other = first.setdefault(identity, position)
            if other != position:
                group_of[root(position)] = root(other)
    groups: dict[int, list[int]] = {}
    for position in range(len(every)):
        groups.setdefault(root(position), []).append(position)
    return list(groups.values())


def _merged(blocks: Sequence[Block]) -> Block:
    """One block of blocks that share series."""
    places: dict[Any, int] = {}
    labels: list[Labels] = []
    for block in blocks:
        columns = block.columns
        for identity, one in zip(columns.identities(), columns, strict=True):
            if places.setdefault(identity, len(labels)) == len(labels):
                labels.append(one)
    at = np.unique(np.concatenate([block.at for block in blocks]))
    values = np.full((len(at), len(labels)), ABSENT)
    for block in blocks:
        rows = np.searchsorted(at, block.at)
        targets = [places[identity] for identity in block.columns.identities()]
        cells = np.ix_(rows, np.array(targets, dtype=np.intp))
        here = cell_bits(block.values) != ABSENT_BITS
        values[cells] = np.where(here, block.values, values[cells])
    same = all(block.columns is blocks[0].columns for block in blocks)
    return Block(blocks[0].columns if same else Columns(labels), at, values)
