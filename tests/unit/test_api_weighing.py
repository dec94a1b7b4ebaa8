"""What is computed on the api's event loop."""

import pytest

from engine.promql import parse
from services.api.costs import Read
from services.api.weighing import MAX_CELLS, MAX_SERIES, is_little

DAY_US, MINUTE_US = 86_400_000_000, 60_000_000


def little(text: str, series: int = 1, samples: int = 1000, step_us: int = MINUTE_US) -> bool:
    """Whether an expression over a day is, if each of its selectors reads so much."""
    query = parse(text)
    steps = DAY_US // step_us + 1 if step_us else 1
    reads = [
        Read(select, series, 1, samples, samples, {}, 0.0) for select in query.selects(0, DAY_US)
    ]
    return is_little(query.tree, steps, step_us, reads)


@pytest.mark.parametrize("text", ["x", "-x", "sum by (a) (rate(x[5m]))", "x / y > 1"])
def test_few_samples_in_a_plain_expression_are_little_work(text: str) -> None:
    assert little(text)


@pytest.mark.parametrize(
    "text",
    [
        "max_over_time(x[1d:1s])",
        'label_replace(x, "a", "$1", "b", "(.*)")',
        "info(x)",
        "rate(x[1d])",
        "+".join(["x"] * 20),
    ],
)
def test_an_expression_that_multiplies_its_work_is_not(text: str) -> None:
    assert not little(text)


def test_many_series_samples_or_steps_are_not() -> None:
    assert little("x", MAX_SERIES, step_us=0)
    assert not little("x", MAX_SERIES + 1, step_us=0)
    assert not little("x", samples=MAX_CELLS)
    assert not little("vector(1)", 0, 0, step_us=1000)
    assert not little("1", 0, 0, step_us=1000)
