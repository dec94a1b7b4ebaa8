"""A layout's hour on its way from frames to a block: bits, keys, and every order of arrival."""

import math
from random import Random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engine.promql.blocks import Floats, Instants
from schemas.layouts import Series
from schemas.values import ABSENT, STALE
from services.clock import DAY_US, HOUR_US
from services.ingest.batch import Layout, Rows, encode_copy
from services.ingest.hours import (
    Hour,
    decode_days,
    decode_frames,
    encode_rollups,
    hour_of,
    merged,
    unsealed,
)
from services.ingest.rollups import Rollup, of_hours
from services.sealed import Sealed, seal

START_US = 1_700_002_800_000_000
EXTREMES = [ABSENT, STALE, math.nan, math.inf, -math.inf, -0.0, 0.0]
cells = st.one_of(st.sampled_from(EXTREMES), st.floats(width=32))


def bits(values: Floats) -> list[list[int]]:
    found: list[list[int]] = np.ascontiguousarray(values).view(np.uint64).tolist()
    return found


@st.composite
def frames(draw: st.DrawFn) -> dict[tuple[int, int], list[float]]:
    """Rows by (layout id, instant); a layout's id is its width."""
    keys = st.tuples(st.integers(1, 4), st.integers(START_US + 1, START_US + 3 * HOUR_US))
    chosen = draw(st.sets(keys, min_size=1, max_size=20))
    return {key: [draw(cells) for _ in range(key[0])] for key in chosen}


@given(frames(), st.randoms())
def test_frames_come_out_of_copy_by_layout_and_hour_to_the_bit(
    rows: dict[tuple[int, int], list[float]], order: Random
) -> None:
    sent = list(rows.items())
    order.shuffle(sent)
    copy = encode_copy(
        [Rows(layout(width), (at,), np.array(values).tobytes()) for (width, at), values in sent]
    )
    hours = decode_frames(bytearray(copy), {width: width for width in range(1, 5)})
    assert [hour.key for hour in hours] == sorted({(width, hour_of(at)) for width, at in rows})
    assert [
        (hour.layout_id, at, row)
        for hour in hours
        for at, row in zip(hour.at.tolist(), bits(hour.values), strict=True)
    ] == [(width, at, bits(np.array([row]))[0]) for (width, at), row in sorted(rows.items())]


def layout(width: int) -> Layout:
    series = tuple(Series("m", {"n": str(n)}, "gauge") for n in range(width))
    return Layout({}, series, b"", width)


def test_a_layout_of_many_rows_is_one_hour() -> None:
    at = START_US + np.arange(1, 10_001)
    values = np.arange(20_000.0)
    rows = Rows(layout(2), tuple(at.tolist()), values.tobytes())
    (hour,) = decode_frames(bytearray(encode_copy([rows])), {2: 2})
    assert (hour.at == at).all()
    assert (hour.values.ravel() == values).all()


def test_an_hour_holds_its_end_and_not_its_start() -> None:
    assert [hour_of(START_US + n) for n in (0, 1, HOUR_US, HOUR_US + 1)] == [
        START_US - HOUR_US,
        START_US,
        START_US,
        START_US + HOUR_US,
    ]


@st.composite
def arrivals(draw: st.DrawFn) -> tuple[Instants, Floats, list[list[tuple[int, list[bool]]]]]:
    """An hour, and its rows as they are sealed, time after time: which row, which of its cells.

    Every cell comes at least once; some come again, in another frame, before or after sealing.
    """
    at = sorted(draw(st.sets(st.integers(1, HOUR_US), min_size=1, max_size=8)))
    values = draw(st.lists(st.tuples(cells, cells, cells), min_size=len(at), max_size=len(at)))
    parts = []
    for row in range(len(at)):
        some = draw(st.lists(st.booleans(), min_size=3, max_size=3))
        parts += [(row, some), (row, [not one for one in some])]
        parts += draw(st.just([]) | st.just([(row, [True, True, True])]))
    schedule: list[list[tuple[int, list[bool]]]] = [[] for _ in range(draw(st.integers(1, 4)))]
    for part in draw(st.permutations(parts)):
        draw(st.sampled_from(schedule)).append(part)
    return START_US + np.array(at), np.array(values), schedule


@given(arrivals())
def test_blocks_and_rollups_are_the_same_in_whatever_order_frames_came_and_were_sealed(
    arrived: tuple[Instants, Floats, list[list[tuple[int, list[bool]]]]],
) -> None:
    at, values, schedule = arrived
    block: Sealed | None = None
    for parts in schedule:
        head = head_of(at, values, parts)
        if head is None:
            continue
        whole = head if block is None else merged(unsealed(1, START_US, block, 3), head)
        block = seal(whole.at, whole.values)
    assert block is not None
    late = unsealed(1, START_US, block, 3)
    assert (late.at == at).all()
    assert bits(late.values) == bits(values)
    assert_same(rollup(late), rollup(Hour(1, START_US, at, values)))


def head_of(at: Instants, values: Floats, parts: list[tuple[int, list[bool]]]) -> Hour | None:
    """What `frames` holds after these came: a second frame of an instant fills absent cells."""
    head = np.full(values.shape, ABSENT)
    for row, some in parts:
        head[row, some] = values[row, some]
    rows = sorted({row for row, _ in parts})
    return Hour(1, START_US, at[rows], head[rows]) if rows else None


def rollup(hour: Hour) -> Rollup:
    return of_hours(hour.at, hour.values, [len(hour.at)], [hour.start_us])


def assert_same(one: Rollup, other: Rollup) -> None:
    for name in Rollup._fields:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), name)


def test_what_is_sealed_stays_and_what_is_absent_is_filled() -> None:
    sealed = Hour(1, START_US, np.array([1, 3]), np.array([[1.0, ABSENT], [STALE, 4.0]]))
    late = Hour(1, START_US, np.array([1, 2, 3]), np.array([[9.0, 2.0], [5.0, 6.0], [9.0, 9.0]]))
    whole = merged(sealed, late)
    assert whole.at.tolist() == [1, 2, 3]
    assert bits(whole.values) == bits(np.array([[1.0, 2.0], [5.0, 6.0], [STALE, 4.0]]))


def test_frames_that_come_again_change_nothing() -> None:
    sealed = Hour(1, START_US, np.array([1, 3]), np.array([[1.0, ABSENT], [STALE, 4.0]]))
    again = Hour(1, START_US, np.array([3]), np.array([[7.0, 4.0]]))
    assert merged(sealed, again) is sealed


@given(st.lists(frames(), min_size=1, max_size=3))
def test_rollups_come_out_of_copy_as_they_went_in(
    several: list[dict[tuple[int, int], list[float]]],
) -> None:
    rows = {
        (number, at): values + [1.0] * (4 - len(values))
        for number, some in enumerate(several)
        for (_, at), values in some.items()
    }
    hours: dict[tuple[int, int], list[int]] = {}
    for number, at in sorted(rows):
        hours.setdefault((number, hour_of(at)), []).append(at)
    sent = {
        (number, start): of_hours(
            np.array(at), np.array([rows[number, one] for one in at]), [len(at)], [start]
        )
        for (number, start), at in hours.items()
    }
    copy = encode_rollups([([key], one) for key, one in sent.items()])
    keys, days = decode_days(bytearray(copy), 4)
    assert keys == sorted({(number, start // DAY_US * DAY_US) for number, start in sent})
    assert days.counts.sum() == sum(one.counts.sum() for one in sent.values())
    for (number, start), one in sent.items():
        place = keys.index((number, start // DAY_US * DAY_US))
        first = start % DAY_US // HOUR_US * 12
        there = Rollup._make(array[[place], :, first : first + 12] for array in days)
        assert_same(there, one)
