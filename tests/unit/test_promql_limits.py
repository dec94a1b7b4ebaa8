"""What one evaluation may cost: every bound is named at once, and a stop is heard."""

import contextlib
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.promql import Block, QueryError, parse, regex_costs
from engine.promql.limits import Limits

SECOND_US = 1_000_000
HOSTS = 20
INSTANTS = 100
HOUR_US = 3600 * SECOND_US


class Stopped(Exception):
    pass


def blocks_of(count: int) -> list[Block]:
    """`count` layouts of HOSTS series each, at INSTANTS seconds, every value a different one."""
    at = SECOND_US * np.arange(1, INSTANTS + 1, dtype=np.int64)
    return [
        Block(
            [{"__name__": "x", "host": str(host), "layout": str(n)} for host in range(HOSTS)],
            at,
            np.arange(INSTANTS * HOSTS, dtype=np.float64).reshape(INSTANTS, HOSTS),
        )
        for n in range(count)
    ]


def evaluate(expression: str, limits: Limits, layouts: int = 2) -> None:
    query = parse(expression)
    end_us = INSTANTS * SECOND_US
    blocks = dict.fromkeys(query.selects(SECOND_US, end_us), blocks_of(layouts))
    query.range(SECOND_US, end_us, SECOND_US, blocks, limits)


@pytest.mark.parametrize(
    ("expression", "limits", "named"),
    [
        ("x", Limits(steps=99), "maximum resolution of 99 points per timeseries: 100 asked"),
        ("x", Limits(cells=3999), "40 series at 100 steps are more than 3,999 samples"),
        ("rate(x[5s])", Limits(cells=3999), "40 series at 100 steps are more than 3,999 samples"),
        ("timestamp(x)", Limits(cells=3999), "more than 3,999 samples"),
        ("sum(max_over_time(x[100s:1s]))", Limits(cells=4000), "40 series at 199 steps"),
        ("mad_over_time(x[10s])", Limits(work=1000), "samples in all windows; at most 1,000"),
    ],
)
def test_what_costs_too_much_is_refused_with_the_bound(
    expression: str, limits: Limits, named: str
) -> None:
    with pytest.raises(QueryError, match=named):
        evaluate(expression, limits)


def test_a_bound_holds_for_all_layouts_together() -> None:
    evaluate("x", Limits(cells=4000))
    with pytest.raises(QueryError):
        evaluate("x", Limits(cells=4000), layouts=3)


def test_samples_as_they_are_are_bounded_at_the_instants_of_all_layouts() -> None:
    query = parse("x[1h]")
    blocks = [
        block._replace(at=block.at + n) for n, block in enumerate(blocks_of(3))
    ]  # no instant in common: a table of all has as many rows as all of them
    found = dict.fromkeys(query.selects(HOUR_US, HOUR_US), blocks)
    query.instant(HOUR_US, found, Limits(cells=9 * INSTANTS * HOSTS))
    with pytest.raises(QueryError, match="60 series at 300 steps"):
        query.instant(HOUR_US, found, Limits(cells=9 * INSTANTS * HOSTS - 1))


def test_count_values_is_bounded_over_all_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    one_group = INSTANTS * INSTANTS
    monkeypatch.setattr("engine.promql.aggregations.MAX_COUNTS", one_group * HOSTS)
    evaluate('count_values by (host) ("v", x)', Limits(), layouts=1)
    monkeypatch.setattr("engine.promql.aggregations.MAX_COUNTS", one_group * HOSTS - 1)
    with pytest.raises(QueryError, match="count_values of 100 different values"):
        evaluate('count_values by (host) ("v", x)', Limits(), layouts=1)


@pytest.mark.parametrize(
    ("expression", "checks"),
    [("x", 2), ("-(-x)", 4), ("rate(x[5s])", 2), ("mad_over_time(x[100s])", 100)],
)
def test_a_stop_is_heard_between_nodes_blocks_and_chunks(expression: str, checks: int) -> None:
    """Counts how often it asks: at the last of so many asks it is told to stop, and does."""
    left = checks

    def check() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Stopped

    with pytest.raises(Stopped):
        evaluate(expression, Limits(check=check), layouts=1)


def test_nested_joins_cannot_make_a_label_of_any_length() -> None:
    expression = 'label_replace(x, "to", "long", "host", ".*")'
    for _ in range(40):
        expression = f'label_join({expression}, "to", "", "to", "to")'
    with pytest.raises(QueryError, match="a label value of 131072 characters; at most 65536"):
        evaluate(expression, Limits(), layouts=1)


@pytest.mark.parametrize(
    ("pattern", "cost_us"),
    [
        ("web-.*", 50 + 4 + 4),
        ("[0-9a-f]{8}-[0-9a-f]{4}", 50 + 13),
        (r"\w{3}(\d|[^x])", 50 + 750 + 30 + 1 + 4),
        (r"(\pL{10}a){10}", 50 + 10 * 2501),
        (r"[\w-]{2,4}", 50 + 4 * 251),
        (r"\p{Greek}{5}", 50 + 5 * 250),
        ("(((", 50),
        (")x{}", 50 + 4),
        (r"\(a{1000}", 50 + 1001),
    ],
)
def test_what_an_expression_costs_to_compile_is_told_from_its_text(
    pattern: str, cost_us: int
) -> None:
    assert regex_costs.cost_us(pattern) == pytest.approx(cost_us, abs=2)


@pytest.mark.parametrize(
    "expression",
    [
        r'x{a=~"\\pL{500}"}',
        "x{a=~`(\\w{10}){10}`}",
        r'label_replace(x, "a", "b", "c", "\\pL{300}")',
        "x{" + ",".join(f"a{n}!~'b{n}.*'" for n in range(500)) + "}",
        '#"\nx{a=~"\\\\pL{500}"}',
        "# it's\nx{a=~'\\\\pL{500}'}",
    ],
)
def test_regular_expressions_that_are_too_large_are_never_compiled(expression: str) -> None:
    with pytest.raises(QueryError, match="too large"):
        parse(expression)


@pytest.mark.parametrize(
    ("begin", "unit", "end"),
    [
        ('x{a=~"', "[", '"}'),
        ('x{a=~"', "[" * 9 + "\\\\]", '"}'),
        ('"', '\\"', ""),
        ("x offset ", " ", ""),
        ("smoothed ", "a{", ""),
        ('info(a,{"', '\\"', ""),
    ],
)
def test_a_refusal_of_a_text_four_times_as_long_does_not_take_sixteen_times(
    begin: str, unit: str, end: str
) -> None:
    """As it would where each mark looks for its end."""

    def processor_ns(chars: int) -> int:
        text = begin + unit * (chars // len(unit)) + end
        began = time.thread_time_ns()
        with pytest.raises(QueryError):
            parse(text)
        return time.thread_time_ns() - began

    shorter, longer = (min(processor_ns(chars) for _ in range(5)) for chars in (1000, 4000))
    assert longer < 9 * shorter


def test_texts_that_are_only_compared_cost_little() -> None:
    parse("x{" + ",".join(f'a{n}="{"value" * 6}"' for n in range(300)) + "}")


def test_ordinary_regular_expressions_are_small_enough() -> None:
    of_dashboards = r"^(?:\\d{1,3}\\.){3}\\d{1,3}(:\\d+)?|[0-9a-f]{8}(-[0-9a-f]{4}){3}|\\w+-\\w+"
    parse(f'x{{a=~"{of_dashboards}",b!~"tmpfs|fuse.lxcfs|squashfs|vfat"}}')


@pytest.mark.parametrize("function", ["max", "min", "sum", "avg"])
@pytest.mark.parametrize("span", ["1s", "7s", "100s"])
def test_windows_give_the_same_however_few_are_reduced_at_once(
    function: str, span: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    query = parse(f"{function}_over_time(x[{span}])")
    end_us = 2 * INSTANTS * SECOND_US
    blocks = dict.fromkeys(query.selects(0, end_us), blocks_of(1))
    whole = query.range(0, end_us, SECOND_US, blocks)
    asks: list[int] = []
    monkeypatch.setattr("engine.promql.over_time.REDUCED_CELLS", 1)
    limits = Limits(check=lambda: asks.append(1))
    parts = query.range(0, end_us, SECOND_US, blocks, limits)
    assert np.array_equal(whole.present, parts.present)
    assert np.array_equal(whole.values[whole.present], parts.values[parts.present])
    assert len(asks) >= 2 * INSTANTS


PIECES = [
    *("x", "y{", "}", "a", '="b"', '=~"c.*"', ",", "(", ")", "[", "]", ":", "5m", "1", "-", "+"),
    *(
        " offset ",
        " @ ",
        "start()",
        " by ",
        " on ",
        "sum",
        "rate",
        "topk",
        " and ",
        "1e9",
        "/",
        "*",
    ),
    *("*", "^", "%", " bool ", "group_left", "min_of", "step()", "9" * 5000, "0x", "1y", "\n", "#"),
    *("NaN", "Inf", "==", ">", "label_replace", "`", "\\", "é", "\x00", "anchored", "smoothed"),
]


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join) | st.text(max_size=40))
def test_any_text_is_an_expression_or_is_refused(text: str) -> None:
    with contextlib.suppress(QueryError):
        query = parse(text)
        query.instant(HOUR_US, {select: [] for select in query.selects(HOUR_US, HOUR_US)})
