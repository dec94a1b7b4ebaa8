"""Likely mistakes that are no errors: remarked in the words of Prometheus 3, where they stand."""

import pytest

from engine.promql import parse
from engine.promql.remarks import remarks

COUNTER = (
    "PromQL info: metric might not be a counter, name does not end in"
    ' _total/_sum/_count/_bucket: "{}" ({})'
)
QUANTILE = "PromQL warning: quantile value should be between 0 and 1, got {} ({})"


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("rate(load[5m])", [COUNTER.format("load", "1:6")]),
        ("load +\n sum( increase( load{a='b'}[5m] ))", [COUNTER.format("load", "2:17")]),
        ("rate(x_total[5m]) + increase(x_bucket[5m]) + irate(load[5m]) + delta(load[5m])", []),
        ("rate({__name__=~'load'}[5m])", []),
        ("quantile(2, x)", [QUANTILE.format("2", "1:10")]),
        ("quantile by (instance, i1) (-0.5, x)", [QUANTILE.format("-0.5", "1:29")]),
        ("quantile_over_time(NaN, x[5m])", [QUANTILE.format("NaN", "1:20")]),
        ("histogram_quantile(1.5, rate(x_bucket[5m]))", [QUANTILE.format("1.5", "1:20")]),
        ("quantile(0.5, x) + quantile(1, x) + quantile(scalar(y), x)", []),
    ],
)
def test_likely_mistakes_are_remarked(expression: str, expected: list[str]) -> None:
    found = remarks(expression, parse(expression).tree, lambda selector: True)
    assert [one.text for one in found] == expected
    levels = ["info" if one.startswith("PromQL info") else "warning" for one in expected]
    assert [one.level for one in found] == levels


def test_a_selector_that_finds_nothing_is_not_remarked() -> None:
    assert remarks("rate(load[5m])", parse("rate(load[5m])").tree, lambda selector: False) == []
