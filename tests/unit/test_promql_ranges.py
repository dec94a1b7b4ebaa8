"""A range query answers at each step what an instant query answers there."""

import math
import random

import pytest

from engine.promql import QueryError, Vector, parse
from tests import promqlgrammar
from tests.promqljudge import SECOND_US, Memory, samples

START_S, END_S, EVERY_S = 43, 563, 65
CASES = 300

Answer = dict[tuple[frozenset[tuple[str, str]], int], float]


def by_range(text: str, store: Memory) -> Answer:
    matrix = parse(text).range(START_S * SECOND_US, END_S * SECOND_US, EVERY_S * SECOND_US, store)
    return {
        (frozenset(labels.items()), int(at)): float(value)
        for labels, ats, values in matrix.series()
        for at, value in zip(ats, values, strict=True)
    }


def by_instants(text: str, store: Memory) -> Answer:
    found: Answer = {}
    for at in range(START_S * SECOND_US, END_S * SECOND_US + 1, EVERY_S * SECOND_US):
        result = parse(text).instant(at, store)
        assert isinstance(result, Vector)
        for labels, value in zip(result.labels, result.values, strict=True):
            found[frozenset(labels.items()), at] = float(value)
    return found


def answer(text: str, store: Memory, way: object) -> Answer | None:
    """None where the answer is an error."""
    try:
        return way(text, store)  # type: ignore[operator,no-any-return]
    except QueryError:
        return None


@pytest.mark.parametrize("seed", range(3))
def test_a_range_query_is_its_instants(seed: int) -> None:
    rng = random.Random(seed)
    store = Memory(samples(seed), first_s=0)
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
