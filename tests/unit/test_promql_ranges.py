"""A range query answers at each step what an instant query answers there."""

import math
import random

import pytest

from engine.promql import QueryError, Vector, parse
from tests import promqlgrammar
from tests.unit.test_promql_engine import SECOND, Store, block
from tests.unit.test_promql_promtool import STEP_S, STEPS, random_series

START_S, END_S, EVERY_S = 43, 563, 65
CASES = 300

Answer = dict[tuple[frozenset[tuple[str, str]], int], float]


def by_range(text: str, store: Store) -> Answer:
    matrix = parse(text).range(START_S * SECOND, END_S * SECOND, EVERY_S * SECOND, store)
    return {
        (frozenset(labels.items()), int(at)): float(value)
        for labels, ats, values in matrix.series()
        for at, value in zip(ats, values, strict=True)
    }


def by_instants(text: str, store: Store) -> Answer:
    found: Answer = {}
    for at in range(START_S * SECOND, END_S * SECOND + 1, EVERY_S * SECOND):
        result = parse(text).instant(at, store)
        assert isinstance(result, Vector)
        for labels, value in zip(result.labels, result.values, strict=True):
            found[frozenset(labels.items()), at] = float(value)
    return found


def answer(text: str, store: Store, way: object) -> Answer | None:
    """None where the answer is an error."""
    try:
        return way(text, store)  # type: ignore[operator,no-any-return]
    except QueryError:
        return None


@pytest.mark.parametrize("seed", range(3))
def test_a_range_query_is_its_instants(seed: int) -> None:
    rng = random.Random(seed)
    store = Store(block(range(0, STEPS * STEP_S, STEP_S), random_series(rng)))
    answered = 0
    for _ in range(CASES // 3):
        text = promqlgrammar.expression(rng)
        if "end()" in text:  # which a range query has elsewhere
            continue
        ranged, single = answer(text, store, by_range), answer(text, store, by_instants)
        if ranged is None or single is None:
            assert ranged is single, text
            continue
        assert ranged.keys() == single.keys(), text
        for key, value in ranged.items():
            both_nan = math.isnan(value) and math.isnan(single[key])
            assert both_nan or math.isclose(value, single[key], rel_tol=1e-9, abs_tol=1e-9), text
        answered += bool(ranged)
    assert answered > CASES / 12
