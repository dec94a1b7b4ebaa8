"""When collectors are due."""

from hypothesis import given
from hypothesis import strategies as st

from services.agent.schedule import Schedule, splay_ns


def test_all_collectors_are_due_at_the_first_tick() -> None:
    schedule = Schedule({"a": 10, "b": 30}, start_ns=5)
    assert schedule.due(4) == ([], 0)
    assert schedule.due(5) == (["a", "b"], 0)
    assert schedule.next_ns() == 15


def test_multiples_fall_on_the_same_ticks() -> None:
    schedule = Schedule({"slow": 30, "fast": 10}, start_ns=0)
    ticks = []
    while (now := schedule.next_ns()) <= 60:
        ticks.append((now, schedule.due(now)[0]))
    assert ticks == [
        (0, ["slow", "fast"]),
        (10, ["fast"]),
        (20, ["fast"]),
        (30, ["slow", "fast"]),
        (40, ["fast"]),
        (50, ["fast"]),
        (60, ["slow", "fast"]),
    ]


def test_missed_ticks_are_skipped_counted_and_shift_nothing() -> None:
    schedule = Schedule({"a": 10}, start_ns=0)
    schedule.due(0)
    assert schedule.due(47) == (["a"], 3)
    assert schedule.next_ns() == 50


def test_a_late_tick_takes_what_became_due_meanwhile() -> None:
    schedule = Schedule({"a": 10, "b": 7}, start_ns=0)
    schedule.due(0)
    assert schedule.due(11) == (["a", "b"], 0)


@given(
    st.dictionaries(st.text(max_size=3), st.integers(1, 1000), min_size=1, max_size=5),
    st.integers(0, 1000),
    st.lists(st.integers(0, 5000), max_size=30),
)
def test_every_instant_of_every_grid_is_read_or_counted(
    intervals: dict[str, int], start: int, pauses: list[int]
) -> None:
    schedule = Schedule(intervals, start)
    now = reads = skips = 0
    for pause in [*pauses, 0]:
        now += pause
        names, skipped = schedule.due(now)
        assert len(set(names)) == len(names)
        reads, skips = reads + len(names), skips + skipped
        assert schedule.next_ns() > now
    grids = (max(0, (now - start) // interval + 1) for interval in intervals.values())
    assert reads + skips == (sum(grids) if now >= start else 0)


@given(st.text(), st.integers(1, 10**12))
def test_the_splay_is_within_one_interval_and_always_the_same(instance: str, interval: int) -> None:
    assert 0 <= splay_ns(instance, interval) < interval
    assert splay_ns(instance, interval) == splay_ns(instance, interval)


def test_hosts_are_spread_over_the_interval() -> None:
    tenths = {splay_ns(f"host-{number}", 1000) // 100 for number in range(200)}
    assert tenths == set(range(10))
