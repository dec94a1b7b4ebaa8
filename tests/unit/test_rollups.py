"""Rollups, against the expression engine and against Prometheus' own loop written out."""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.promql.blocks import Block, Floats, Instants
from engine.promql.over_time import FUNCTIONS
from engine.promql.windows import over_windows
from schemas.values import ABSENT, STALE, bits
from services.clock import DAY_US, HOUR_US
from services.ingest.rollups import BUCKET_US, Rollup, of_days, of_hours

START_US = 1_700_002_800_000_000
NO_SAMPLE = {bits(ABSENT), bits(STALE)}

EXTREMES = [ABSENT, ABSENT, STALE, math.nan, math.inf, -math.inf, -0.0, 1e15, 5e-324]
cells = st.one_of(
    st.sampled_from(EXTREMES), st.integers(0, 9).map(float), st.floats(-1e6, 1e6, width=32)
)


@st.composite
def hours(draw: st.DrawFn, span_us: int = HOUR_US) -> tuple[Instants, Floats]:
    """Instants within an hour, its ends and those of buckets among them, and three series."""
    edges = st.integers(1, span_us // BUCKET_US).map(lambda n: n * BUCKET_US)
    instant = st.one_of(edges, edges.map(lambda at: at - BUCKET_US + 1), st.integers(1, span_us))
    at = sorted(draw(st.sets(instant, min_size=1, max_size=40)))
    values = draw(st.lists(st.tuples(cells, cells, cells), min_size=len(at), max_size=len(at)))
    return START_US + np.array(at), np.array(values)


def over_time(
    function: str, at: Instants, values: Floats, bucket_us: int, buckets: int
) -> list[list[float | None]]:
    """By series and bucket what the engine answers; None where it has no result."""
    labels = [{"__name__": "m", "n": str(n)} for n in range(values.shape[1])]
    ends = START_US + bucket_us * np.arange(1, buckets + 1)
    block = Block(labels, at, values)
    with np.errstate(all="ignore"):
        table = over_windows([block], ends, bucket_us, FUNCTIONS[f"{function}_over_time"], ends)
    return [
        [
            float(table.values[step, column]) if table.present[step, column] else None
            for step in range(buckets)
        ]
        for column in range(values.shape[1])
    ]


def increases(at: Instants, values: Sequence[float], bucket_us: int, buckets: int) -> list[float]:
    """prometheus/promql/functions.go, extrapolatedRate, before it extrapolates."""
    found = []
    for bucket in range(buckets):
        low = START_US + bucket * bucket_us
        inside = [
            value
            for instant, value in zip(at, values, strict=True)
            if low < instant <= low + bucket_us and bits(value) not in NO_SAMPLE
        ]
        result = inside[-1] - inside[0] if inside else math.nan
        for before, after in pairwise(inside):
            if after < before:
                result += before
        found.append(result)
    return found


def assert_agrees(rollup: Rollup, at: Instants, values: Floats, bucket_us: int) -> None:
    """Sums are compared by the size of what they are of: they add in another order."""
    buckets = rollup.counts.shape[2]
    sizes = np.abs(np.where(np.isfinite(values), values, 0.0)).max(axis=0)
    scale = np.maximum(sizes, 1.0)[:, None]
    for name in ("count", "sum", "min", "max", "first", "last"):
        expected = over_time(name, at, values, bucket_us, buckets)
        found = getattr(rollup, name + "s")[0]
        empty = 0 if name == "count" else math.nan
        wanted = [[empty if one is None else one for one in series] for series in expected]
        np.testing.assert_allclose(found / scale, wanted / scale, 1e-12, 1e-12, err_msg=name)
    with np.errstate(all="ignore"):
        increased = (rollup.lasts - rollup.firsts + rollup.resets)[0]
        wanted = [increases(at, column, bucket_us, buckets) for column in values.T]
    np.testing.assert_allclose(increased / scale, wanted / scale, 1e-12, 1e-12, err_msg="increase")


@given(hours())
def test_buckets_of_an_hour_are_what_the_engine_answers_over_five_minutes(
    hour: tuple[Instants, Floats],
) -> None:
    at, values = hour
    assert_agrees(of_hours(at, values, [len(at)], [START_US]), at, values, BUCKET_US)


@given(hours(DAY_US))
def test_buckets_of_a_day_are_what_the_engine_answers_over_an_hour(
    day: tuple[Instants, Floats],
) -> None:
    at, values = day
    assert_agrees(of_days(five_minutes(at, values)), at, values, HOUR_US)


def five_minutes(at: Instants, values: Floats) -> Rollup:
    """A day's buckets of 5 minutes, from hours computed one by one."""
    parts = []
    for start in range(START_US, START_US + DAY_US, HOUR_US):
        rows = (at > start) & (at <= start + HOUR_US)
        if not rows.any():
            rows, inside = np.ones(1, np.bool_), np.full((1, values.shape[1]), ABSENT)
            parts.append(of_hours(np.array([start + 1]), inside, [1], [start]))
            continue
        parts.append(of_hours(at[rows], values[rows], [int(rows.sum())], [start]))
    return Rollup._make(np.concatenate(arrays, axis=2) for arrays in zip(*parts, strict=True))


@given(st.lists(hours(), min_size=2, max_size=4))
def test_hours_computed_together_are_as_computed_alone(
    several: list[tuple[Instants, Floats]],
) -> None:
    rows = [len(at) for at, _ in several]
    together = of_hours(
        np.concatenate([at for at, _ in several]),
        np.concatenate([values for _, values in several]),
        rows,
        [START_US] * len(rows),
    )
    alone = [of_hours(at, values, [len(at)], [START_US]) for at, values in several]
    for name, arrays in zip(Rollup._fields, zip(*alone, strict=True), strict=True):
        np.testing.assert_array_equal(getattr(together, name), np.concatenate(arrays), name)


SECOND = 1_000_000


def bucket(**expected: float) -> dict[str, float]:
    return expected


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        ([1.0, math.nan, 3.0], bucket(counts=3, sums=math.nan, mins=1, maxs=3, firsts=1, lasts=3)),
        (
            [math.nan, 2.0],
            bucket(counts=2, sums=math.nan, mins=2, firsts=math.nan, lasts=2),
        ),
        ([math.nan], bucket(counts=1, mins=math.nan, firsts=math.nan, resets=0)),
        ([5.0, math.nan, 2.0], bucket(resets=0)),
        ([5.0, ABSENT, 2.0, STALE], bucket(counts=2, lasts=2, resets=5)),
        ([3.0, 1.0, 0.5], bucket(resets=4)),
        ([ABSENT, STALE], bucket(counts=0, sums=math.nan, mins=math.nan, lasts=math.nan, resets=0)),
        ([1e16, 1.0, -1e16], bucket(sums=1)),
    ],
)
def test_a_bucket_of_these_samples(samples: list[float], expected: dict[str, float]) -> None:
    at = START_US + SECOND * np.arange(1, len(samples) + 1)
    rollup = of_hours(at, np.array(samples)[:, None], [len(at)], [START_US])
    found = {name: getattr(rollup, name)[0, 0, 0] for name in expected}
    assert found == pytest.approx(expected, nan_ok=True)


def test_an_instant_at_a_buckets_end_is_in_it() -> None:
    at = np.array([START_US + 1, START_US + BUCKET_US, START_US + BUCKET_US + 1])
    rollup = of_hours(at, np.array([[1.0], [2.0], [4.0]]), [3], [START_US])
    assert rollup.counts[0, 0, :3].tolist() == [2, 1, 0]


def test_a_reset_between_two_buckets_counts_in_the_hour_that_holds_both() -> None:
    at = np.array([START_US + BUCKET_US, START_US + BUCKET_US + 1])
    five = five_minutes(at, np.array([[7.0], [2.0]]))
    assert not five.resets.any()
    assert of_days(five).resets[0, 0, 0] == 7.0
