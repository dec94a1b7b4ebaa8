"""Walks a tree of nodes over a list of steps: blocks of samples in, a table out, no I/O."""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np

from engine.promql import aggregations, functions, matching, operators, selections, windows
from engine.promql.blocks import Block, Floats, Instants
from engine.promql.functions import Value
from engine.promql.matchers import Matcher
from engine.promql.nodes import (
    Aggregate,
    Binary,
    Call,
    Negate,
    Node,
    Number,
    RangeSelector,
    Selector,
    Text,
)
from engine.promql.tables import Table


class Select(NamedTuple):
    """What must be read: samples of matching series, start_us < at <= end_us; more is no harm."""

    matchers: tuple[Matcher, ...]
    start_us: int
    end_us: int
    newest: bool = False
    """Of each series only the newest sample at or before each step counts, not all of them."""


class Blocks(Protocol):
    """Where blocks come from: a dict, or a store's own view of its memory."""

    def __getitem__(self, select: Select, /) -> Sequence[Block]: ...


class Span(NamedTuple):
    """The steps of a query, what it looks back, the blocks it reads, and what is known already.

    `known` holds the value of each node that was evaluated, by the node's identity; None where
    nothing is shared, so that no intermediate result outlives its use.
    """

    steps: Instants
    start_us: int
    end_us: int
    lookback_us: int
    blocks: Blocks
    known: dict[int, Value] | None


def selects_of(node: Node, start_us: int, end_us: int, lookback_us: int) -> Iterator[Select]:
    """What the selectors of a tree read for steps from start to end, in the order of the text."""
    match node:
        case Selector():
            yield _select(node, start_us, end_us, lookback_us, newest=True)
        case RangeSelector(selector, range_us):
            yield _select(selector, start_us, end_us, range_us, newest=False)
        case Negate(operand):
            yield from selects_of(operand, start_us, end_us, lookback_us)
        case Aggregate(_, operand, _, _, parameter):
            if parameter is not None:
                yield from selects_of(parameter, start_us, end_us, lookback_us)
            yield from selects_of(operand, start_us, end_us, lookback_us)
        case Binary(_, left, right):
            yield from selects_of(left, start_us, end_us, lookback_us)
            yield from selects_of(right, start_us, end_us, lookback_us)
        case Call(_, arguments):
            for argument in arguments:
                yield from selects_of(argument, start_us, end_us, lookback_us)
        case _:
            return


def _select(
    selector: Selector, start_us: int, end_us: int, window_us: int, *, newest: bool
) -> Select:
    if selector.pinned is not None:
        pinned = selector.pinned
        at = {"start": start_us, "end": end_us}[pinned] if isinstance(pinned, str) else pinned
        start_us = end_us = at
    offset = selector.offset_us
    return Select(selector.matchers, start_us - offset - window_us, end_us - offset, newest)


def steps_of(selector: Selector, span: Span) -> Instants:
    """The instants at which a selector is read, by its offset and `@`."""
    if selector.pinned is None:
        return span.steps - selector.offset_us if selector.offset_us else span.steps
    pinned = selector.pinned
    if isinstance(pinned, str):
        pinned = span.start_us if pinned == "start" else span.end_us
    return np.full(len(span.steps), pinned - selector.offset_us, dtype=np.int64)


def samples_of(node: RangeSelector, span: Span) -> Sequence[Block]:
    """The blocks of a range selector."""
    selector, range_us = node.selector, node.range_us
    return span.blocks[_select(selector, span.start_us, span.end_us, range_us, newest=False)]


def evaluate(node: Node, span: Span) -> Value:
    """The value of a node at every step: a table, an array of a number per step, or a text.

    Runs under numpy.errstate(all="ignore"). Raises QueryError where the data forbids an answer (a
    match that is not unique).
    """
    known = span.known
    if known is None:
        return _EVALUATORS[type(node)](node, span)
    value = known.get(id(node))
    if value is None:
        value = known[id(node)] = _EVALUATORS[type(node)](node, span)
    return value


@lru_cache(maxsize=1024)
def _constant(value: float, steps: int) -> Floats:
    return np.full(steps, value)


def _number(node: Number, span: Span) -> Floats:
    steps = len(span.steps)
    return _constant(node.value, steps) if steps == 1 else np.full(steps, node.value)


def _selector(node: Selector, span: Span) -> Table:
    select = _select(node, span.start_us, span.end_us, span.lookback_us, newest=True)
    return windows.newest(span.blocks[select], steps_of(node, span), span.lookback_us)


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
    arguments = node.arguments
    if arguments and isinstance(arguments[0], RangeSelector):
        return _windowed(node.function, arguments[0], span)
    values = [evaluate(argument, span) for argument in arguments]
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


def _windowed(function: str, argument: RangeSelector, span: Span) -> Table:
    blocks = samples_of(argument, span)
    steps = steps_of(argument.selector, span)
    table = windows.over_windows(blocks, steps, argument.range_us, windows.FUNCTIONS[function])
    return table if function in windows.KEEPS_NAME else table.without_name()


_EVALUATORS: dict[type[Node], Callable[[Any, Span], Value]] = {
    Number: _number,
    Text: lambda node, span: node.value,
    Selector: _selector,
    Negate: _negated,
    Binary: _binary,
    Aggregate: _aggregate,
    Call: _call,
}
