"""What stands in for samples that are gone: as good as them on the buckets' edges."""

import numpy as np
import pytest

from engine.promql import Block, parse
from engine.promql.rollups import over_rollups
from schemas.values import ABSENT, ABSENT_BITS, STALE
from services.ingest.rollups import of_days, of_hours
from services.rollup_pieces import ARRAYS, COARSE, FINE, Buckets, numbers, stand_in

HOUR_US = 3_600_000_000
MINUTE_US = 60_000_000
T0 = 20_000 * 24 * HOUR_US
HOURS = 24


def counters(rows: int) -> np.ndarray:
    """(rows, 3): a counter, one that begins anew now and then, one with gaps and an end."""
    random = np.random.default_rng(5)
    grown = random.integers(0, 50, (rows, 3)).cumsum(axis=0).astype(float)
    for fall in range(333, rows, 611):
        grown[fall:, 1] -= grown[fall, 1] - 3.0
    grown[100:160, 2] = ABSENT
    grown[500:505, 2] = STALE
    return grown


AT = T0 + 1 + np.arange(HOURS * 240, dtype=np.int64) * 15_000_000 + 7_000_000
VALUES = counters(len(AT))
ROLLUP = of_hours(AT, VALUES, [240] * HOURS, [T0 + hour * HOUR_US for hour in range(HOURS)])
LABELS = [{"__name__": "m", "n": str(n)} for n in range(3)]


def buckets(tier, column: str, from_us: int, until_us: int) -> Buckets:
    rollup = ROLLUP
    if tier is COARSE:
        days = type(ROLLUP)(*(one.swapaxes(0, 1).reshape(1, 3, -1) for one in ROLLUP))
        rollup = of_days(days)

    def flat(array: np.ndarray) -> np.ndarray:
        return array.swapaxes(1, 2).reshape(-1, 3).astype(float)

    ends = T0 + tier.bucket_us * np.arange(1, HOURS * HOUR_US // tier.bucket_us + 1)
    here = (ends > from_us) & (ends <= until_us)
    arrays = tuple(flat(getattr(rollup, name))[here] for name in ARRAYS[column])
    return Buckets(tier, until_us, ends[here], flat(rollup.counts)[here], arrays)


def answers(text: str, tiers, step_us: int, floor_us: int) -> tuple[np.ndarray, np.ndarray]:
    """(from samples, from rollups up to the floor): each (steps, 3), NaN where there is none."""
    plain = parse(text)
    start_us, end_us = T0 + 2 * HOUR_US, T0 + HOURS * HOUR_US
    results = []
    for query in (plain, plain.over_rollups(on_grid=False)):
        blocks = {}
        for select in query.selects(start_us, end_us):
            old, new = Block(LABELS, AT, VALUES), []
            if query is not plain:
                edges = [T0, *(edge for _, edge in tiers)]
                parts = [
                    buckets(tier, select.column, low, high)
                    for (tier, high), low in zip(tiers, edges, strict=False)
                ]
                piece = stand_in(select.column, parts, select.window_us)
                rest = floor_us < AT
                raw = VALUES[rest]
                new = [Block(LABELS, AT[rest], numbers(raw) if select.column == "counts" else raw)]
                old = Block(LABELS, piece.at, piece.values)
            blocks[select] = [old, *new]
        found = query.range(start_us, end_us, step_us, blocks)
        table = np.full((len(found.at), 3), np.nan)
        for column, labels in enumerate(found.labels):
            here = found.present[:, column]
            table[here, int(labels["n"])] = found.values[here, column]
        results.append(table)
    return results[0], results[1]


FLOOR_US = T0 + 18 * HOUR_US
FINE_ONLY = [(FINE, FLOOR_US)]
BOTH = [(COARSE, T0 + 9 * HOUR_US), (FINE, FLOOR_US)]


@pytest.mark.parametrize(
    "function", ["min", "max", "sum", "count", "avg", "last", "present", "first"]
)
@pytest.mark.parametrize(("window", "step_us"), [("5m", 5 * MINUTE_US), ("1h", 15 * MINUTE_US)])
def test_on_the_edges_of_buckets_rollups_answer_as_samples_do(
    function: str, window: str, step_us: int
) -> None:
    expected, found = answers(f"{function}_over_time(m[{window}])", FINE_ONLY, step_us, FLOOR_US)
    np.testing.assert_allclose(found, expected, rtol=1e-12, equal_nan=True)


@pytest.mark.parametrize("function", ["min", "max", "sum", "count", "avg", "last", "first"])
def test_two_tiers_and_samples_answer_together(function: str) -> None:
    expected, found = answers(f"{function}_over_time(m[2h])", BOTH, HOUR_US, FLOOR_US)
    np.testing.assert_allclose(found, expected, rtol=1e-12, equal_nan=True)


@pytest.mark.parametrize("tiers", [FINE_ONLY, BOTH])
@pytest.mark.parametrize("window", ["30m", "2h"])
def test_a_counter_grows_as_much_by_rollups(window: str, tiers: list) -> None:
    expected, found = answers(f"increase(m[{window}])", tiers, 10 * MINUTE_US, FLOOR_US)
    coarse = tiers is BOTH
    places = slice(None) if not coarse else slice(9 * 6, None)  # an hour's growth is even
    first_two = np.s_[places, :2]
    np.testing.assert_allclose(found[first_two], expected[first_two], rtol=0.25)
    total = np.nansum(expected[:, :2]), np.nansum(found[:, :2])
    assert abs(total[0] / total[1] - 1) < 0.02


def test_a_window_narrower_than_a_bucket_has_an_answer() -> None:
    for text in ("rate(m[1m])", "avg_over_time(m[2m])", "sum_over_time(m[1m])", "delta(m[10m])"):
        _, found = answers(text, BOTH, 7 * MINUTE_US, FLOOR_US)
        assert not np.isnan(found[:, :2]).any(), text
    expected, found = answers("sum_over_time(m[1m])", FINE_ONLY, MINUTE_US, FLOOR_US)
    np.testing.assert_allclose(np.nansum(found[:, 0]), np.nansum(expected[:, 0]), rtol=0.01)


def test_an_instant_selector_sees_the_last_sample_of_the_bucket_before() -> None:
    expected, found = answers("m", FINE_ONLY, 5 * MINUTE_US, FLOOR_US)
    np.testing.assert_array_equal(found[:, :2], expected[:, :2])
    _, found = answers("m", BOTH, MINUTE_US, FLOOR_US)
    assert not np.isnan(found[:, :2]).any()


def test_a_reset_counts_wherever_it_falls() -> None:
    at = T0 + 1 + np.arange(240, dtype=np.int64) * 15_000_000
    values = np.arange(240.0)[:, np.newaxis] % 7
    rollup = of_hours(at, values, [240], [T0])
    arrays = tuple(getattr(rollup, name)[0].T for name in ARRAYS["increases"])
    ends = T0 + FINE.bucket_us * np.arange(1, 13)
    tier = Buckets(FINE, T0 + HOUR_US, ends, rollup.counts[0].T.astype(float), arrays)
    piece = stand_in("increases", [tier], HOUR_US)
    fell = np.diff(values[:, 0])
    grown = np.where(fell < 0, values[1:, 0], fell).sum() - values[19, 0]
    total = float(piece.values[-1, 0] - piece.values[0, 0])
    in_first = np.diff(values[:20, 0])
    grown -= np.where(in_first < 0, values[1:20, 0], in_first).sum() - values[19, 0]
    assert total == grown
    assert piece.values[-1, 0] == values[-1, 0]


def test_a_bucket_without_samples_stays_absent() -> None:
    at = np.array([T0 + 1, T0 + 3 * FINE.bucket_us], dtype=np.int64)
    rollup = of_hours(at, np.array([[1.0], [5.0]]), [2], [T0])
    for column, names in ARRAYS.items():
        arrays = tuple(getattr(rollup, name)[0].T for name in names)
        ends = T0 + FINE.bucket_us * np.arange(1, 13)
        tier = Buckets(FINE, T0 + HOUR_US, ends, rollup.counts[0].T.astype(float), arrays)
        bits = stand_in(column, [tier], HOUR_US).values.view(np.uint64)[:, 0]
        assert (bits != ABSENT_BITS).tolist() == [True, False, True, *[False] * 9]


def test_a_tree_without_windows_stays_as_it_is() -> None:
    for text in ("m", "sum(m) by (n)", "m offset 5m + 1", 'label_replace(m, "a", "b", "c", "d")'):
        tree = parse(text).tree
        assert over_rollups(tree, on_grid=True) == tree
