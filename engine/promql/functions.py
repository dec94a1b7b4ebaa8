"""Functions of instant vectors and numbers. Those over a window stand in windows.py.

To add one: write it as a function of (steps, arguments) and enter it in FUNCTIONS; types and
numbers of arguments are the parser's business.
"""

from collections.abc import Callable, Sequence

import numpy as np

from engine.promql.blocks import Columns, Floats, Instants
from engine.promql.tables import Table

Value = Table | Floats | str
"""What an expression gives over some steps: a vector, a number at each step, or a text."""

Function = Callable[[Instants, Sequence[Value]], Table | Floats]

_SINGLE = Columns([{}])


def _elementwise(operation: Callable[[Floats], Floats]) -> Function:
    """A function of each value by itself; it drops the metric name."""

    def applied(steps: Instants, arguments: Sequence[Value]) -> Table:
        table = _vector(arguments[0])
        return Table(table.columns, operation(table.values), table.present).without_name()

    return applied


def _vector(value: Value) -> Table:
    assert isinstance(value, Table)
    return value


def _scalar(value: Value) -> Floats:
    assert isinstance(value, np.ndarray)
    return value


def _clamped(table: Table, low: Floats, high: Floats) -> Table:
    values = np.maximum(low[:, None], np.minimum(high[:, None], table.values))
    present = table.present & ~(low > high)[:, None]
    return Table(table.columns, values, present).without_name()


def _clamp(steps: Instants, arguments: Sequence[Value]) -> Table:
    return _clamped(_vector(arguments[0]), _scalar(arguments[1]), _scalar(arguments[2]))


def _clamp_min(steps: Instants, arguments: Sequence[Value]) -> Table:
    low = _scalar(arguments[1])
    return _clamped(_vector(arguments[0]), low, np.full(len(steps), np.inf))


def _clamp_max(steps: Instants, arguments: Sequence[Value]) -> Table:
    high = _scalar(arguments[1])
    return _clamped(_vector(arguments[0]), np.full(len(steps), -np.inf), high)


def _round(steps: Instants, arguments: Sequence[Value]) -> Table:
    """To the nearest multiple, ties upwards: by the inverse, as Prometheus does."""
    table = _vector(arguments[0])
    inverse = 1.0 / (_scalar(arguments[1])[:, None] if len(arguments) > 1 else 1.0)
    values = np.floor(table.values * inverse + 0.5) / inverse
    return Table(table.columns, values, table.present).without_name()


def _time(steps: Instants, arguments: Sequence[Value]) -> Floats:
    return np.asarray(steps / 1_000_000)


def _of_number(steps: Instants, arguments: Sequence[Value]) -> Table:
    number = _scalar(arguments[0])
    return Table(_SINGLE, number[:, None], np.ones((len(steps), 1), dtype=np.bool_))


def _to_number(steps: Instants, arguments: Sequence[Value]) -> Floats:
    """The value where the vector has exactly one series, else NaN."""
    table = _vector(arguments[0])
    if not len(table.columns):
        return np.full(len(steps), np.nan)
    chosen = table.values[np.arange(len(steps)), table.present.argmax(axis=1)]
    return np.where(table.present.sum(axis=1) == 1, chosen, np.nan)


FUNCTIONS: dict[str, Function] = {
    "abs": _elementwise(np.abs),
    "ceil": _elementwise(np.ceil),
    "floor": _elementwise(np.floor),
    "exp": _elementwise(np.exp),
    "ln": _elementwise(np.log),
    "log2": _elementwise(np.log2),
    "log10": _elementwise(np.log10),
    "sqrt": _elementwise(np.sqrt),
    "sgn": _elementwise(np.sign),
    "round": _round,
    "clamp": _clamp,
    "clamp_min": _clamp_min,
    "clamp_max": _clamp_max,
    "time": _time,
    "vector": _of_number,
    "scalar": _to_number,
}

READS_TIME = frozenset({"time"})
"""Functions whose result changes with the instant, whatever their argument."""
