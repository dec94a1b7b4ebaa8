"""What an evaluator remembers, who owns what, and when silence is looked for."""

import os
import socket
import subprocess
from collections.abc import Mapping

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engine.promql import Columns, parse
from engine.promql.blocks import cell_bits
from schemas.layouts import Series, encode_layout
from schemas.rules import RuleFile
from schemas.values import ABSENT, ABSENT_BITS, STALE, bits
from services.evaluator.membership import owner_of, partitions_of
from services.evaluator.memory import Memory, Ring, restored_row, track
from services.evaluator.rules import LoadedGroup, RuleSet, rule_set
from services.evaluator.service import is_predecessor
from services.evaluator.silence import Watch, Watches

SOURCE = {"job": "node", "instance": "web1"}


def rules(*expressions: str) -> RuleSet:
    written = [{"alert": f"A{n}", "expr": expr} for n, expr in enumerate(expressions)]
    file = RuleFile.model_validate({"groups": [{"name": "g", "rules": written}]})
    return rule_set([LoadedGroup("test", group) for group in file.groups])


cells = st.sampled_from([1.0, 2.0, ABSENT, STALE])


@given(
    st.integers(1, 50),
    st.lists(st.tuples(st.integers(1, 20), st.tuples(cells, cells)), max_size=60),
)
def test_a_ring_holds_the_rows_of_its_window(
    window_us: int, course: list[tuple[int, tuple[float, float]]]
) -> None:
    ring = Ring(Columns([{}, {}]), window_us, newest=False)
    kept: list[tuple[int, tuple[float, float]]] = []
    now = 0
    for pause, row in course:
        now += pause
        ring.append(now, np.array(row))
        kept = [one for one in [*kept, (now, row)] if one[0] > now - window_us]
        at, values = ring.rows()
        assert list(at) == [one[0] for one in kept]
        expected = np.array([one[1] for one in kept])
        assert (cell_bits(np.ascontiguousarray(values)) == cell_bits(expected)).all()
        assert ring.last_us == now


@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=30))
def test_a_ring_of_newest_samples_answers_as_the_whole_history_does(
    rows: list[tuple[float, float]],
) -> None:
    lookback_us = 300_000_000
    every = Ring(Columns([{"__name__": "x"}, {"__name__": "y"}]), lookback_us, newest=False)
    newest = Ring(every.columns, lookback_us, newest=True)
    query = parse('{__name__=~"x|y"}')
    answers: list[Mapping[str, float]] = []
    for n, row in enumerate(rows):
        at_us = n * 1_000_000
        for ring in (every, newest):
            ring.append(at_us, np.array(row))
        answers = [_answer(query, ring, at_us) for ring in (every, newest)]
        assert answers[0] == answers[1]
    assert len(newest) <= len(every)


def _answer(query, ring: Ring, at_us: int) -> dict[str, float]:  # type: ignore[no-untyped-def]
    memory = Memory()
    memory.add("node", _tracked(ring))
    vector = query.instant(at_us, memory)
    names = [labels["__name__"] for labels in vector.labels]
    return dict(zip(names, vector.values.tolist(), strict=True))


def _tracked(ring: Ring):  # type: ignore[no-untyped-def]
    made = track(rules("x + y"), "web1", SOURCE, encode_layout([Series("x"), Series("y")]))
    made.ring = ring
    return made


def test_only_the_columns_that_rules_select_are_remembered() -> None:
    ruleset = rules('cpu{mode="idle"} > 1', "rate(cpu[1m]) > 1", "disk > 1")
    layout = encode_layout([Series("cpu", {"mode": "idle"}), Series("net"), Series("cpu")])
    tracked = track(ruleset, "web1", SOURCE, layout)
    assert list(tracked.positions) == [0, 2]
    assert tracked.feeds == {0, 1}
    assert tracked.ring is not None
    assert (tracked.ring.window_us, tracked.ring.newest) == (300_000_000, False)
    assert tracked.ring.columns[1] == {"__name__": "cpu", **SOURCE}
    nothing = track(ruleset, "web1", SOURCE, encode_layout([Series("net")]))
    assert nothing.ring is None
    assert nothing.feeds == frozenset()


def test_a_saved_row_fits_another_selection_of_columns() -> None:
    values = np.array([1.0, 2.0, STALE]).tobytes()
    row = restored_row(np.array([2, 5, 7], dtype="<i4"), values, np.array([1, 5, 7]))
    assert bits(row[0]) == ABSENT_BITS
    assert row[1] == 2.0
    assert bits(row[2]) == bits(STALE)


def test_every_partition_has_one_owner_and_moves_only_when_it_must() -> None:
    evaluators = [f"host-{n}" for n in range(5)]
    owned = {one: partitions_of(one, evaluators, 64) for one in evaluators}
    assert sorted(p for parts in owned.values() for p in parts) == list(range(64))
    assert min(len(parts) for parts in owned.values()) > 4
    for number in range(64):
        before = owner_of(number, evaluators)
        after = owner_of(number, evaluators[1:])
        assert after == before or before == evaluators[0]


def test_a_killed_evaluator_of_this_host_is_not_waited_for() -> None:
    host, dead = socket.gethostname(), subprocess.Popen(["true"])
    dead.wait()
    assert is_predecessor(f"{host}-{dead.pid}-0a1b2c3d")
    assert is_predecessor(f"{host}-{os.getpid()}-0a1b2c3d")
    assert not is_predecessor(f"{host}-{os.getppid()}-0a1b2c3d")
    assert not is_predecessor(f"other-{host}-{dead.pid}-0a1b2c3d")
    assert not is_predecessor("unknown")


def test_watches_come_due_in_order_and_once() -> None:
    watches = Watches()
    for n, due_s in enumerate([30.0, 10.0, 20.0]):
        watches.add(Watch("web", str(n), 0), due_s)
        watches.add(Watch("web", str(n), 0), 0.0)
    assert watches.due(5.0) == []
    assert [one.job for one in watches.due(20.0)] == ["1", "2"]
    assert len(watches) == 1
    watches.add(Watch("web", "1", 0), 25.0)
    assert [one.job for one in watches.due(99.0)] == ["1", "0"]
