"""Functions of instant vectors and numbers. Those over a window stand in windows.py.

To add one: write it as a function of (steps, arguments) and enter it in FUNCTIONS; types and
numbers of arguments are the parser's business.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from engine.promql import dates, histograms, relabeling, selections
from engine.promql.blocks import NAME, Columns, Floats, Instants
from engine.promql.formatting import format_value
from engine.promql.matchers import MatchOp
from engine.promql.nodes import Node, Selector
from engine.promql.tables import Table, join_tables, united

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
    """As Go's math.Min and Max: NaN beside the utmost infinity counts for nothing."""
    values = np.minimum(high[:, None], table.values)
    values[(high == -np.inf)[:, None] | (table.values == -np.inf)] = -np.inf
    topmost = (low == np.inf)[:, None] | (values == np.inf)
    values = np.where(topmost, np.inf, np.maximum(low[:, None], values))
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


def _pi(steps: Instants, arguments: Sequence[Value]) -> Floats:
    return np.full(len(steps), math.pi)


def _date(name: str) -> Function:
    """A part of the date of each value, or of the instant."""

    def applied(steps: Instants, arguments: Sequence[Value]) -> Table:
        now = _of_number(steps, [_time(steps, ())])
        table = _vector(arguments[0]) if arguments else now
        return Table(table.columns, dates.part(name, table.values), table.present).without_name()

    return applied


def _sorted(op: str) -> Function:
    """Order by value, which only the answer at one instant has; NaN last."""

    def applied(steps: Instants, arguments: Sequence[Value]) -> Table:
        table = _vector(arguments[0])
        if len(steps) > 1:
            return table
        every = np.full(1, len(table.columns), dtype=np.float64)
        return selections.select(op, table, every, without=False, labels=())

    return applied


def _sorted_by_label(*, descending: bool) -> Function:
    """Order by labels, which only the answer at one instant has."""

    def applied(steps: Instants, arguments: Sequence[Value]) -> Table:
        table = _vector(arguments[0])
        if len(steps) > 1:
            return table
        names = [_text(name) for name in arguments[1:]]
        order = relabeling.label_order(table.columns, names, descending=descending)
        columns = Columns([table.columns[place] for place in order])
        return Table(columns, table.values[:, order], table.present[:, order])

    return applied


def _text(value: Value) -> str:
    assert isinstance(value, str)
    return value


def _label_replace(steps: Instants, arguments: Sequence[Value]) -> Table:
    table, target, template, source, pattern = arguments
    return relabeling.label_replace(
        _vector(table), _text(target), _text(template), _text(source), _text(pattern)
    )


def _label_join(steps: Instants, arguments: Sequence[Value]) -> Table:
    return relabeling.label_join(_vector(arguments[0]), *[_text(one) for one in arguments[1:]])


def _histogram_quantile(steps: Instants, arguments: Sequence[Value]) -> Table:
    return histograms.estimated(_vector(arguments[1]), histograms.quantile, _scalar(arguments[0]))


def _histogram_quantiles(steps: Instants, arguments: Sequence[Value]) -> Table:
    """One series per quantile, told apart by a label. The quantile of the last step names it."""
    label, tables = _text(arguments[1]), []
    for ratio in map(_scalar, arguments[2:]):
        found = histograms.estimated(_vector(arguments[0]), histograms.quantile, ratio)
        shown = format_value(float(ratio[-1]))
        shown += "" if "." in shown or not shown[-1].isdigit() else ".0"  # as in OpenMetrics
        tables.append(histograms.labelled(found, label, shown))
    return united(join_tables(tables, len(steps)))


def _histogram_fraction(steps: Instants, arguments: Sequence[Value]) -> Table:
    lower, upper = _scalar(arguments[0]), _scalar(arguments[1])
    return histograms.estimated(_vector(arguments[2]), histograms.fraction, lower, upper)


def absence(table: Table, argument: Node) -> Table:
    """1 at the steps at which a vector has no series. Its labels: what the selector, if it is one,
    requires to be equal, once."""
    labels: dict[str, str] = {}
    seen: set[str] = set()
    for one in argument.matchers if isinstance(argument, Selector) else ():
        if one.name == NAME:
            continue
        if one.op is MatchOp.EQUAL and one.name not in seen and one.value:
            labels[one.name] = one.value
            seen.add(one.name)
        else:
            labels.pop(one.name, None)
    missing = np.logical_not(table.present.any(axis=1, keepdims=True))
    return Table(Columns([labels]), np.ones(missing.shape), missing)


FUNCTIONS: dict[str, Function] = {
    "abs": _elementwise(np.abs),
    "ceil": _elementwise(np.ceil),
    "floor": _elementwise(np.floor),
    "exp": _elementwise(np.exp),
    "ln": _elementwise(np.log),
    "log2": _elementwise(np.log2),
    "log10": _elementwise(np.log10),
    "sqrt": _elementwise(np.sqrt),
    "sgn": _elementwise(lambda values: np.copysign(np.sign(values), values)),
    "round": _round,
    "clamp": _clamp,
    "clamp_min": _clamp_min,
    "clamp_max": _clamp_max,
    **{
        name: _elementwise(getattr(np, "arc" + name[1:] if name[0] == "a" else name))
        for name in (
            *("sin", "cos", "tan", "asin", "acos", "atan"),
            *("sinh", "cosh", "tanh", "asinh", "acosh", "atanh"),
        )
    },
    "deg": _elementwise(np.degrees),
    "rad": _elementwise(np.radians),
    "pi": _pi,
    "min_of": lambda steps, two: np.asarray(np.minimum(_scalar(two[0]), _scalar(two[1]))),
    "max_of": lambda steps, two: np.asarray(np.maximum(_scalar(two[0]), _scalar(two[1]))),
    **{name: _date(name) for name in dates.PARTS},
    "sort": _sorted("bottomk"),
    "sort_desc": _sorted("topk"),
    "sort_by_label": _sorted_by_label(descending=False),
    "sort_by_label_desc": _sorted_by_label(descending=True),
    "label_replace": _label_replace,
    "label_join": _label_join,
    "histogram_quantile": _histogram_quantile,
    "histogram_quantiles": _histogram_quantiles,
    "histogram_fraction": _histogram_fraction,
    "time": _time,
    "vector": _of_number,
    "scalar": _to_number,
}

SCALARS = frozenset({"time", "scalar", "pi", "min_of", "max_of", "start", "end", "range", "step"})
"""Functions that give a number, not a vector."""

READS_TIME = frozenset({"time", "timestamp", "start", "end", *dates.PARTS})
"""Functions whose result may change with the instant, whatever their argument."""
