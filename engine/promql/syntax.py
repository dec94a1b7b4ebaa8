"""An expression's tree as plain values, in the shape of Prometheus' parse_query.

https://github.com/prometheus/prometheus/blob/main/web/api/v1/translate_ast.go
"""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from engine.promql.blocks import NAME
from engine.promql.formatting import format_value
from engine.promql.printing import (
    MATCH_OPERATORS,
    grammar_tree,
    kind_of,
    many_side,
    matching_labels,
    pinned_to,
)

Tree = dict[str, Any]


def parse_query(text: str) -> Tree:
    """The expression's tree. Raises QueryError where it is wrong."""
    return _translated(grammar_tree(text))


def _translated(tree: Any) -> Tree:
    return _TRANSLATIONS[kind_of(tree)](tree)


def _milliseconds(span: timedelta | None) -> int:
    return 0 if span is None else span // timedelta(milliseconds=1)


def _moved(tree: Any) -> Tree:
    pinned = pinned_to(tree.at)
    return {
        "offset": _milliseconds(tree.offset),
        "timestamp": pinned if isinstance(pinned, int) else None,
        "startOrEnd": pinned if isinstance(pinned, str) else None,
    }


def _selected(tree: Any) -> Tree:
    matchers = [
        {"name": one.name, "value": one.value, "type": MATCH_OPERATORS[str(one.op)]}
        for one in tree.matchers.matchers
    ]
    if tree.name:
        matchers.append({"name": NAME, "value": tree.name, "type": "="})
    extended = {"anchored": False, "smoothed": False}
    return {"name": tree.name or "", "matchers": matchers, **_moved(tree), **extended}


def _aggregate(tree: Any) -> Tree:
    modifier = tree.modifier
    return {
        "type": "aggregation",
        "op": str(tree.op),
        "expr": _translated(tree.expr),
        "param": None if tree.param is None else _translated(tree.param),
        "grouping": [] if modifier is None else list(modifier.labels),
        "without": modifier is not None and str(modifier.type) == "AggModifierType.Without",
    }


_VECTORS = frozenset({"AggregateExpr", "VectorSelector"})


def _binary(tree: Any) -> Tree:
    modifier = tree.modifier
    vectors = _gives_vector(tree.lhs) and _gives_vector(tree.rhs)
    return {
        "type": "binaryExpr",
        "op": str(tree.op),
        "lhs": _translated(tree.lhs),
        "rhs": _translated(tree.rhs),
        "matching": _matching(modifier, str(tree.op)) if vectors else None,
        "bool": modifier is not None and modifier.return_bool,
    }


def _gives_vector(tree: Any) -> bool:
    match kind_of(tree):
        case "Call":
            return str(tree.func.return_type) == "ValueType.Vector"
        case "ParenExpr" | "UnaryExpr":
            return _gives_vector(tree.expr)
        case "BinaryExpr":
            return _gives_vector(tree.lhs) or _gives_vector(tree.rhs)
        case kind:
            return kind in _VECTORS


_CARDS = {"left": "many-to-one", "right": "one-to-many"}
_SET_OPERATORS = frozenset({"and", "or", "unless"})


def _matching(modifier: Any, op: str) -> Tree:
    """How two vectors are matched; without a modifier, by all labels."""
    card = "many-to-many" if op in _SET_OPERATORS else "one-to-one"
    if modifier is None:
        fill = {"lhs": None, "rhs": None}
        return {"card": card, "labels": [], "on": False, "include": [], "fillValues": fill}
    on, labels = matching_labels(modifier)
    side = many_side(modifier)
    return {
        "card": card if side is None else _CARDS[side],
        "labels": list(labels),
        "on": on,
        "include": list(modifier.group_labels or ()) if side else [],
        "fillValues": {"lhs": modifier.fill_values.lhs, "rhs": modifier.fill_values.rhs},
    }


def _call(tree: Any) -> Tree:
    function = tree.func
    return {
        "type": "call",
        "func": {
            "name": function.name,
            "argTypes": [_type_name(one) for one in function.arg_types],
            "variadic": function.variadic,
            "returnType": _type_name(function.return_type),
        },
        "args": [_translated(one) for one in tree.args],
    }


def _type_name(value_type: Any) -> str:
    return str(value_type).removeprefix("ValueType.").lower()


def _range_selector(tree: Any) -> Tree:
    inner = _selected(tree.vector_selector)
    return {"type": "matrixSelector", "range": _milliseconds(tree.range), **inner}


def _subquery(tree: Any) -> Tree:
    return {
        "type": "subquery",
        "expr": _translated(tree.expr),
        "range": _milliseconds(tree.range),
        "step": _milliseconds(tree.step),
        **_moved(tree),
    }


_TRANSLATIONS: dict[str, Callable[[Any], Tree]] = {
    "NumberLiteral": lambda tree: {"type": "numberLiteral", "val": format_value(tree.val)},
    "StringLiteral": lambda tree: {"type": "stringLiteral", "val": tree.val},
    "ParenExpr": lambda tree: {"type": "parenExpr", "expr": _translated(tree.expr)},
    "UnaryExpr": lambda tree: {"type": "unaryExpr", "op": "-", "expr": _translated(tree.expr)},
    "VectorSelector": lambda tree: {"type": "vectorSelector", **_selected(tree)},
    "MatrixSelector": _range_selector,
    "SubqueryExpr": _subquery,
    "BinaryExpr": _binary,
    "AggregateExpr": _aggregate,
    "Call": _call,
}
