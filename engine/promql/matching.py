"""Binary operators between two vectors: which series belong together, and what comes of them.

Which columns match depends on labels alone, and is remembered with the columns; which of them are
present differs from step to step.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.promql.blocks import (
    NAME,
    Booleans,
    Columns,
    Floats,
    Indexes,
    Labels,
    join_columns,
)
from engine.promql.errors import QueryError
from engine.promql.formatting import format_label_set
from engine.promql.nodes import Matching
from engine.promql.operators import ARITHMETIC, OPERATORS
from engine.promql.tables import (
    Table,
    empty_table,
    join_tables,
    relabelled,
    united,
    unnamed,
    without_metadata,
)

MAX_PAIRS = 1_000_000
"""Pairs of series that may match, each at its own time: `a * on () b` could make any number."""

Key = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Pairs:
    """Which columns of two tables belong together.

    `many` and `one` are positions of the pairs' columns (None: all, as they stand). Several pairs
    may share a group (`groups`), of which at most one may be present at a step: `ambiguous` says
    that this can occur. `repeated`: several columns of the one side share a key.
    """

    many: Indexes | None
    one: Indexes | None
    groups: Indexes
    ambiguous: bool
    repeated: bool
    columns: Columns


def between_vectors(op: str, left: Table, right: Table, matching: Matching, as_bool: bool) -> Table:
    """Two vectors, matched one to one or many to one. Raises QueryError where it is not unique."""
    left, right = _filled(left, right, matching)
    if not len(left.columns) or not len(right.columns):
        return empty_table(len(left.values))
    swapped = matching.many == "right"
    many, one = (right, left) if swapped else (left, right)
    anew = op in ARITHMETIC
    pairs = many.columns.remember(
        ("pairs", one.columns, matching, anew),
        lambda: _pair(many, one, matching, anew),
    )
    if pairs.repeated:
        _check_unique(one, many.present, matching)
    values, present = _taken(many, pairs.many)
    one_values, one_present = _taken(one, pairs.one)
    operands = (one_values, values) if swapped else (values, one_values)
    result = OPERATORS[op](*operands)
    present = present & one_present
    if pairs.ambiguous:
        _check_groups(present, pairs.groups, matching)
    if anew:
        return united(Table(pairs.columns, result.astype(np.float64, copy=False), present))
    if as_bool:
        shown = unnamed(pairs.columns)
        return united(Table(shown, result.astype(np.float64, copy=False), present))
    present = present & result.astype(np.bool_, copy=False)
    return united(Table(pairs.columns, operands[0], present))


def _filled(left: Table, right: Table, matching: Matching) -> tuple[Table, Table]:
    """Both vectors with what the fill modifiers add: a value where only the other has a series."""
    fill_left, fill_right = matching.fill
    if matching.many == "right":  # Prometheus turns the sides with group_right, but not the fills
        fill_left, fill_right = fill_right, fill_left
    if fill_left is None and fill_right is None:
        return left, right
    return (
        left if fill_left is None else _with_fill(left, right, fill_left, matching),
        right if fill_right is None else _with_fill(right, left, fill_right, matching),
    )


def _with_fill(table: Table, other: Table, value: float, matching: Matching) -> Table:
    keys = list(dict.fromkeys(_keys(other.columns, matching)))
    added = Columns([dict(key) for key in keys])
    exact = Matching(on=matching.on, labels=matching.labels)
    present = _found(added, other, exact) & ~_found(added, table, exact)
    filled = Table(added, np.full(present.shape, value), present)
    return join_tables([table, filled], len(present))


def _taken(table: Table, indexes: Indexes | None) -> tuple[Floats, Booleans]:
    """Values and presence of these columns."""
    if indexes is None:
        return table.values, table.present
    return table.values[:, indexes], table.present[:, indexes]


def _key(labels: Labels, matching: Matching) -> Key:
    """The part of a label set by which vectors are matched."""
    pairs = sorted(labels.items())
    if matching.on:
        return tuple(pair for pair in pairs if pair[0] in matching.labels)
    return tuple(pair for pair in pairs if pair[0] != NAME and pair[0] not in matching.labels)


def _keys(columns: Columns, matching: Matching) -> tuple[Key, ...]:
    return columns.remember(
        ("keys", matching.on, matching.labels),
        lambda: tuple(_key(one, matching) for one in columns),
    )


def _pair(many: Table, one: Table, matching: Matching, anew: bool) -> _Pairs:
    """The pairs of two vectors. anew: their results are values of no metric."""
    places: dict[Key, list[int]] = {}
    for position, key in enumerate(_keys(one.columns, matching)):
        places.setdefault(key, []).append(position)
    count = sum(len(places.get(key, ())) for key in _keys(many.columns, matching))
    if count > MAX_PAIRS:
        _check_unique(one, many.present, matching)
        raise QueryError(f"{count} pairs of series match; at most {MAX_PAIRS}")
    found = [
        (position, other, key)
        for position, key in enumerate(_keys(many.columns, matching))
        for other in places.get(key, ())
    ]
    columns = Columns(
        [
            _result_labels(many.columns[place], one.columns[other], matching, anew)
            for place, other, _ in found
        ]
    )
    numbers: dict[object, int] = {}
    groups = [
        numbers.setdefault((key, identity) if matching.many else key, len(numbers))
        for (_, _, key), identity in zip(found, columns.identities(), strict=True)
    ]
    return _Pairs(
        _indexes([position for position, _, _ in found], len(many.columns)),
        _indexes([other for _, other, _ in found], len(one.columns)),
        np.array(groups, dtype=np.intp),
        len(numbers) < len(found),
        len(places) < len(one.columns),
        columns,
    )


def _indexes(positions: list[int], width: int) -> Indexes | None:
    return None if positions == list(range(width)) else np.array(positions, dtype=np.intp)


def _result_labels(many: Labels, one: Labels, matching: Matching, anew: bool) -> Labels:
    """Of a pair matched one to one: what they were matched by; else the many side's labels, with
    those that group_left or group_right copies from the one side."""
    labels = without_metadata(many) if anew else many
    if matching.many is None:
        on, listed = matching.on, matching.labels
        kept = {name: value for name, value in labels.items() if (name in listed) is on}
        return relabelled(many, kept)
    kept = {name: value for name, value in labels.items() if name not in matching.include}
    kept |= {name: one[name] for name in matching.include if one.get(name)}
    if NAME in matching.include:
        return relabelled(one, kept)
    return relabelled(many, kept)


def _check_unique(one: Table, many: Booleans, matching: Matching) -> None:
    """Raises QueryError where two series of the one side have one match key at one step."""
    keys = _keys(one.columns, matching)
    asked = one.present & many.any(axis=1, keepdims=True)
    column = _doubled(asked, _numbered(keys))
    if column is not None:
        same = [place for place, key in enumerate(keys) if key == keys[column]]
        shown = sorted(format_label_set(one.columns[place]) for place in same)[:2]
        side = "left" if matching.many == "right" else "right"
        raise QueryError(
            f"found duplicate series for the match group {format_label_set(dict(keys[column]))} on"
            f" the {side} hand-side of the operation: [{', '.join(shown)}];"
            "many-to-many matching not allowed: matching labels must be unique on one side"
        )


def _check_groups(present: Booleans, groups: Indexes, matching: Matching) -> None:
    """Raises QueryError where one match group gave two results at one step."""
    if _doubled(present, groups) is None:
        return
    if matching.many is None:
        raise QueryError(
            "multiple matches for labels: many-to-one matching must be explicit"
            " (group_left/group_right)"
        )
    raise QueryError("multiple matches for labels: grouping labels must ensure unique matches")


def _numbered(keys: Sequence[Key]) -> Indexes:
    numbers: dict[Key, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.intp)


def _doubled(present: Booleans, groups: Indexes) -> int | None:
    """A column of a group of which two columns are present at one step."""
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    if not len(starts):
        return None
    counts = np.add.reduceat(present[:, order], starts, axis=1, dtype=np.intp)
    doubled = np.flatnonzero((counts > 1).any(axis=0))
    return int(order[starts[doubled[0]]]) if len(doubled) else None


def set_operation(op: str, left: Table, right: Table, matching: Matching) -> Table:
    """and, or, unless: by whether the other vector has a series of the same key at that step."""
    if op == "or":
        added = right.present & ~_found(right.columns, left, matching)
        columns = join_columns([left.columns, right.columns])
        return united(
            Table(
                columns,
                np.hstack([left.values, right.values]),
                np.hstack([left.present, added]),
            )
        )
    found = _found(left.columns, right, matching)
    return Table(left.columns, left.values, left.present & (found if op == "and" else ~found))


def _found(columns: Columns, other: Table, matching: Matching) -> Booleans:
    """(steps, columns): whether `other` has a present series with the column's key."""
    if not len(other.columns):
        return np.zeros((len(other.values), len(columns)), dtype=np.bool_)
    order, starts, groups = columns.remember(
        ("found", other.columns, matching.on, matching.labels),
        lambda: _lookup(_keys(columns, matching), _keys(other.columns, matching)),
    )
    some = np.logical_or.reduceat(other.present[:, order], starts, axis=1)
    return np.asarray(np.pad(some, ((0, 0), (0, 1)))[:, groups])


def _lookup(asked: Sequence[Key], keys: Sequence[Key]) -> tuple[Indexes, Indexes, Indexes]:
    """(positions of `keys`, sorted by key; where each key begins; which of these each asked one is,
    or one past the last)."""
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    which = np.array([numbers[key] for key in keys], dtype=np.intp)
    order = np.argsort(which, kind="stable")
    starts = np.searchsorted(which[order], np.arange(len(numbers)))
    groups = [numbers.get(key, len(numbers)) for key in asked]
    return order, starts, np.array(groups, dtype=np.intp)
