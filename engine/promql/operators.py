"""Binary operators between numbers, and between vectors and numbers."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from engine.promql.blocks import Floats
from engine.promql.tables import Table

Operation = Callable[[Floats, Floats], npt.NDArray[np.generic]]

ARITHMETIC: dict[str, Operation] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": np.divide,
    "%": np.fmod,
    "^": np.power,
    "atan2": np.arctan2,
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

SET_OPERATORS = frozenset({"and", "or", "unless"})


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
