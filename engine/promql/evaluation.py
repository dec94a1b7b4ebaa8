"""Walks a tree of nodes over a list of steps: blocks of samples in, a table out, no I/O."""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from engine.promql import (
    aggregations,
    edges,
    functions,
    info,
    matching,
    operators,
    over_time,
    reading,
    selections,
    windows,
)
from engine.promql.blocks import Block, Floats, Instants
from engine.promql.errors import QueryError
from engine.promql.functions import Value
from engine.promql.limits import DEFAULT_LIMITS, Limits
from engine.promql.nodes import (
    Aggregate,
    Binary,
    Call,
    Info,
    Negate,
    Node,
    Number,
    RangeSelector,
    Selector,
    Subquery,
    Text,
)
from engine.promql.reading import Blocks, Bounds
from engine.promql.tables import Table
from schemas.values import ABSENT


class Span(NamedTuple):
    """The steps of a query, their bounds, the blocks it reads, and what is known already.

    `known` holds the value of each node that was evaluated, by the node's identity; None where
    nothing is shared, so that no intermediate result outlives its use.
    """

    steps: Instants
    bounds: Bounds
    blocks: Blocks
    known: dict[int, Value] | None
    limits: Limits = DEFAULT_LIMITS


def samples_of(node: RangeSelector | Subquery, span: Span) -> Sequence[Block]:
    """The samples that a range selector selects, or the results of a subquery, as blocks."""
    if isinstance(node, RangeSelector):
        return span.blocks[reading.select_range(node, span.bounds)]
    bounds = reading.within(node, span.bounds)
    steps = reading.subquery_steps(node, bounds)
    if not len(steps):
        return []
    table = evaluate(node.operand, Span(steps, bounds, span.blocks, None, span.limits))
    assert isinstance(table, Table)
    plain = np.where(np.isnan(table.values), np.nan, table.values)
    return [Block(table.columns, steps, np.where(table.present, plain, ABSENT))]


def window_ends(node: RangeSelector | Subquery, span: Span) -> Instants:
    """Where the window of a range selector or subquery ends at each step."""
    selector = node.selector if isinstance(node, RangeSelector) else node
    return reading.steps_of(selector, span.steps, span.bounds)


def evaluate(node: Node, span: Span) -> Value:
    """The value of a node at every step: a table, an array of a number per step, or a text.

    Runs under numpy.errstate(all="ignore"). Raises QueryError where the data forbids an answer (a
    match that is not unique).
    """
    known = span.known
    if known is None:
        span.limits.check()
        return _EVALUATORS[type(node)](node, span)
    value = known.get(id(node))
    if value is None:
        span.limits.check()
        value = known[id(node)] = _EVALUATORS[type(node)](node, span)
    return value


@lru_cache(maxsize=1024)
def _constant(value: float, sign: float) -> Floats:
    """At one instant. sign: that of the value, since 0.0 and -0.0 are equal, and 1 / 0 is not."""
    return np.full(1, value)


def _number(node: Number, span: Span) -> Floats:
    if len(span.steps) == 1:
        return _constant(node.value, math.copysign(1.0, node.value))
    return np.full(len(span.steps), node.value)


def _selector(node: Selector, span: Span) -> Table:
    bounds = span.bounds
    blocks = span.blocks[reading.select_newest(node, bounds)]
    if node.edges == edges.SMOOTHED:
        instants = reading.steps_of(node, span.steps, bounds)
        return edges.smoothed(blocks, instants, bounds.lookback_us, span.steps, span.limits)
    if node.edges is not None:
        raise QueryError(f"{node.edges} modifier can only be used with a range selector")
    steps = reading.steps_of(node, span.steps, bounds)
    return windows.newest(blocks, steps, bounds.lookback_us, span.limits)


def _aggregate(node: Aggregate, span: Span) -> Table:
    table = evaluate(node.operand, span)
    assert isinstance(table, Table)
    without, labels = node.without, node.labels
    if node.parameter is None:
        return aggregations.aggregate(node.op, table, without=without, labels=labels)
    parameter = evaluate(node.parameter, span)
    if isinstance(parameter, str):
        return aggregations.count_values(parameter, table, without=without, labels=labels)
    assert isinstance(parameter, np.ndarray)
    if node.op == "quantile":
        return aggregations.quantile(parameter, table, without=without, labels=labels)
    return selections.select(node.op, table, parameter, without=without, labels=labels)


def _call(node: Call, span: Span) -> Value:
    if node.function in over_time.FUNCTIONS:
        return _windowed(node, span)
    if node.function in _OF_NODES:
        return _OF_NODES[node.function](node.arguments[0], span)
    if node.function in _OF_QUERY:
        return np.full(len(span.steps), _OF_QUERY[node.function](span.bounds) / windows.SECOND_US)
    values = [evaluate(argument, span) for argument in node.arguments]
    return functions.FUNCTIONS[node.function](span.steps, values)


def _negated(node: Negate, span: Span) -> Value:
    value = evaluate(node.operand, span)
    if isinstance(value, Table):
        return Table(value.columns, -value.values, value.present).without_name()
    assert isinstance(value, np.ndarray)
    return -value


def _binary(node: Binary, span: Span) -> Value:
    left, right = evaluate(node.left, span), evaluate(node.right, span)
    assert not isinstance(left, str)
    assert not isinstance(right, str)
    if isinstance(left, Table) and isinstance(right, Table):
        if node.op in operators.SET_OPERATORS:
            return matching.set_operation(node.op, left, right, node.matching)
        return matching.between_vectors(node.op, left, right, node.matching, node.as_bool)
    if isinstance(left, Table):
        assert isinstance(right, np.ndarray)
        return operators.with_scalar(node.op, left, right, swapped=False, as_bool=node.as_bool)
    if isinstance(right, Table):
        return operators.with_scalar(node.op, right, left, swapped=True, as_bool=node.as_bool)
    return operators.between_scalars(node.op, left, right)


def _windowed(node: Call, span: Span) -> Table:
    table = _over_windows(node.function, node.arguments, span)
    return table if node.function in over_time.KEEPS_NAME else table.without_name()


def _over_windows(function: str, arguments: Sequence[Node], span: Span) -> Table:
    """A function over a window, metric names kept."""
    parameters = []
    for argument in arguments:
        if isinstance(argument, RangeSelector | Subquery):
            selected = argument
        else:
            parameters.append(np.asarray(evaluate(argument, span), dtype=np.float64))
    if isinstance(selected, RangeSelector) and selected.selector.edges is not None:
        return edges.over_edges(
            samples_of(selected, span),
            window_ends(selected, span),
            selected.range_us,
            function,
            selected.selector.edges,
            span.steps,
            span.bounds.lookback_us,
            span.limits,
        )
    return windows.over_windows(
        samples_of(selected, span),
        window_ends(selected, span),
        selected.range_us,
        over_time.FUNCTIONS[function],
        span.steps,
        parameters,
        span.limits,
    )


def _absent(argument: Node, span: Span) -> Table:
    table = evaluate(argument, span)
    assert isinstance(table, Table)
    return functions.absence(table, argument)


def _absent_over_time(argument: Node, span: Span) -> Table:
    assert isinstance(argument, RangeSelector | Subquery)
    table = _over_windows("present_over_time", [argument], span)
    inner = argument.selector if isinstance(argument, RangeSelector) else argument
    return functions.absence(table, inner)


def _timestamp(argument: Node, span: Span) -> Table:
    """Of a selector, when its samples were taken; of anything else, the instant itself."""
    if isinstance(argument, Selector):
        return _instants(argument, span).without_name()
    table = evaluate(argument, span)
    assert isinstance(table, Table)
    now = np.broadcast_to((span.steps / windows.SECOND_US)[:, None], table.values.shape)
    return Table(table.columns, now, table.present).without_name()


def _instants(node: Selector, span: Span) -> Table:
    """When the newest samples of the selected series were taken."""
    blocks = span.blocks[reading.select_newest(node, span.bounds)]
    steps = reading.steps_of(node, span.steps, span.bounds)
    lookback_us = span.bounds.lookback_us
    return windows.instants_of_newest(blocks, steps, lookback_us, span.limits)


def _info(node: Info, span: Span) -> Table:
    base = evaluate(node.operand, span)
    assert isinstance(base, Table)
    return info.enriched(base, _instants(node.selector, span), node.selector.matchers)


_OF_NODES: dict[str, Callable[[Node, Span], Table]] = {
    "absent": _absent,
    "absent_over_time": _absent_over_time,
    "timestamp": _timestamp,
}
"""Functions of which it matters what expression their argument is."""

_OF_QUERY: dict[str, Callable[[Bounds], int]] = {
    "start": lambda bounds: bounds.query_start_us,
    "end": lambda bounds: bounds.query_end_us,
    "range": lambda bounds: bounds.query_end_us - bounds.query_start_us,
    "step": lambda bounds: bounds.step_us,
}
"""What the whole query's bounds are, in µs."""

_EVALUATORS: dict[type[Node], Callable[[Any, Span], Value]] = {
    Number: _number,
    Text: lambda node, span: node.value,
    Selector: _selector,
    Negate: _negated,
    Binary: _binary,
    Aggregate: _aggregate,
    Call: _call,
    Info: _info,
}
