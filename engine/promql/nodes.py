"""The tree of a parsed expression: plain values that the evaluator of expressions walks."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from engine.promql.matchers import Matcher

Kind = Literal["scalar", "vector", "matrix", "string"]


@dataclass(frozen=True, slots=True)
class Number:
    """A number literal."""

    value: float


@dataclass(frozen=True, slots=True)
class Text:
    """A string literal."""

    value: str


@dataclass(frozen=True, slots=True)
class Selector:
    """An instant selector. `pinned`: the instant of `@` in µs, or "start" or "end" of the query.

    edges: the modifier "anchored" or "smoothed" (edges.py).
    """

    matchers: tuple[Matcher, ...]
    offset_us: int = 0
    pinned: int | Literal["start", "end"] | None = None
    edges: str | None = None


@dataclass(frozen=True, slots=True)
class RangeSelector:
    """A range selector: all samples of the last `range_us` microseconds.

    column: what may stand in for samples where a store has rollups of them (rollups.py). exact:
    on the edges of a rollup's buckets that makes no difference.
    """

    selector: Selector
    range_us: int
    column: str = "lasts"
    exact: bool = False


@dataclass(frozen=True, slots=True)
class Subquery:
    """An expression's values over the last `range_us`, at multiples of `step_us` (0: the default).

    `offset_us` and `pinned` as in Selector.
    """

    operand: "Node"
    range_us: int
    step_us: int = 0
    offset_us: int = 0
    pinned: int | Literal["start", "end"] | None = None


@dataclass(frozen=True, slots=True)
class Negate:
    """Unary minus."""

    operand: "Node"


@dataclass(frozen=True, slots=True)
class Matching:
    """How vectors are matched: `on` the listed labels only, or by all but them (`ignoring`).

    `many`: the side of which several series may match one of the other, from which `include` is
    copied (group_left, group_right). `fill`: values that stand in for a missing series of the left
    and of the right side.
    """

    on: bool = False
    labels: tuple[str, ...] = ()
    many: Literal["left", "right"] | None = None
    include: tuple[str, ...] = ()
    fill: tuple[float | None, float | None] = (None, None)


@dataclass(frozen=True, slots=True)
class Binary:
    """A binary operator. `as_bool`: a comparison gives 0 or 1 and filters nothing."""

    op: str
    left: "Node"
    right: "Node"
    as_bool: bool = False
    matching: Matching = Matching()


@dataclass(frozen=True, slots=True)
class Aggregate:
    """An aggregation by the listed labels, or without them. `parameter`: how many, or which."""

    op: str
    operand: "Node"
    without: bool = False
    labels: tuple[str, ...] = ()
    parameter: "Node | None" = None


@dataclass(frozen=True, slots=True)
class Call:
    """A function with its arguments."""

    function: str
    arguments: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Info:
    """info(): `selector` selects the info series, as of the instants of the operand's selector."""

    operand: "Node"
    selector: Selector


Node: TypeAlias = (
    Number | Text | Selector | RangeSelector | Subquery | Negate | Binary | Aggregate | Call | Info
)


def parts(node: Node) -> tuple[Node, ...]:
    """The expressions that a node is made of, in the order of the text."""
    match node:
        case RangeSelector(inner) | Subquery(inner) | Negate(inner):
            return (inner,)
        case Binary(_, left, right):
            return (left, right)
        case Aggregate(_, operand, _, _, parameter):
            return (operand,) if parameter is None else (parameter, operand)
        case Call(_, arguments):
            return arguments
        case Info(operand, selector):
            return (operand, selector)
        case _:
            return ()


def rebuilt(node: Node, change: Callable[[Node], Node]) -> Node:
    """The node with `change` applied to the expressions that it is made of, selectors aside."""
    match node:
        case Negate(inner) | Subquery(inner) | Info(inner):
            return replace(node, operand=change(inner))
        case Aggregate(_, inner, _, _, parameter):
            shared = None if parameter is None else change(parameter)
            return replace(node, operand=change(inner), parameter=shared)
        case Binary(_, left, right):
            return replace(node, left=change(left), right=change(right))
        case Call(_, arguments):
            return replace(node, arguments=tuple(change(one) for one in arguments))
        case _:
            return node
