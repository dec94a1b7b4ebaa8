"""Walks a tree of nodes over a list of steps: blocks of samples in, a table out, no I/O."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from engine.promql import aggregations, functions, operators, windows
from engine.promql.blocks import Block, Instants
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


@dataclass(frozen=True, slots=True)
class Select:
    """What must be read: samples of matching series, start_us < at <= end_us; more is no harm."""

    matchers: tuple[Matcher, ...]
    start_us: int
    end_us: int
    newest: bool = False
    """Of each series only the newest sample at or before each step counts, not all of them."""


class Blocks(Protocol):
    """Where blocks come from: a dict, or a store's own view of its memory."""

    def __getitem__(self, select: Select, /) -> Sequence[Block]: ...


@dataclass(frozen=True, slots=True)
class Span:
    """The steps of a query, what it looks back, and the blocks it reads."""

    steps: Instants
    start_us: int
    end_us: int
    lookback_us: int
    blocks: Blocks


def selects_of(node: Node, start_us: int, end_us: int, lookback_us: int) -> Iterator[Select]:
    """What the selectors of a tree read for steps from start to end, in the order of the text."""
    match node:
        case Selector():
            yield _select(node, start_us, end_us, lookback_us, newest=True)
        case RangeSelector(selector, range_us):
            yield _select(selector, start_us, end_us, range_us, newest=False)
        case Negate(operand) | Aggregate(_, operand):
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

    Raises QueryError where the data forbids it (a match that is not unique).
    """
    match node:
        case Number(value):
            return np.full(len(span.steps), value)
        case Text(text):
            return text
        case Selector():
            lookback_us = span.lookback_us
            select = _select(node, span.start_us, span.end_us, lookback_us, newest=True)
            return windows.newest(span.blocks[select], steps_of(node, span), lookback_us)
        case Negate(operand):
            return _negated(evaluate(operand, span))
        case Binary():
            return _binary(node, span)
        case Aggregate(op, operand, without, labels):
            table = evaluate(operand, span)
            assert isinstance(table, Table)
            return aggregations.aggregate(op, table, without=without, labels=labels)
        case Call(function, (RangeSelector() as argument,)):
            return _windowed(function, argument, span)
        case Call(function, arguments):
            values = [evaluate(argument, span) for argument in arguments]
            return functions.FUNCTIONS[function](span.steps, values)
        case RangeSelector():
            raise AssertionError("a range selector stands only in a call")


def _negated(value: Value) -> Value:
    if isinstance(value, Table):
        return Table(value.columns, -value.values, value.present).without_name()
    assert isinstance(value, np.ndarray)
    return -value


def _binary(node: Binary, span: Span) -> Value:
    left, right = evaluate(node.left, span), evaluate(node.right, span)
    assert not isinstance(left, str)
    assert not isinstance(right, str)
    if isinstance(left, Table) and isinstance(right, Table):
        return operators.between_vectors(node.op, left, right, node.matching, node.as_bool)
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
