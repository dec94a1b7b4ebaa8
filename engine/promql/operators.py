"""Binary operators between numbers, vectors and numbers, and vectors."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.promql.blocks import NAME, Booleans, Columns, Floats, Indexes, Labels
from engine.promql.errors import QueryError
from engine.promql.nodes import Matching
from engine.promql.tables import Table, empty_table, nameless, united

Operation = Callable[[Floats, Floats], npt.NDArray[np.generic]]

ARITHMETIC: dict[str, Operation] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": np.divide,
    "%": np.fmod,
    "^": np.power,
}

COMPARISONS: dict[str, Operation] = {
    "==": np.equal,
    "!=": np.not_equal,
    ">": np.greater,
    "<": np.less,
    ">=": np.greater_equal,
    "<=": np.less_equal,
}

OPERATORS = ARITHMETIC | COMPARISONS


def between_scalars(op: str, left: Floats, right: Floats) -> Floats:
    """Two numbers at each step; comparisons give 0 or 1."""
    return np.asarray(OPERATORS[op](left, right), dtype=np.float64)


def with_scalar(op: str, table: Table, scalar: Floats, *, swapped: bool, as_bool: bool) -> Table:
    """A vector and a number at each step. `swapped`: the number stands on the left.

    A comparison that filters keeps the vector's values and metric names.
    """
    number = scalar[:, None]
    operands = (number, table.values) if swapped else (table.values, number)
    result = OPERATORS[op](*operands)
    if op in ARITHMETIC or as_bool:
        values = result.astype(np.float64, copy=False)
        return Table(table.columns, values, table.present).without_name()
    return Table(table.columns, table.values, table.present & result.astype(np.bool_, copy=False))


@dataclass(frozen=True, slots=True, eq=False)
class _Pairs:
    """Which columns of two tables belong together.

    `left` and `right` are positions of the pairs' columns (None: all, as they stand). Several pairs
    may share a match group (`groups`), of which at most one may be present at a step: `ambiguous`
    says that this can occur.
    """

    left: Indexes | None
    right: Indexes | None
    groups: Indexes
    ambiguous: bool
    columns: Columns


def between_vectors(op: str, left: Table, right: Table, matching: Matching, as_bool: bool) -> Table:
    """Two vectors, matched one to one. Raises QueryError where a match is not unique."""
    steps = len(left.values)
    if not len(left.columns) or not len(right.columns):
        return empty_table(steps)
    drops_name = op in ARITHMETIC or as_bool
    pairs = left.columns.remember(
        ("pairs", right.columns, matching, drops_name),
        lambda: _pair(left.columns, right.columns, matching, drops_name),
    )
    values, present = _taken(left, pairs.left)
    right_values, right_present = _taken(right, pairs.right)
    result = OPERATORS[op](values, right_values)
    present = present & right_present
    if pairs.ambiguous:
        _check_unique(right.present, right.columns, left.present, matching)
    if op in ARITHMETIC or as_bool:
        values = result.astype(np.float64, copy=False)
    else:
        present = present & result.astype(np.bool_, copy=False)
    if pairs.ambiguous:
        _check_groups(present, pairs.groups)
    return united(Table(pairs.columns, values, present))


def _taken(table: Table, indexes: Indexes | None) -> tuple[Floats, Booleans]:
    """Values and presence of these columns."""
    if indexes is None:
        return table.values, table.present
    return table.values[:, indexes], table.present[:, indexes]


def _key(labels: tuple[tuple[str, str], ...], matching: Matching) -> tuple[tuple[str, str], ...]:
    """The part of a label set by which vectors are matched."""
    if matching.on:
        return tuple(pair for pair in labels if pair[0] in matching.labels)
    return tuple(pair for pair in labels if pair[0] != NAME and pair[0] not in matching.labels)


def _keys(columns: Columns, matching: Matching) -> tuple[tuple[tuple[str, str], ...], ...]:
    return columns.remember(
        ("keys", matching),
        lambda: tuple(_key(tuple(sorted(one.items())), matching) for one in columns),
    )


def _pair(left: Columns, right: Columns, matching: Matching, drops_name: bool) -> _Pairs:
    places: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for position, key in enumerate(_keys(right, matching)):
        places.setdefault(key, []).append(position)
    found = [
        (position, other, key)
        for position, key in enumerate(_keys(left, matching))
        for other in places.get(key, ())
    ]
    numbers: dict[tuple[tuple[str, str], ...], int] = {}
    groups = [numbers.setdefault(key, len(numbers)) for _, _, key in found]
    several = len(numbers) < len(found) or any(len(members) > 1 for members in places.values())
    kept = [_result_labels(left[position], matching) for position, _, _ in found]
    columns = Columns(kept)
    return _Pairs(
        _indexes([position for position, _, _ in found], len(left)),
        _indexes([other for _, other, _ in found], len(right)),
        np.array(groups, dtype=np.intp),
        several,
        nameless(columns) if drops_name else columns,
    )


def _indexes(positions: list[int], width: int) -> Indexes | None:
    return None if positions == list(range(width)) else np.array(positions, dtype=np.intp)


def _result_labels(labels: Labels, matching: Matching) -> Labels:
    """Labels of a result: the left side's, cut down to what both sides were matched by."""
    if matching.on:
        return {name: labels[name] for name in matching.labels if name in labels}
    return {name: value for name, value in labels.items() if name not in matching.labels}


def _check_unique(right: Booleans, columns: Columns, left: Booleans, matching: Matching) -> None:
    """Raises QueryError where two series of the right side have one match key at one step."""
    numbers: dict[tuple[tuple[str, str], ...], int] = {}
    groups = np.array(
        [numbers.setdefault(key, len(numbers)) for key in _keys(columns, matching)], dtype=np.intp
    )
    asked = left.any(axis=1, keepdims=True)
    if _doubled(right & asked, groups):
        raise QueryError(
            "found duplicate series for a match group on the right hand-side of the operation:"
            " many-to-many matching not allowed: matching labels must be unique on one side"
        )


def _check_groups(present: Booleans, groups: Indexes) -> None:
    """Raises QueryError where one match group gave two results at one step."""
    if _doubled(present, groups):
        raise QueryError(
            "multiple matches for labels: many-to-one matching must be explicit"
            " (group_left/group_right)"
        )


def _doubled(present: Booleans, groups: Indexes) -> bool:
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    if not len(starts):
        return False
    counts = np.add.reduceat(present[:, order].astype(np.intp), starts, axis=1)
    return bool((counts > 1).any())
