"""From text to a tree of nodes, by promql-parser's grammar; what is not built yet is refused."""

import difflib
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Literal

import promql_parser as grammar

from engine.promql import edges, functions, over_time
from engine.promql.blocks import NAME
from engine.promql.complaints import complaint
from engine.promql.durations import AT_AN_INSTANT, Given, written_out
from engine.promql.errors import QueryError
from engine.promql.info import info_matchers
from engine.promql.matchers import Matcher, MatchOp
from engine.promql.nodes import (
    Aggregate,
    Binary,
    Call,
    Info,
    Kind,
    Matching,
    Negate,
    Node,
    Number,
    RangeSelector,
    Selector,
    Subquery,
    Text,
    parts,
)
from engine.promql.operators import COMPARISONS
from engine.promql.regex_costs import MAX_COST_US, cost_in_query_us

MAX_QUERY_CHARS = 16_384
"""Longest expression. The largest of public dashboards have about 4,000 characters."""

MAX_DEPTH = 100
"""Deepest nesting of an expression: parsing and evaluation recurse."""

MAX_OPERATORS = 300
"""Operators in one expression. promql-parser takes 1.6 KiB of stack for each in a row; a thread has
8 MiB, or as little as 1 MiB."""

FUNCTION_NAMES = frozenset(
    {
        *functions.FUNCTIONS,
        *over_time.FUNCTIONS,
        *("absent", "absent_over_time", "timestamp"),
        *("start", "end", "range", "step", "info"),
    }
)
NATIVE_HISTOGRAMS = frozenset(
    f"histogram_{word}" for word in ("avg", "count", "sum", "stddev", "stdvar")
)
STARTS = "start_timestamp"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MATCH_OPS = {
    "MatchOp.Equal": MatchOp.EQUAL,
    "MatchOp.NotEqual": MatchOp.NOT_EQUAL,
    "MatchOp.Re": MatchOp.REGEX,
    "MatchOp.NotRe": MatchOp.NOT_REGEX,
}


def parse_tree(text: str, given: Given = AT_AN_INSTANT) -> Node:
    """The tree of an expression. Raises QueryError, in bounded time and stack."""
    _check_size(text)
    _know_former_names()
    text = edges.marked(written_out(text, given))
    # The grammar panics at it, which the process' stderr would tell each time.
    if "@" in text and _BEFORE_1970.search(_STRING_OR_COMMENT.sub(" ", text)):
        raise QueryError("@ with an instant before 1970 is not supported")
    try:
        tree = _native(lambda: grammar.parse(text))
    except QueryError as error:
        if _TRIM.search(_BRACES.sub(" ", _STRING_OR_COMMENT.sub(" ", text))):
            raise QueryError(
                "</ and >/ are not supported: native histograms are not built"
            ) from error
        if str(error) in _WITHOUT_PLACE:
            raise QueryError(complaint(text) or str(error)) from error
        raise
    return _node(tree, 0)


@lru_cache(maxsize=1)
def _know_former_names() -> None:
    """Has the grammar take what Prometheus 2 called double_exponential_smoothing."""
    matrix, scalar, vector = (
        grammar.ValueType.Matrix,
        grammar.ValueType.Scalar,
        grammar.ValueType.Vector,
    )
    former = grammar.Function("holt_winters", [matrix, scalar, scalar], vector)
    grammar.register_extra_functions([former])


def _native(call: Callable[[], Any]) -> Any:
    """The result of native code. Raises QueryError for what it refuses and what it panics at."""
    try:
        return call()
    except (ValueError, OverflowError) as error:
        raise QueryError(_explained(str(error))) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise QueryError("a number in the expression is out of range") from error


_WITHOUT_PLACE = frozenset(
    {
        "invalid promql query",
        "no expression found in input",
        "unclosed left parenthesis",
        "unexpected end of input inside braces",
        "unexpected end of input inside brackets",
    }
)
"""What the grammar says where it does not say where."""

_STRING_OR_COMMENT = re.compile(
    r"""#[^\n]*|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|`[^`]*`"""
    r"""|["'`].*""",  # which nothing closes: looked for once only
    re.DOTALL,
)
_TRIM = re.compile(r"[<>]/")
"""Operators that Prometheus 3 has for native histograms."""

_BEFORE_1970 = re.compile(r"@\s*-")
_BRACES = re.compile(r"\{[^{}]*\}")
_OPERATOR = re.compile(r"[-+*/%^]|[=!<>]=?|\b(?:and|or|unless|atan2)\b", re.IGNORECASE)


def _check_size(text: str) -> None:
    """Raises QueryError for a text that would cost the parser's stack: it recurses in native code,
    where too deep means the end of the process."""
    if len(text) > MAX_QUERY_CHARS:
        raise QueryError(f"expression of {len(text)} characters; at most {MAX_QUERY_CHARS}")
    plain = _STRING_OR_COMMENT.sub(" ", text)
    depth = deepest = 0
    for char in plain:
        depth += (char in "([{") - (char in ")]}")
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH:
        raise QueryError(f"expression nested deeper than {MAX_DEPTH} levels")
    if cost_in_query_us(text) > MAX_COST_US:
        raise QueryError("regular expressions that are too large: repeat less, or fewer characters")
    operators = len(_OPERATOR.findall(_BRACES.sub(" ", plain)))
    if operators > MAX_OPERATORS:
        raise QueryError(f"expression of {operators} operators; at most {MAX_OPERATORS}")


def _explained(message: str) -> str:
    """The parser's message, with the nearest function where one is unknown."""
    unknown = re.search(r"unknown function with name '(.*)'", message)
    if not unknown:
        return message
    near = difflib.get_close_matches(unknown[1], sorted(FUNCTION_NAMES), 1, 0.5)
    return message + (f"; nearest: {near[0]}" if near else "")


def _node(tree: Any, depth: int) -> Node:
    if depth > MAX_DEPTH:
        raise QueryError(f"expression nested deeper than {MAX_DEPTH} levels")
    name = type(tree).__name__
    if name == "ParenExpr":
        return _node(tree.expr, depth + 1)
    convert = _CONVERTERS.get(name)
    if convert is None:
        raise QueryError(f"{name} is not supported")
    return convert(tree, depth + 1)


def _selector(tree: Any, depth: int) -> Selector:
    selector = _any_selector(tree)
    if all(one.accepts("") for one in selector.matchers):
        raise QueryError("vector selector must contain at least one non-empty matcher")
    return selector


def _any_selector(tree: Any) -> Selector:
    """A selector, or the labels of info(), which may match series without any of them."""
    if tree.matchers.or_matchers:
        raise QueryError("`or` between matchers is not PromQL; use =~ with alternatives")
    found = [Matcher(m.name, _MATCH_OPS[str(m.op)], m.value) for m in tree.matchers.matchers]
    if tree.name is not None:
        found.insert(0, Matcher(NAME, MatchOp.EQUAL, tree.name))
    matchers, modifier = edges.taken(found)
    return Selector(matchers, _microseconds(tree.offset), _pinned(tree.at), modifier)


def _pinned(at: Any) -> Any:
    if at is None:
        return None
    word = str(at.type).removeprefix("AtModifierType.")
    if word != "At":
        return word.lower()
    return _microseconds(_native(lambda: at.at) - _EPOCH)


def _microseconds(span: timedelta | None) -> int:
    return 0 if span is None else span // timedelta(microseconds=1)


def _range(tree: Any, depth: int) -> RangeSelector:
    return RangeSelector(_selector(tree.vector_selector, depth), _microseconds(tree.range))


def _subquery(tree: Any, depth: int) -> Subquery:
    return Subquery(
        _node(tree.expr, depth),
        _microseconds(tree.range),
        _microseconds(tree.step),
        _microseconds(tree.offset),
        _pinned(tree.at),
    )


def _binary(tree: Any, depth: int) -> Binary:
    op, modifier = str(tree.op), tree.modifier
    matching, as_bool = Matching(), False
    if modifier is not None:
        as_bool = modifier.return_bool
        matching = _matching(modifier)
    left, right = _node(tree.lhs, depth), _node(tree.rhs, depth)
    if op in COMPARISONS and not as_bool and kind(left) == kind(right) == "scalar":
        raise QueryError("comparisons between scalars must use BOOL modifier")
    return Binary(op, left, right, as_bool, matching)


_MANY: dict[str, Literal["left", "right"]] = {"ManyToOne": "left", "OneToMany": "right"}


def _matching(modifier: Any) -> Matching:
    on, labels = False, ()
    if modifier.matching is not None:
        on = str(modifier.matching.type) == "LabelModifierType.Include"
        labels = tuple(modifier.matching.labels)
    card = str(modifier.card).removeprefix("VectorMatchCardinality.")
    many = _MANY.get(card)
    include = tuple(modifier.group_labels or ()) if many else ()
    fill = (modifier.fill_values.lhs, modifier.fill_values.rhs)
    return Matching(on, labels, many, include, fill)


def _aggregate(tree: Any, depth: int) -> Aggregate:
    without, labels = False, ()
    if tree.modifier is not None:
        without = str(tree.modifier.type) == "AggModifierType.Without"
        labels = tuple(tree.modifier.labels)
    parameter = None if tree.param is None else _node(tree.param, depth)
    return Aggregate(str(tree.op), _node(tree.expr, depth), without, labels, parameter)


def _call(tree: Any, depth: int) -> Call | Info:
    name = tree.func.name
    if name == "info":
        return _info(tree, depth)
    if name not in FUNCTION_NAMES:
        raise QueryError(f"function {name}() is not supported: {_why_not(name)}")
    return Call(name, tuple(_node(argument, depth) for argument in tree.args))


def _why_not(function: str) -> str:
    if function in NATIVE_HISTOGRAMS:
        return "native histograms are not built"
    return "it is not stored when a counter began" if function == STARTS else "it is not built"


def _info(tree: Any, depth: int) -> Info:
    asked: tuple[Matcher, ...] = ()
    if len(tree.args) > 1:
        labels = tree.args[1]
        if type(labels).__name__ != "VectorSelector" or labels.name is not None:
            raise QueryError("expected label selectors only in the second argument of info()")
        asked = _any_selector(labels).matchers
    operand = _node(tree.args[0], depth)
    return Info(operand, Selector(info_matchers(asked), *(_reference(operand) or ())))


def _reference(node: Node) -> tuple[int, int | Literal["start", "end"] | None] | None:
    """The offset and `@` of the first selector, those of the subqueries around it added up to the
    innermost `@`; None where there is no selector."""
    if isinstance(node, Selector):
        return node.offset_us, node.pinned
    found = next(filter(None, map(_reference, parts(node))), None)
    if isinstance(node, Subquery) and found is not None and found[1] is None:
        return found[0] + node.offset_us, node.pinned
    return found


_CONVERTERS: dict[str, Callable[[Any, int], Node]] = {
    "NumberLiteral": lambda tree, depth: Number(tree.val),
    "StringLiteral": lambda tree, depth: Text(tree.val),
    "UnaryExpr": lambda tree, depth: Negate(_node(tree.expr, depth)),
    "VectorSelector": _selector,
    "MatrixSelector": _range,
    "SubqueryExpr": _subquery,
    "BinaryExpr": _binary,
    "AggregateExpr": _aggregate,
    "Call": _call,
}


def kind(node: Node) -> Kind:
    """What a node gives: scalar, vector, matrix or string."""
    match node:
        case Number():
            return "scalar"
        case Text():
            return "string"
        case RangeSelector() | Subquery():
            return "matrix"
        case Negate(operand):
            return kind(operand)
        case Binary(_, left, right):
            return "vector" if "vector" in (kind(left), kind(right)) else "scalar"
        case Call(function):
            return "scalar" if function in functions.SCALARS else "vector"
        case _:
            return "vector"
