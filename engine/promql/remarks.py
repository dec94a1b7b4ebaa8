"""What the reader of an answer should know of the expression: likely mistakes that are no errors.

In the words of Prometheus 3 (util/annotations), with the place in the expression.
"""

import math
import re
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from engine.promql.blocks import NAME
from engine.promql.formatting import format_plain
from engine.promql.matchers import MatchOp
from engine.promql.nodes import (
    Aggregate,
    Call,
    Negate,
    Node,
    Number,
    RangeSelector,
    Selector,
    parts,
)

OF_COUNTERS = frozenset({"rate", "increase"})
OF_QUANTILES = frozenset({"quantile", "quantile_over_time", "histogram_quantile"})
_NUMBER = r"[+-]?(?:[0-9.]+|[Nn]a[Nn]\b|[Ii]nf\b)"
SUFFIXES = ("_total", "_sum", "_count", "_bucket")


class Remark(NamedTuple):
    """A warning means that the answer may be wrong, an info that the expression may be."""

    level: Literal["warning", "info"]
    text: str


def remarks(text: str, tree: Node, selects: Callable[[Selector], bool]) -> list[Remark]:
    """Remarks on an expression, each once. selects: whether a selector found any series."""
    return list(dict.fromkeys(_remarks(text, tree, selects)))


def _remarks(text: str, node: Node, selects: Callable[[Selector], bool]) -> Iterator[Remark]:
    match node:
        case Call(function, (RangeSelector(selector), *_)) if function in OF_COUNTERS:
            name = _name(selector)
            if name and not name.endswith(SUFFIXES) and selects(selector):
                place = _place(text, rf"\b{function}\s*\(\s*({re.escape(name)})")
                yield Remark(
                    "info",
                    "PromQL info: metric might not be a counter, name does not end in"
                    f' _total/_sum/_count/_bucket: "{name}" ({place})',
                )
        case Call(function, (ratio, *_)) if function in OF_QUANTILES:
            yield from _of_quantile(text, function, ratio)
        case Aggregate("quantile", _, _, _, ratio) if ratio is not None:
            yield from _of_quantile(text, "quantile", ratio)
    for part in parts(node):
        yield from _remarks(text, part, selects)


def _of_quantile(text: str, function: str, ratio: Node) -> Iterator[Remark]:
    number = _literal(ratio)
    if number is not None and not 0 <= number <= 1:
        place = _place(text, rf"\b{function}\b.*?\(\s*({_NUMBER})")
        yield Remark(
            "warning",
            "PromQL warning: quantile value should be between 0 and 1,"
            f" got {'NaN' if math.isnan(number) else format_plain(number)} ({place})",
        )


def _literal(node: Node) -> float | None:
    match node:
        case Number(value):
            return value
        case Negate(Number(value)):
            return -value
        case _:
            return None


def _name(selector: Selector) -> str | None:
    """The metric that a selector names; None where it takes any of several."""
    for one in selector.matchers:
        if one.name == NAME and one.op is MatchOp.EQUAL:
            return one.value
    return None


def _place(text: str, pattern: str) -> str:
    """`line:column` of what the pattern's group finds first."""
    found = re.search(pattern, text, re.DOTALL)
    place = found.start(1) if found else 0
    line = text.count("\n", 0, place) + 1
    return f"{line}:{place - text.rfind(chr(10), 0, place)}"
