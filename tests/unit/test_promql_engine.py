"""Expressions over blocks: Prometheus' semantics, case by case."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from engine.promql import (
    Block,
    Columns,
    Matcher,
    MatchOp,
    Matrix,
    QueryError,
    Scalar,
    Vector,
    parse,
)
from engine.promql.durations import AT_AN_INSTANT, written_out
from engine.promql.matchers import matches
from schemas.values import ABSENT, STALE

SECOND = 1_000_000
MINUTE = 60 * SECOND


def labels_of(text: str) -> Mapping[str, str]:
    """The labels of a selector's text."""
    selector = parse(text).tree
    return {one.name: one.value for one in selector.matchers}  # type: ignore[union-attr]


def block(at_s: Sequence[float], series: Mapping[str, Sequence[float]]) -> Block:
    """A block whose columns are named as selectors."""
    at = np.array([int(one * SECOND) for one in at_s], dtype=np.int64)
    values = np.array(list(series.values()), dtype=np.float64).T.reshape(len(at), len(series))
    return Block(Columns([labels_of(one) for one in series]), at, values)


class Store:
    """The list of blocks of a test as a store."""

    def __init__(self, *blocks: Block) -> None:
        self.blocks = blocks

    def __getitem__(self, select) -> list[Block]:  # type: ignore[no-untyped-def]
        found = []
        for one in self.blocks:
            keep = [i for i, labels in enumerate(one.labels) if matches(select.matchers, labels)]
            rows = (one.at > select.start_us) & (one.at <= select.end_us)
            found.append(
                Block([one.labels[i] for i in keep], one.at[rows], one.values[np.ix_(rows, keep)])
            )
        return found


def instant(text: str, at_s: float, *blocks: Block) -> dict[str, float]:
    """Values by label text, metric names included."""
    result = parse(text).instant(int(at_s * SECOND), Store(*blocks))
    assert isinstance(result, Vector)
    return {
        show(labels): float(value)
        for labels, value in zip(result.labels, result.values, strict=True)
    }


def show(labels: Mapping[str, str]) -> str:
    pairs = ",".join(f"{k}={v}" for k, v in sorted(labels.items()) if k != "__name__")
    return labels.get("__name__", "") + "{" + pairs + "}"


def number(text: str, at_s: float = 0.0) -> float:
    result = parse(text).instant(int(at_s * SECOND), Store())
    assert isinstance(result, Scalar)
    return result.value


LOAD = block([10, 20, 30], {'load{host="a"}': [1, 2, 3], 'load{host="b"}': [5, 6, 7]})


def test_a_selector_gives_the_newest_sample_of_each_series() -> None:
    assert instant("load", 25, LOAD) == {"load{host=a}": 2.0, "load{host=b}": 6.0}


def test_a_sample_as_old_as_the_lookback_no_longer_counts() -> None:
    assert instant("load", 329.999, LOAD) == {"load{host=a}": 3.0, "load{host=b}": 7.0}
    assert instant("load", 330, LOAD) == {}


def test_a_series_ends_at_its_stale_marker_and_may_begin_again() -> None:
    ended = block([10, 20, 30], {"up": [1, STALE, 2]})
    assert instant("up", 15, ended) == {"up{}": 1.0}
    assert instant("up", 25, ended) == {}
    assert instant("up", 35, ended) == {"up{}": 2.0}


def test_an_absent_cell_leaves_the_older_sample_in_force() -> None:
    holes = block([10, 20, 30], {"x": [1, ABSENT, 3], "y": [1, 2, ABSENT]})
    assert instant('{__name__=~"x|y"}', 25, holes) == {"x{}": 1.0, "y{}": 2.0}
    assert instant('{__name__=~"x|y"}', 35, holes) == {"x{}": 3.0, "y{}": 2.0}


def test_an_ordinary_nan_is_a_value() -> None:
    found = instant("x", 10, block([10], {"x": [math.nan]}))
    assert list(found) == ["x{}"]
    assert math.isnan(found["x{}"])


@pytest.mark.parametrize(
    ("selector", "hosts"),
    [
        ('load{host="a"}', "a"),
        ('load{host!="a"}', "b"),
        ('load{host=~"a|c"}', "a"),
        ('load{host=~"."}', "ab"),
        ('load{host=~"[b-z]"}', "b"),
        ('load{host!~"a.*"}', "b"),
        ('load{rack=""}', "ab"),
        ('load{rack!=""}', ""),
        ('load{host=~".+",rack=~".*"}', "ab"),
    ],
)
def test_matchers_choose_series(selector: str, hosts: str) -> None:
    assert set(instant(selector, 30, LOAD)) == {f"load{{host={host}}}" for host in hosts}


def test_an_offset_reads_earlier_samples() -> None:
    assert instant('load{host="a"} offset 10s', 30, LOAD) == {"load{host=a}": 2.0}
    assert instant('load{host="a"} offset -10s', 10, LOAD) == {"load{host=a}": 2.0}


def test_an_at_modifier_pins_the_instant() -> None:
    assert instant('load{host="a"} @ 10', 30, LOAD) == {"load{host=a}": 1.0}


def test_arithmetic_drops_the_metric_name_and_a_filter_keeps_it() -> None:
    assert instant("load * 2", 30, LOAD) == {"{host=a}": 6.0, "{host=b}": 14.0}
    assert instant("load > 5", 30, LOAD) == {"load{host=b}": 7.0}
    assert instant("5 < load", 30, LOAD) == {"load{host=b}": 7.0}
    assert instant("load > bool 5", 30, LOAD) == {"{host=a}": 0.0, "{host=b}": 1.0}
    assert instant("-load", 30, LOAD) == {"{host=a}": -3.0, "{host=b}": -7.0}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 + 2 * 3", 7.0),
        ("(1 + 2) * 3", 9.0),
        ("2 ^ 3 ^ 2", 512.0),
        ("-2 ^ 2", -4.0),
        ("7 % 3", 1.0),
        ("-7 % 3", -1.0),
        ("1 / 0", math.inf),
        ("1 > bool 2", 0.0),
        ("2 >= bool 2", 1.0),
        ("0x1F", 31.0),
    ],
)
def test_numbers_are_computed_as_in_prometheus(text: str, expected: float) -> None:
    assert number(text) == expected


def test_a_zero_keeps_its_sign_whichever_was_asked_for_before() -> None:
    for text, expected in (("1 / 0", math.inf), ("1 / -0", -math.inf), ("1 / 0", math.inf)):
        assert number(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sgn(vector(-0))", "-0.0"),
        ("clamp_max(vector(-Inf), NaN)", "-inf"),
        ("clamp_min(vector(Inf), NaN)", "inf"),
        ("clamp_max(vector(NaN), -Inf)", "-inf"),
        ("clamp_max(vector(1), NaN)", "nan"),
        ("clamp(vector(5), 1, 3)", "3.0"),
    ],
)
def test_unusual_numbers_are_kept_as_go_keeps_them(text: str, expected: str) -> None:
    assert repr(number(f"scalar({text})")) == expected


def test_time_is_the_instant_of_the_evaluation() -> None:
    assert number("time()", 12.5) == 12.5


def test_zero_by_zero_is_nan_and_compares_with_nothing() -> None:
    assert math.isnan(number("0 / 0"))
    assert instant("load > 0/0", 30, LOAD) == {}
    assert len(instant("load != 0/0", 30, LOAD)) == 2


SIZES = block(
    [10],
    {
        'free{host="a",disk="1"}': [10],
        'free{host="a",disk="2"}': [20],
        'free{host="b",disk="1"}': [30],
        'size{host="a",disk="1"}': [100],
        'size{host="a",disk="2"}': [100],
        'size{host="c",disk="1"}': [100],
        'cpus{host="a"}': [4],
    },
)


def test_vectors_match_on_all_labels_but_the_name() -> None:
    assert instant("free / size", 10, SIZES) == {
        "{disk=1,host=a}": 0.1,
        "{disk=2,host=a}": 0.2,
    }
    assert instant("free < size", 10, SIZES) == {
        "free{disk=1,host=a}": 10.0,
        "free{disk=2,host=a}": 20.0,
    }


def test_vectors_match_on_listed_labels() -> None:
    one = 'free{disk="1"}'
    assert instant(f"{one} * on(host) cpus", 10, SIZES) == {"{host=a}": 40.0}
    assert instant(f"{one} * ignoring(disk) cpus", 10, SIZES) == {"{host=a}": 40.0}
    assert instant(f"{one} > on(host) cpus", 10, SIZES) == {"{host=a}": 10.0}


def test_what_steps_in_for_a_series_that_a_comparison_took_away_keeps_its_name() -> None:
    assert instant("abs(cpus) > 1e9 or cpus", 10, SIZES) == instant("cpus", 10, SIZES)


def test_a_match_that_is_not_unique_is_an_error() -> None:
    with pytest.raises(QueryError, match="many-to-one matching must be explicit"):
        instant("free * on(host) cpus", 10, SIZES)
    with pytest.raises(QueryError, match="many-to-many matching not allowed"):
        instant("cpus * on(host) free", 10, SIZES)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "free * on(host) group_left cpus",
            {"{disk=1,host=a}": 40.0, "{disk=2,host=a}": 80.0},
        ),
        (
            "cpus * on(host) group_right free",
            {"{disk=1,host=a}": 40.0, "{disk=2,host=a}": 80.0},
        ),
        (
            "cpus - ignoring(disk) group_right free",
            {"{disk=1,host=a}": -6.0, "{disk=2,host=a}": -16.0},
        ),
        ("free > on(host) group_left cpus * 3", {"free{disk=2,host=a}": 20.0}),
        (
            'cpus * on(host) group_left(disk) free{disk="2"}',
            {"{disk=2,host=a}": 80.0},
        ),
        ('free{disk="1"} * on(host) group_left(disk) cpus', {"{host=a}": 40.0}),
    ],
)
def test_many_series_match_one_where_it_is_said(text: str, expected: dict[str, float]) -> None:
    assert instant(text, 10, SIZES) == expected


def test_a_grouping_that_makes_series_equal_is_an_error() -> None:
    with pytest.raises(QueryError, match="grouping labels must ensure unique matches"):
        instant("free * on(host) group_left(disk) cpus", 10, SIZES)
    with pytest.raises(QueryError, match=r"match group \{host=.*on the left hand-side"):
        instant("free * on(host) group_right cpus", 10, SIZES)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("free and size", ["free{disk=1,host=a}", "free{disk=2,host=a}"]),
        ("free unless size", ["free{disk=1,host=b}"]),
        ("cpus or free", ["cpus{host=a}", *(f"free{{disk={d},host=a}}" for d in "12")]),
        ("free and on(host) cpus", ["free{disk=1,host=a}", "free{disk=2,host=a}"]),
        ("free unless ignoring(disk) cpus", ["free{disk=1,host=b}"]),
        ("free or on(host) cpus", [f"free{{disk={d},host=a}}" for d in "12"]),
        ("cpus or nothing", ["cpus{host=a}"]),
        ("nothing or cpus", ["cpus{host=a}"]),
        ("free and nothing", []),
        ("cpus unless nothing", ["cpus{host=a}"]),
    ],
)
def test_set_operators_keep_samples_as_they_are(text: str, expected: list[str]) -> None:
    found = instant(text, 10, SIZES)
    both = {"free{disk=1,host=b}"} if " or " in text and "free" in text else set()
    assert set(found) == {*expected} | both


def test_a_set_operator_is_decided_at_each_step() -> None:
    both = block([10, 20], {'x{a="1"}': [1, 2], 'y{a="1"}': [STALE, 5]})
    ((_, at, values),) = (
        parse("x unless y").range(10 * SECOND, 20 * SECOND, 10 * SECOND, Store(both)).series()
    )
    assert (list(at // SECOND), list(values)) == ([10], [1])


def test_series_that_become_equal_by_losing_their_name_are_an_error() -> None:
    both = block([10], {"x": [1], "y": [2]})
    with pytest.raises(QueryError, match="same labelset"):
        instant('-{__name__=~"x|y"}', 10, both)


def test_series_that_become_equal_at_different_steps_are_one() -> None:
    both = block([10, 20], {"x": [1, STALE], "y": [ABSENT, 2]})
    query = parse('-{__name__=~"x|y"}')
    matrix = query.range(10 * SECOND, 20 * SECOND, 10 * SECOND, Store(both))
    assert [list(values) for _, _, values in matrix.series()] == [[-1.0, -2.0]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sum(free)", {"{}": 60.0}),
        ("sum by (host) (free)", {"{host=a}": 30.0, "{host=b}": 30.0}),
        ("sum without (host) (free)", {"{disk=1}": 40.0, "{disk=2}": 20.0}),
        ("avg(free)", {"{}": 20.0}),
        ("min by (disk) (free)", {"{disk=1}": 10.0, "{disk=2}": 20.0}),
        ("max by (disk) (free)", {"{disk=1}": 30.0, "{disk=2}": 20.0}),
        ("count(free)", {"{}": 3.0}),
        ("count(free > 10)", {"{}": 2.0}),
        ("sum by (__name__) (cpus)", {"cpus{}": 4.0}),
        ("sum by (nothing) (cpus)", {"{}": 4.0}),
        ("sum(absent_metric)", {}),
    ],
)
def test_aggregations_group_by_labels(text: str, expected: dict[str, float]) -> None:
    assert instant(text, 10, SIZES) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("stddev(free)", {"{}": pytest.approx(math.sqrt(200 / 3))}),
        ("stdvar by (host) (free)", {"{host=a}": 25.0, "{host=b}": 0.0}),
        ("group by (host) (free)", {"{host=a}": 1.0, "{host=b}": 1.0}),
        ("quantile(0.25, free)", {"{}": 15.0}),
        ("quantile by (host) (2, free)", {"{host=a}": math.inf, "{host=b}": math.inf}),
        ("quantile(-1, free)", {"{}": -math.inf}),
        ('count_values("v", size)', {"{v=100}": 3.0}),
        (
            'count_values by (disk) ("v", free / 4)',
            {"{disk=1,v=2.5}": 1.0, "{disk=2,v=5}": 1.0, "{disk=1,v=7.5}": 1.0},
        ),
        ('count_values without (disk) ("host", cpus)', {"{host=4}": 1.0}),
        ("topk(1, free)", {"free{disk=1,host=b}": 30.0}),
        ("topk(2, free)", {"free{disk=1,host=b}": 30.0, "free{disk=2,host=a}": 20.0}),
        ("bottomk(1, free)", {"free{disk=1,host=a}": 10.0}),
        (
            "topk by (host) (1, free)",
            {"free{disk=2,host=a}": 20.0, "free{disk=1,host=b}": 30.0},
        ),
        ("topk(0.9, free)", {}),
        ("topk(-1, free)", {}),
        ("topk(scalar(cpus) - 3, free)", {"free{disk=1,host=b}": 30.0}),
        ("limitk(1, free)", {"free{disk=1,host=a}": 10.0}),
        ("count(limitk(2, free))", {"{}": 2.0}),
        ("limit_ratio(0, free)", {}),
        ("count(limit_ratio(1, free))", {"{}": 3.0}),
        ("count(limit_ratio(0.3, free) or limit_ratio(-0.7, free))", {"{}": 3.0}),
        ("limit_ratio(0.3, free) and limit_ratio(-0.7, free)", {}),
        ("topk(1, nothing)", {}),
        ("quantile(0.5, nothing)", {}),
        ('count_values("v", nothing)', {}),
    ],
)
def test_aggregations_with_a_parameter_and_of_spread(text: str, expected: dict[str, float]) -> None:
    assert instant(text, 10, SIZES) == expected


def test_an_instant_answer_of_topk_stands_in_the_order_of_values() -> None:
    some = block([10], {f'x{{n="{n}"}}': [value] for n, value in enumerate((3, math.nan, 9, 5))})
    assert list(instant("topk(9, x)", 10, some)) == [f"x{{n={n}}}" for n in (2, 3, 0, 1)]
    assert list(instant("bottomk(9, x)", 10, some)) == [f"x{{n={n}}}" for n in (0, 3, 2, 1)]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("topk(0/0, load)", "Parameter value is NaN"),
        ("topk(1e20, load)", "overflows int64"),
        ("bottomk(-1e20, load)", "underflows int64"),
    ],
)
def test_a_count_that_is_no_number_of_series_is_an_error(text: str, reason: str) -> None:
    with pytest.raises(QueryError, match=reason):
        instant(text, 30, LOAD)


def test_topk_chooses_at_each_step_among_what_is_present() -> None:
    some = block([10, 20], {'x{n="1"}': [5, STALE], 'x{n="2"}': [1, 2]})
    query = parse("topk(1, x)")
    matrix = query.range(10 * SECOND, 20 * SECOND, 10 * SECOND, Store(some))
    assert {show(one): list(values) for one, _, values in matrix.series()} == {
        "x{n=1}": [5.0],
        "x{n=2}": [2.0],
    }


def test_a_quantile_counts_nan_as_the_smallest() -> None:
    some = block([10], {f'x{{n="{n}"}}': [v] for n, v in enumerate((math.nan, 1, 2))})
    assert instant("quantile(0.5, x)", 10, some) == {"{}": 1.0}
    assert math.isnan(instant("quantile(0, x)", 10, some)["{}"])
    assert math.isnan(instant("quantile(0/0, x)", 10, some)["{}"])


def test_a_sum_keeps_what_is_small_beside_what_cancels() -> None:
    some = block([10], {f'x{{n="{n}"}}': [v] for n, v in enumerate((1e100, 1, -1e100))})
    assert instant("sum(x)", 10, some) == {"{}": 1.0}


def test_min_and_max_skip_nan_and_sum_does_not() -> None:
    some = block([10], {'x{a="1"}': [math.nan], 'x{a="2"}': [3]})
    assert instant("min(x)", 10, some) == {"{}": 3.0}
    assert instant("max(x)", 10, some) == {"{}": 3.0}
    assert math.isnan(instant("sum(x)", 10, some)["{}"])


def test_an_average_of_huge_numbers_does_not_overflow() -> None:
    huge = block([10, 20], {'x{a="1"}': [1e308, 1.5e308], 'x{a="2"}': [1e308, 1.5e308]})
    assert instant("avg(x)", 10, huge) == {"{}": 1e308}
    assert instant('avg_over_time(x{a="1"}[1m])', 20, huge) == {"{a=1}": 1.25e308}


def test_a_rate_is_extrapolated_to_the_ends_of_its_window() -> None:
    counter = block(range(0, 301, 15), {"c": [float(10 * i) for i in range(21)]})
    assert instant("rate(c[1m])", 300, counter) == {"{}": pytest.approx(10 / 15)}
    assert instant("increase(c[1m])", 300, counter) == {"{}": pytest.approx(40)}
    assert instant("delta(c[1m])", 300, counter) == {"{}": pytest.approx(40)}


def test_a_counter_that_begins_anew_is_not_negative() -> None:
    counter = block([0, 10, 20, 30, 40], {"c": [100, 110, 5, 15, 25]})
    # 10 + (reset) 5 + 10 + 10 over 40 s, the window reaching 5 s before the first sample
    assert instant("increase(c[45s])", 40, counter) == {"{}": pytest.approx(35 * 45 / 40)}
    assert instant("irate(c[45s])", 20, counter) == {"{}": pytest.approx(0.5)}
    assert instant("idelta(c[45s])", 20, counter) == {"{}": -105.0}


def test_a_counter_is_not_extrapolated_below_zero() -> None:
    counter = block([10, 20], {"c": [1, 11]})
    # 1 unit at 1 per s: the zero lies 1 s before the first sample
    assert instant("increase(c[20s])", 20, counter) == {"{}": pytest.approx(11)}


def test_a_window_is_open_on_its_left() -> None:
    counter = block([0, 10, 20], {"c": [1, 2, 3]})
    assert instant("count_over_time(c[20s])", 20, counter) == {"{}": 2.0}


def test_one_sample_makes_no_rate() -> None:
    assert instant("rate(c[5s])", 20, block([0, 10, 20], {"c": [1, 2, 3]})) == {}


def test_functions_over_time_skip_absent_and_stale_cells() -> None:
    some = block([10, 20, 30, 40], {"x": [1, ABSENT, STALE, 4], "y": [1, 2, 3, 4]})
    assert instant("sum_over_time(x[1m])", 40, some) == {"{}": 5.0}
    assert instant("avg_over_time(x[1m])", 40, some) == {"{}": 2.5}
    assert instant("min_over_time(y[25s])", 40, some) == {"{}": 2.0}
    assert instant("max_over_time(y[25s])", 30, some) == {"{}": 3.0}
    assert instant("last_over_time(x[25s])", 35, some) == {}
    assert instant("last_over_time(x[26s])", 35, some) == {"x{}": 1.0}
    assert instant('count_over_time({__name__=~"x|y",z=""}[1m]) * 1', 5, some) == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("abs(-load)", 3.0),
        ("ceil(load / 2)", 2.0),
        ("floor(load / 2)", 1.0),
        ("round(load / 2)", 2.0),
        ("round(load, 5)", 5.0),
        ("clamp(load, 4, 9)", 4.0),
        ("clamp_min(load, 4)", 4.0),
        ("clamp_max(load, 2)", 2.0),
        ("sqrt(load + 1)", 2.0),
        ("load * scalar(load{host='b'})", 21.0),
    ],
)
def test_functions_are_prometheus_own(text: str, expected: float) -> None:
    assert instant(text, 30, LOAD)["{host=a}"] == expected


def test_a_clamp_whose_bounds_cross_gives_nothing() -> None:
    assert instant("clamp(load, 9, 4)", 30, LOAD) == {}


def test_scalar_of_several_series_is_nan_and_vector_has_no_labels() -> None:
    result = parse("scalar(load)").instant(30 * SECOND, Store(LOAD))
    assert isinstance(result, Scalar)
    assert math.isnan(result.value)
    assert instant("vector(3)", 0) == {"{}": 3.0}


def test_a_range_query_answers_every_step_and_leaves_gaps() -> None:
    gap = block([0, 10, 400], {"x": [1, 2, 3]})
    matrix = parse("x").range(0, 420 * SECOND, 60 * SECOND, Store(gap))
    ((labels, at, values),) = matrix.series()
    assert labels == {"__name__": "x"}
    assert list(at // SECOND) == [0, 60, 120, 180, 240, 300, 420]
    assert list(values) == [1, 2, 2, 2, 2, 2, 3]


def test_a_range_query_equals_instant_queries_at_its_steps() -> None:
    rng = np.random.default_rng(7)
    at = np.cumsum(rng.integers(5, 20, 200))
    values = np.cumsum(rng.integers(0, 9, (6, 200)), axis=1).astype(float)
    values[2:4, 100:] -= 150
    values[rng.random(values.shape) < 0.1] = ABSENT
    values[rng.random(values.shape) < 0.02] = STALE
    series = {f'c{{n="{n}",g="{n % 2}"}}': list(values[n]) for n in range(6)}
    store = Store(block(at, series))
    for text in (
        "c",
        "rate(c[1m])",
        "sum by (g) (increase(c[90s]))",
        "max_over_time(c[1m]) - avg_over_time(c[2m] offset 30s)",
        "avg without (n) (c) > 100",
    ):
        query = parse(text)
        matrix = query.range(0, 2_000 * SECOND, 17 * SECOND, store)
        stepped = {
            (show(labels), int(t)): value
            for labels, ts, found in matrix.series()
            for t, value in zip(ts, found, strict=True)
        }
        single = {}
        for t in range(0, 2_000 * SECOND + 1, 17 * SECOND):
            for labels, value in instant(text, t / SECOND, *store.blocks).items():
                single[labels, t] = value
        assert stepped.keys() == single.keys()
        for key, value in single.items():
            assert stepped[key] == pytest.approx(value, rel=1e-12)


def test_a_series_that_moved_to_another_layout_is_one_series() -> None:
    old = block([0, 10], {"c": [1, 2], 'd{x="1"}': [1, 1]})
    new = block([20, 30], {'d{x="2"}': [2, 2], "c": [3, 4]})
    assert instant("increase(c[31s])", 30, old, new) == {"{}": pytest.approx(3 * 31 / 30)}
    assert len(instant("d", 30, old, new)) == 2


def test_blocks_of_one_layout_may_overlap_in_time() -> None:
    one = block([0, 10, 20], {"c": [1, ABSENT, 3]})
    other = Block(one.labels, one.at, block([0, 10, 20], {"c": [ABSENT, 2, ABSENT]}).values)
    assert instant("sum_over_time(c[1m])", 20, one, other) == {"{}": 6.0}


def test_a_range_selector_gives_the_samples_themselves() -> None:
    some = block([0, 10, 20], {"x": [1, ABSENT, 3], "y": [STALE, 2, math.nan]})
    result = parse('{__name__=~"x|y"}[15s]').instant(20 * SECOND, Store(some))
    assert isinstance(result, Matrix)
    found = {show(labels): list(at // SECOND) for labels, at, _ in result.series()}
    assert found == {"x{}": [20], "y{}": [10, 20]}


RAMP = block(range(0, 601, 10), {"r": [float(n) for n in range(61)]})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max_over_time(r[1m:20s])", 60.0),
        ("min_over_time(r[1m:20s])", 56.0),  # 560 s: the window is open on its left
        ("count_over_time(r[1m:20s])", 3.0),
        ("count_over_time(r[3m:])", 3.0),
        ("sum_over_time((r * 2)[40s:20s] offset 1m)", 2 * (54 + 52)),
        ("max_over_time(rate(r[20s])[2m:10s])", 0.1),
        ("max_over_time(max_over_time(r[20s:10s])[1m:30s] offset -20s)", 60.0),
        ("max_over_time(r[1m:10s] @ 100)", 10.0),
        ("max_over_time((r @ 100)[1m:10s])", 10.0),
        ("max_over_time((r @ end())[1m:10s] offset 5m)", 60.0),
        ("max_over_time((r @ start() offset 1m)[1m:10s] @ 50)", 54.0),
    ],
)
def test_a_subquery_evaluates_at_multiples_of_its_step(text: str, expected: float) -> None:
    assert list(instant(text, 600, RAMP).values()) == [pytest.approx(expected)]


def test_a_subquery_alone_gives_its_samples() -> None:
    result = parse("(r * 2)[25s:10s]").instant(605 * SECOND, Store(RAMP))
    assert isinstance(result, Matrix)
    ((labels, at, values),) = result.series()
    assert (labels, list(at // SECOND), list(values)) == ({}, [590, 600], [118, 120])


def test_a_subquery_of_a_range_query_equals_those_of_its_instants() -> None:
    query = parse("sum_over_time(delta(r[30s])[1m:20s] offset 10s) + avg_over_time(r[50s:])")
    matrix = query.range(100 * SECOND, 600 * SECOND, 35 * SECOND, Store(RAMP))
    ((_, at, values),) = matrix.series()
    single = [instant(query.text, float(t / SECOND), RAMP)["{}"] for t in at]
    assert len(at) == 12
    assert list(values) == pytest.approx(single)


def test_a_subquery_of_too_many_steps_is_refused() -> None:
    with pytest.raises(QueryError, match="at most 1000000"):
        instant("max_over_time(r[10y:1ms])", 600, RAMP)


def test_a_subquery_reads_all_samples_that_its_steps_see() -> None:
    (select,) = parse("max_over_time(x[10m:1m] offset 2m)").selects(0, 0)
    assert (select.start_us, select.end_us) == (-17 * MINUTE, -2 * MINUTE)
    assert not select.newest


def wide(name: str, count: int) -> Block:
    return block([10], {f'{name}{{n="{n}"}}': [n] for n in range(count)})


def test_a_query_that_would_take_all_memory_is_refused() -> None:
    left, right = wide("a", 1500), wide("b", 1500)
    with pytest.raises(QueryError, match="many-to-many matching not allowed"):
        instant("a * on () b", 10, left, right)
    gone = Block(left.labels, left.at, np.full(left.values.shape, STALE))
    with pytest.raises(QueryError, match="2250000 pairs of series match; at most 1000000"):
        parse("a * on () b").range(10 * SECOND, 10 * SECOND, SECOND, Store(gone, right))
    many = wide("c", 6000)
    with pytest.raises(QueryError, match="narrow the selector, or use a longer step"):
        parse("c").range(0, 10_000 * SECOND, SECOND, Store(many))
    with pytest.raises(QueryError, match="different values"):
        parse('count_values("v", c)').range(0, 5_000 * SECOND, SECOND, Store(many))
    long = Block(wide("d", 300).labels, np.arange(20_000) * SECOND, np.ones((20_000, 300)))
    with pytest.raises(QueryError, match="samples in all windows"):
        parse("sum_over_time(d[1d])").range(20_000 * SECOND, 30_000 * SECOND, SECOND, Store(long))


def test_selects_say_what_must_be_read() -> None:
    query = parse("rate(x[1m] offset 1m) + y + rate(x[1m] offset 1m)")
    first, second = query.selects(600 * SECOND, 900 * SECOND)
    assert (first.start_us, first.end_us) == (480 * SECOND, 840 * SECOND)
    assert (second.start_us, second.end_us) == (300 * SECOND, 900 * SECOND)
    assert [str(one) for one in second.matchers] == ['__name__="y"']


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("rat(x[5m])", "unknown function with name 'rat'; nearest: rate"),
        ("rate(x)", "expected type matrix"),
        ("x + ", "no expression|unexpected|invalid"),
        ("histogram_avg(x)", r"histogram_avg\(\) is not supported: native histograms"),
        ('x{a="b" or c="d"}', "`or` between matchers is not PromQL"),
        ("x </ 2", "native histograms are not built"),
        ("1 > 2", "comparisons between scalars must use BOOL modifier"),
        ('x{a=~"("}', "illegal regex"),
        ('x{a=~"(?=a)"}', "illegal regex"),
        ("(" * 5000 + "x" + ")" * 5000, "nested deeper than 100"),
        ("-" * 200 + "x", "nested deeper than 100"),
        ("- " * 5000 + "x", "5000 operators; at most 300"),
        ("2^" * 8000 + "2", "8000 operators; at most 300"),
        ("# '\n" + "2^" * 8000 + "2 # '", "8000 operators; at most 300"),
        ("x @ 1e300", "number too large"),
        ("x @ -1e18", "@ with an instant before 1970 is not supported"),
        ("x @ # at\n -1", "@ with an instant before 1970 is not supported"),
        ("x " + "or x " * 3000, "3000 operators; at most 300"),
        ("+".join(["x"] * 200), "nested deeper than 100"),
        ("x" * 20_000, "at most 16384"),
    ],
)
def test_what_cannot_be_answered_is_refused_with_a_reason(text: str, reason: str) -> None:
    with pytest.raises(QueryError, match=reason):
        parse(text)


def test_brackets_in_strings_do_not_nest() -> None:
    assert parse('x{a="' + "(" * 500 + '"}').kind == "vector"


@pytest.mark.parametrize("pattern", [r"(?:\d+\.){3}\d+", "eth[0-9]+|lo", "(a|b)c*", r"[(+]+"])
def test_usual_expressions_of_matchers_are_accepted(pattern: str) -> None:
    parse(f"x{{a=~{pattern.replace(chr(92), chr(92) * 2)!r}}}")


@pytest.mark.parametrize(
    ("pattern", "value", "accepted"),
    [
        ("(a+)+b", "a" * 5000, False),  # would take Python's own engine for ever
        ("[[:alpha:]]+", "abc", True),
        ("a.c", "a\nc", True),
        ("b", "abc", False),
        ("a|b", "ab", False),
    ],
)
def test_regular_expressions_are_anchored_and_linear(
    pattern: str, value: str, accepted: bool
) -> None:
    assert Matcher("a", MatchOp.REGEX, pattern).accepts(value) is accepted


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ('x{a="[1+1]"} offset 5m', 'x{a="[1+1]"} offset 5m'),
        ("sum by (offset) (x[1m:30s])", "sum by (offset) (x[1m:30s])"),
        ("a:b:c[2*1m:1*30s] # [1+1]", "a:b:c[120000ms:30000ms] # [1+1]"),
    ],
)
def test_only_computed_durations_are_written_out(text: str, same: str) -> None:
    assert written_out(text, AT_AN_INSTANT) == same


def test_durations_in_many_parentheses_are_refused() -> None:
    with pytest.raises(QueryError, match="nested deeper than 100"):
        parse(f"x offset {'-(' * 5000}1{')' * 5000}")


def test_a_window_with_edges_asks_for_values_where_rollups_stand_in() -> None:
    plain, smoothed = parse("rate(x[5m])"), parse("rate(x[5m] smoothed)")
    assert plain.over_rollups(on_grid=True).tree != plain.tree
    assert smoothed.over_rollups(on_grid=True).tree == smoothed.tree
