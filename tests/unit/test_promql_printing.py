"""Expressions printed: the same expression, in one form; and its tree."""

from random import Random
from typing import Any

import pytest

from engine.promql import QueryError, parse
from engine.promql.places import placed
from engine.promql.printing import format_query
from engine.promql.syntax import parse_query
from tests import promqlgrammar

LONG = (
    'sum by(instance)(rate(node_cpu_seconds_total{mode!="idle",instance=~"web.*"}[5m]))'
    "/ignoring(mode) group_left sum by (instance) (rate(node_cpu_seconds_total[5m]))"
)


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("sum(x)by(a,b)", "sum by (a, b) (x)"),
        ("sum without()(x)", "sum without () (x)"),
        ("sum by()(x)", "sum(x)"),
        ('x{b=~"c",a!="d\\n"}[5m]offset -90m', 'x{a!="d\\n",b=~"c"}[5m] offset -1h30m'),
        ("x @1.5 offset 1w", "x @ 1.500 offset 1w"),
        ("rate(x[1h:]@end())", "rate(x[1h:] @ end())"),
        ("-(a)", "-(a)"),
        ("a>bool on()b", "a > bool on () b"),
        ("a*on(x)group_left(y)b", "a * on (x) group_left (y) b"),
        ("topk(5,x)", "topk(5, x)"),
        ("'x\"y\\x01'", '"x\\"y\\x01"'),
        ("1e10 + Inf", "10000000000 + +Inf"),
        ('{__name__="x y"}', '{__name__="x y"}'),
        (
            LONG,
            '  sum by (instance) (rate(node_cpu_seconds_total{instance=~"web.*",mode!="idle"}[5m]))'
            "\n/ ignoring (mode) group_left ()\n"
            "  sum by (instance) (rate(node_cpu_seconds_total[5m]))",
        ),
    ],
)
def test_an_expression_is_printed_in_prometheus_form(text: str, printed: str) -> None:
    assert format_query(text) == printed


def is_right(text: str) -> bool:
    try:
        parse(text)
    except QueryError:
        return False
    return True


def unordered(tree: Any) -> Any:
    """The tree with its matchers in one order: a selector means the same in any."""
    if isinstance(tree, list):
        parts = [unordered(one) for one in tree]
        return sorted(parts, key=str) if parts and "value" in tree[0] else parts
    if isinstance(tree, dict):
        return {name: unordered(part) for name, part in tree.items()}
    return tree


def test_what_is_printed_means_the_same_and_is_printed_the_same_again() -> None:
    rng = Random(7)
    for text in (promqlgrammar.expression(rng) for _ in range(300)):
        if not is_right(text):
            continue
        printed = format_query(text)
        assert unordered(parse_query(printed)) == unordered(parse_query(text))
        assert format_query(printed) == printed


def test_what_is_wrong_is_refused() -> None:
    for call in (format_query, parse_query):
        with pytest.raises(QueryError, match="unexpected end of input"):
            call("sum(")


def test_a_tree_has_prometheus_names() -> None:
    tree = parse_query('topk(5, rate(x{a="b"}[5m] offset 1h)) / on (a) group_left (c) -(y @ end())')
    matching = {
        "card": "many-to-one",
        "labels": ["a"],
        "on": True,
        "include": ["c"],
        "fillValues": {"lhs": None, "rhs": None},
    }
    assert (tree["type"], tree["op"], tree["matching"]) == ("binaryExpr", "/", matching)
    left, right = tree["lhs"], tree["rhs"]
    assert (left["type"], left["param"]) == ("aggregation", {"type": "numberLiteral", "val": "5"})
    call = left["expr"]
    assert call["func"] == {
        "name": "rate",
        "argTypes": ["matrix"],
        "variadic": 0,
        "returnType": "vector",
    }
    selector = call["args"][0]
    assert (selector["type"], selector["range"], selector["offset"]) == (
        "matrixSelector",
        300_000,
        3_600_000,
    )
    assert selector["matchers"] == [
        {"name": "a", "value": "b", "type": "="},
        {"name": "__name__", "value": "x", "type": "="},
    ]
    assert (right["type"], right["op"], right["expr"]["type"]) == ("unaryExpr", "-", "parenExpr")
    assert right["expr"]["expr"]["startOrEnd"] == "end"


def test_numbers_are_matched_with_nothing() -> None:
    assert parse_query("x > bool 1")["matching"] is None
    assert parse_query("x and y")["matching"]["card"] == "many-to-many"


@pytest.mark.parametrize(
    ("text", "complaint", "place"),
    [
        ("1 +\n  foo(x)", "unknown function with name 'foo'", "2:3: parse error: "),
        ("sum(rate(x))", "expected type matrix in call to function 'rate', got vector", "1:5: "),
        ("x", "no idea", "1:1: parse error: "),
        ("x", "3:4: parse error: known", "3:4: parse error: known"),
    ],
)
def test_a_complaint_is_placed_at_the_function_that_it_names(
    text: str, complaint: str, place: str
) -> None:
    assert placed(text, complaint).startswith(place)
