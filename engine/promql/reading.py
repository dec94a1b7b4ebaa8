"""What an expression reads, and at which instants: offsets, `@` and subqueries resolved."""

from collections.abc import Iterator, Sequence
from math import gcd
from typing import NamedTuple, Protocol

import numpy as np

from engine.promql.blocks import Block, Instants
from engine.promql.errors import QueryError
from engine.promql.matchers import Matcher
from engine.promql.nodes import Node, RangeSelector, Selector, Subquery, parts

DEFAULT_STEP_US = 60_000_000
"""Step of a subquery that names none: Prometheus' default evaluation interval."""

MAX_SUBQUERY_STEPS = 1_000_000
"""Steps of one subquery: a month at 2.6 s."""


class Select(NamedTuple):
    """What must be read: samples of matching series, start_us < at <= end_us; more is no harm."""

    matchers: tuple[Matcher, ...]
    start_us: int
    end_us: int
    newest: bool = False
    """Of each series only the newest sample at or before each step of the query counts."""
    column: str = "lasts"
    """What may stand in for samples where the store has rollups of them (rollups.py)."""
    window_us: int = 0
    """How far each step looks back."""
    grid_us: int = 0
    """The window of the first step begins and ends at multiples of this, and rollups serve as well
    as samples if all do; 0 where they don't."""


class Blocks(Protocol):
    """Where blocks come from: a dict, or a store's own view of its memory."""

    def __getitem__(self, select: Select, /) -> Sequence[Block]: ...


class Bounds(NamedTuple):
    """First and last instant at which an expression is evaluated, and those of the whole query,
    which `@ start()` and `@ end()` mean. In a subquery they differ."""

    start_us: int
    end_us: int
    query_start_us: int
    query_end_us: int
    lookback_us: int
    step_us: int = 0
    """Of the whole query; 0 for one instant."""
    nested: bool = False


def bounds_of(start_us: int, end_us: int, lookback_us: int, step_us: int = 0) -> Bounds:
    """The bounds of a query."""
    return Bounds(start_us, end_us, start_us, end_us, lookback_us, step_us)


def selects_of(node: Node, bounds: Bounds) -> Iterator[Select]:
    """What the selectors of a tree read, in the order of the text."""
    match node:
        case Selector():
            yield select_newest(node, bounds)
        case RangeSelector():
            yield select_range(node, bounds)
        case Subquery(operand):
            yield from selects_of(operand, within(node, bounds))
        case _:
            for part in parts(node):
                yield from selects_of(part, bounds)


def select_newest(node: Selector, bounds: Bounds) -> Select:
    """What an instant selector reads."""
    start_us, end_us = _shifted(node, bounds)
    return Select(
        node.matchers,
        start_us - bounds.lookback_us,
        end_us + _ahead(node, bounds),
        newest=not bounds.nested and node.edges is None,
        window_us=bounds.lookback_us,
    )


def select_range(node: RangeSelector, bounds: Bounds) -> Select:
    """What a range selector reads."""
    start_us, end_us = _shifted(node.selector, bounds)
    return Select(
        node.selector.matchers,
        start_us - node.range_us - (bounds.lookback_us if node.selector.edges else 0),
        end_us + _ahead(node.selector, bounds),
        column=node.column,
        window_us=node.range_us,
        grid_us=0 if bounds.nested or not node.exact else gcd(start_us, node.range_us),
    )


def _ahead(node: Selector, bounds: Bounds) -> int:
    """How far after its instants a selector reads."""
    return bounds.lookback_us if node.edges == "smoothed" else 0


def within(node: Subquery, bounds: Bounds) -> Bounds:
    """The bounds of a subquery's own expression; its first step lies after `start_us`."""
    start_us, end_us = _shifted(node, bounds)
    return bounds._replace(start_us=start_us - node.range_us, end_us=end_us, nested=True)


def subquery_steps(node: Subquery, bounds: Bounds) -> Instants:
    """The instants in the bounds of a subquery's own expression: multiples of its step."""
    step_us = node.step_us or DEFAULT_STEP_US
    first_us = (bounds.start_us // step_us + 1) * step_us
    count = (bounds.end_us - first_us) // step_us + 1
    if count > MAX_SUBQUERY_STEPS:
        raise QueryError(f"a subquery of {count} steps; at most {MAX_SUBQUERY_STEPS}")
    return first_us + step_us * np.arange(max(count, 0), dtype=np.int64)


def steps_of(node: Selector | Subquery, steps: Instants, bounds: Bounds) -> Instants:
    """The instants at which a selector is read for these steps, by its offset and `@`."""
    if node.pinned is None:
        return steps - node.offset_us if node.offset_us else steps
    return np.full(len(steps), _shifted(node, bounds)[0], dtype=np.int64)


def _shifted(node: Selector | Subquery, bounds: Bounds) -> tuple[int, int]:
    """First and last instant at which a selector is read."""
    offset = node.offset_us
    match node.pinned:
        case None:
            return bounds.start_us - offset, bounds.end_us - offset
        case "start":
            at = bounds.query_start_us
        case "end":
            at = bounds.query_end_us
        case at:
            pass
    return at - offset, at - offset
