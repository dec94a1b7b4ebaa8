"""An expression as text, in the form that Prometheus' format_query gives it.

One line where it is short, indented where it is not. Parentheses stay as they were written, so this
reads the grammar's own tree, not the nodes that are evaluated.
https://github.com/prometheus/prometheus/blob/main/promql/parser/prettier.go
"""

import re
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

import promql_parser as grammar

from engine.promql.errors import QueryError
from engine.promql.formatting import format_value
from engine.promql.parsing import parse_tree
from schemas.durations import format_duration
from schemas.matchers import go_quote

MAX_LINE_CHARS = 100
INDENT = "  "

_LEGACY_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*\Z")
_LEGACY_METRIC = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*\Z")


def format_query(text: str) -> str:
    """The expression, printed. Raises QueryError where it is wrong."""
    return _pretty(grammar_tree(text), 0)


def grammar_tree(text: str) -> Any:
    """The tree of the grammar of an expression that can be evaluated. Raises QueryError."""
    parse_tree(text)
    try:
        return grammar.parse(text)
    except ValueError as error:
        raise QueryError(f"the expression can be evaluated, but not printed: {error}") from error


def kind_of(tree: Any) -> str:
    """The name of a tree's type in the grammar."""
    return type(tree).__name__


def _pretty(tree: Any, level: int) -> str:
    """A tree over as many lines as it needs, each indented."""
    line, margin = _line(tree), INDENT * level
    if len(line.encode()) <= MAX_LINE_CHARS:
        return line if kind_of(tree) == "SubqueryExpr" else margin + line
    match kind_of(tree):
        case "AggregateExpr":
            parameter = f"{_pretty(tree.param, level + 1)},\n" if tree.param is not None else ""
            inner = _pretty(tree.expr, level + 1)
            return f"{margin}{_aggregation(tree)}(\n{parameter}{inner}\n{margin})"
        case "BinaryExpr":
            operator = f"{tree.op}{_modifier(tree)}"
            left, right = _pretty(tree.lhs, level + 1), _pretty(tree.rhs, level + 1)
            return f"{left}\n{margin}{operator}\n{right}"
        case "Call":
            arguments = ",\n".join(_pretty(one, level + 1) for one in tree.args)
            return f"{margin}{tree.func.name}(\n{arguments}\n{margin})"
        case "ParenExpr":
            return f"{margin}(\n{_pretty(tree.expr, level + 1)}\n{margin})"
        case "SubqueryExpr":
            return _pretty(tree.expr, level) + _subquery_suffix(tree)
        case "UnaryExpr":
            return f"{margin}-{_pretty(tree.expr, level).strip()}"
        case _:
            return margin + line


def _line(tree: Any) -> str:
    """A tree in one line."""
    return _LINES[kind_of(tree)](tree)


def _aggregate(tree: Any) -> str:
    parameter = "" if tree.param is None else f"{_line(tree.param)}, "
    return f"{_aggregation(tree)}({parameter}{_line(tree.expr)})"


def _aggregation(tree: Any) -> str:
    """The aggregation's name and its grouping."""
    if tree.modifier is None:
        return str(tree.op)
    without = str(tree.modifier.type) == "AggModifierType.Without"
    if not without and not tree.modifier.labels:
        return str(tree.op)
    return f"{tree.op} {'without' if without else 'by'} ({_names(tree.modifier.labels)}) "


def _modifier(tree: Any) -> str:
    """What stands between a binary operator and its right side."""
    modifier = tree.modifier
    if modifier is None:
        return ""
    text = " bool" if modifier.return_bool else ""
    side = many_side(modifier)
    on, labels = matching_labels(modifier)
    if labels or on or side:
        text += f" {'on' if on else 'ignoring'} ({_names(labels)})"
    if side:
        text += f" group_{side} ({_names(modifier.group_labels or ())})"
    return text + _fill(modifier.fill_values)


def many_side(modifier: Any) -> str | None:
    """The side of which several series may match one: "left", "right" or None."""
    return {"ManyToOne": "left", "OneToMany": "right"}.get(
        str(modifier.card).removeprefix("VectorMatchCardinality.")
    )


def matching_labels(modifier: Any) -> tuple[bool, Sequence[str]]:
    """(whether vectors match on the labels, the labels)."""
    if modifier.matching is None:
        return False, ()
    return str(modifier.matching.type) == "LabelModifierType.Include", modifier.matching.labels


def _fill(values: Any) -> str:
    left, right = values.lhs, values.rhs
    if left is not None and left == right:
        return f" fill ({format_value(left)})"
    text = "" if left is None else f" fill_left ({format_value(left)})"
    return text if right is None else f"{text} fill_right ({format_value(right)})"


def _names(names: Sequence[str]) -> str:
    return ", ".join(name if _LEGACY_LABEL.match(name) else go_quote(name) for name in names)


def _selector(tree: Any) -> str:
    return _selected(tree) + _moved(tree)


def _selected(tree: Any) -> str:
    """The name and the matchers of a selector, sorted."""
    texts = sorted(
        f"{one.name if _LEGACY_LABEL.match(one.name) else go_quote(one.name)}"
        f"{MATCH_OPERATORS[str(one.op)]}{go_quote(one.value)}"
        for one in tree.matchers.matchers
    )
    name = tree.name or ""
    if name and not _LEGACY_METRIC.match(name):
        name, texts = "", [go_quote(name), *texts]
    return f"{name}{{{','.join(texts)}}}" if texts or not name else name


MATCH_OPERATORS = {
    "MatchOp.Equal": "=",
    "MatchOp.NotEqual": "!=",
    "MatchOp.Re": "=~",
    "MatchOp.NotRe": "!~",
}


def _range_selector(tree: Any) -> str:
    inner = tree.vector_selector
    return f"{_selected(inner)}[{format_duration(tree.range)}]{_moved(inner)}"


def _moved(tree: Any) -> str:
    """`@` and `offset` of a selector or a subquery."""
    text = ""
    pinned = pinned_to(tree.at)
    if isinstance(pinned, str):
        text = f" @ {pinned}()"
    elif pinned is not None:
        text = f" @ {pinned / 1000:.3f}"
    offset: timedelta | None = tree.offset
    if offset:
        text += f" offset {'-' if offset < timedelta(0) else ''}{format_duration(abs(offset))}"
    return text


def pinned_to(at: Any) -> str | int | None:
    """What `@` says: "start", "end", milliseconds since 1970, or nothing."""
    if at is None:
        return None
    word = str(at.type).removeprefix("AtModifierType.")
    if word != "At":
        return word.lower()
    instant: datetime = at.at
    return round(instant.timestamp() * 1000)


def _subquery_suffix(tree: Any) -> str:
    step = format_duration(tree.step) if tree.step else ""
    return f"[{format_duration(tree.range)}:{step}]{_moved(tree)}"


_LINES: dict[str, Callable[[Any], str]] = {
    "NumberLiteral": lambda tree: format_value(tree.val),
    "StringLiteral": lambda tree: go_quote(tree.val),
    "ParenExpr": lambda tree: f"({_line(tree.expr)})",
    "UnaryExpr": lambda tree: f"-{_line(tree.expr)}",
    "VectorSelector": _selector,
    "MatrixSelector": _range_selector,
    "SubqueryExpr": lambda tree: _line(tree.expr) + _subquery_suffix(tree),
    "BinaryExpr": lambda tree: f"{_line(tree.lhs)} {tree.op}{_modifier(tree)} {_line(tree.rhs)}",
    "AggregateExpr": _aggregate,
    "Call": lambda tree: f"{tree.func.name}({', '.join(map(_line, tree.args))})",
}
