"""Rules on arriving messages: in event time, once, whatever comes twice, late or ahead."""

import random
from collections.abc import Mapping, Sequence

import pytest

from schemas.errors import Invalid
from schemas.layouts import Series, encode_layout
from schemas.rules import RuleFile
from schemas.samples import Frame, SampleMessage, frame
from schemas.values import ABSENT, STALE
from services.evaluator.evaluation import (
    Changes,
    Instance,
    Outcome,
    fall_silent,
    receive,
    retire,
)
from services.evaluator.rules import LoadedGroup, RuleSet, rule_set

SECOND = 1_000_000
START = 1_700_000_000 * SECOND
NEVER = 1 << 62
SOURCE = {"job": "node", "instance": "web1"}


def rules(*documents: Mapping[str, object]) -> RuleSet:
    file = RuleFile.model_validate({"groups": [{"name": "g", "rules": list(documents)}]})
    return rule_set([LoadedGroup("test", group) for group in file.groups])


LOAD = rules({"alert": "Load", "expr": "load > 1", "for": "20s"})


def values(at_s: float, names: Mapping[str, float], collector: str = "c") -> Frame:
    layout = encode_layout([Series(name) for name in names])
    return frame(collector, layout, [START + int(at_s * SECOND)], [list(names.values())])


def message(
    seq: int, *frames: Frame, epoch: str = "e1", source: Mapping[str, str] = SOURCE
) -> SampleMessage:
    return SampleMessage(dict(source), epoch, seq, frames)


def told(changes: Changes) -> list[tuple[float, str, str]]:
    return [
        ((int(one.at.timestamp() * SECOND) - START) / SECOND, one.from_state, one.to_state)
        for one in changes.transitions
    ]


def run(
    ruleset: RuleSet, messages: Sequence[SampleMessage], instance: Instance | None = None
) -> list[tuple[float, str, str]]:
    changes = Changes()
    state = instance or Instance("web1")
    for one in messages:
        receive(ruleset, state, one, changes, NEVER)
    assert not changes.failures
    return told(changes)


def loads(*course: tuple[float, float]) -> list[SampleMessage]:
    return [message(seq, values(at, {"load": load})) for seq, (at, load) in enumerate(course)]


FIRED = [(0.0, "inactive", "pending"), (20.0, "pending", "firing")]
COURSE = loads((0, 2), (10, 2), (20, 2), (30, 2), (40, 0))
ENDED = [*FIRED, (40.0, "firing", "inactive")]


def test_a_rule_is_evaluated_as_of_the_samples_instant() -> None:
    assert run(LOAD, COURSE) == ENDED


def test_a_message_that_comes_again_changes_nothing() -> None:
    for copies in (1, 2, 3):
        assert run(LOAD, [one for one in COURSE for _ in range(copies)]) == ENDED
    assert run(LOAD, COURSE + COURSE) == ENDED


def test_a_message_that_its_successors_overtook_changes_nothing() -> None:
    state, changes = Instance("web1"), Changes()
    for one in COURSE[:4]:
        receive(LOAD, state, one, changes, NEVER)
    before = told(changes)
    late = message(1, values(15, {"load": 0}))
    assert receive(LOAD, state, late, changes, NEVER) is Outcome.REPLAYED
    other = message(0, values(15, {"load": 0}), epoch="e2")
    assert receive(LOAD, state, other, changes, NEVER) is Outcome.LATE
    assert told(changes) == before


def test_an_older_epoch_does_not_take_the_place_of_a_newer() -> None:
    state, changes = Instance("web1"), Changes()
    receive(LOAD, state, message(5, values(10, {"load": 0}), epoch="new"), changes, NEVER)
    receive(LOAD, state, message(9, values(0, {"load": 0}), epoch="old"), changes, NEVER)
    again = message(5, values(10, {"load": 0}), epoch="new")
    assert receive(LOAD, state, again, changes, NEVER) is Outcome.REPLAYED


def test_samples_from_the_far_future_are_left_out() -> None:
    state, changes = Instance("web1"), Changes()
    one = message(0, values(1000, {"load": 9}))
    assert receive(LOAD, state, one, changes, START + 60 * SECOND) is Outcome.AHEAD
    assert not changes
    assert state.sources == {}


def test_several_instants_in_one_message_are_evaluated_in_order() -> None:
    layout = encode_layout([Series("load")])
    at = [START + second * SECOND for second in (40, 0, 10, 20, 30)]
    packed = message(0, frame("c", layout, at, [[0], [2], [2], [2], [2]]))
    assert run(LOAD, [packed]) == ENDED


def test_frames_of_one_tick_are_evaluated_together() -> None:
    ratio = rules({"alert": "Full", "expr": "used / size > 0.5"})
    tick = message(0, values(10.0, {"used": 9}, "a"), values(10.2, {"size": 10}, "b"))
    assert run(ratio, [tick]) == [(10.2, "inactive", "firing")]


def test_series_of_slower_collectors_are_still_in_force() -> None:
    ratio = rules({"alert": "Full", "expr": "used / size > 0.5"})
    ticks = [
        message(0, values(0, {"size": 10}, "slow"), values(0, {"used": 1}, "fast")),
        message(1, values(10, {"used": 9}, "fast")),
        message(2, values(400, {"used": 9}, "fast")),
    ]
    assert run(ratio, ticks) == [(10.0, "inactive", "firing"), (400.0, "firing", "inactive")]


def test_an_active_alert_is_evaluated_though_its_series_did_not_come() -> None:
    course = [
        message(0, values(0, {"load": 2})),
        *[message(n, values(n * 100.0, {"other": 1})) for n in range(1, 4)],
    ]
    assert run(LOAD, course) == [
        (0.0, "inactive", "pending"),
        (100.0, "pending", "firing"),
        (300.0, "firing", "inactive"),
    ]


def test_a_pending_alert_waits_anew_after_a_gap() -> None:
    assert run(LOAD, loads((0, 2), (1000, 2), (1020, 2))) == [
        (0.0, "inactive", "pending"),
        (1020.0, "pending", "firing"),
    ]


def test_a_stale_marker_ends_an_alert_and_an_absent_cell_does_not() -> None:
    fires = rules({"alert": "Load", "expr": "load > 1"})
    assert run(fires, loads((0, 2), (10, ABSENT), (20, STALE))) == [
        (0.0, "inactive", "firing"),
        (20.0, "firing", "inactive"),
    ]


def test_rates_look_back_over_a_change_of_layout() -> None:
    busy = rules({"alert": "Busy", "expr": "rate(ops[1m]) > 1"})
    course = [
        message(0, values(0, {"ops": 0})),
        message(1, values(15, {"ops": 15})),
        message(2, values(30, {"other": 1, "ops": 90})),
        message(3, values(45, {"other": 1, "ops": 165})),
    ]
    assert run(busy, course) == [(30.0, "inactive", "firing")]


def test_two_sources_of_one_instance_are_seen_together() -> None:
    total = rules({"alert": "Sum", "expr": "sum by (instance) (x) > 10"})
    one = message(0, values(0, {"x": 6}), source={"job": "a", "instance": "web1"})
    other = message(0, values(1, {"x": 6}), source={"job": "b", "instance": "web1"})
    assert run(total, [one, other]) == [(1.0, "inactive", "firing")]


def test_values_that_do_not_fit_the_layout_are_invalid_and_change_nothing() -> None:
    state, changes = Instance("web1"), Changes()
    good = values(0, {"load": 2})
    bad = Frame("c", encode_layout([Series("a"), Series("b")]), good.at, good.values)
    with pytest.raises(Invalid, match="expected 1 rows of 2"):
        receive(LOAD, state, message(0, good, bad), changes, NEVER)
    with pytest.raises(Invalid, match="before 1970"):
        receive(LOAD, state, message(0, frame("c", good.layout, [-1], [[1]])), changes, NEVER)
    assert not changes
    assert state.sources == {}


def test_a_failing_rule_leaves_its_alerts_and_the_others_alone() -> None:
    both = rules(
        {"alert": "Bad", "expr": "a * on (instance) b > 1"}, {"alert": "Load", "expr": "load > 1"}
    )
    layout = encode_layout([Series("a"), Series("b", {"n": "1"}), Series("b", {"n": "2"})])
    state, changes = Instance("web1"), Changes()
    bad = frame("c", layout, [START], [[1, 2, 3]])
    receive(both, state, message(0, bad, values(0, {"load": 2})), changes, NEVER)
    assert [one.alertname for one in changes.transitions] == ["Load"]
    ((rule, reason),) = changes.failures
    assert rule == "g/Bad"
    assert "many-to-many" in reason


SILENT = rules({"alert": "Silent", "no_data": "1m", "labels": {"severity": "page"}})


def test_a_silent_source_fires_and_its_next_sample_ends_it() -> None:
    state, changes = Instance("web1"), Changes()
    receive(SILENT, state, message(0, values(0, {"x": 1})), changes, NEVER)
    fall_silent(SILENT, state, state.sources["node"], 0, 60 * SECOND, changes)
    receive(SILENT, state, message(1, values(90, {"x": 1})), changes, NEVER)
    assert told(changes) == [(60.0, "inactive", "firing"), (90.0, "firing", "inactive")]
    fired = changes.transitions[0]
    assert fired.labels == {**SOURCE, "alertname": "Silent", "severity": "page"}
    assert fired.value == 60.0


def test_a_replaying_source_is_not_silent_and_time_does_not_go_backwards() -> None:
    state, changes = Instance("web1"), Changes()
    receive(SILENT, state, message(0, values(0, {"x": 1})), changes, NEVER)
    fall_silent(SILENT, state, state.sources["node"], 0, 60 * SECOND, changes)
    receive(SILENT, state, message(1, values(5, {"x": 1})), changes, NEVER)
    assert told(changes) == [(60.0, "inactive", "firing"), (60.0, "firing", "inactive")]


def test_silence_of_one_source_is_not_ended_by_another() -> None:
    state, changes = Instance("web1"), Changes()
    other = {"job": "other", "instance": "web1"}
    receive(SILENT, state, message(0, values(0, {"x": 1})), changes, NEVER)
    receive(SILENT, state, message(0, values(0, {"y": 1}), source=other), changes, NEVER)
    for job in ("node", "other"):
        fall_silent(SILENT, state, state.sources[job], 0, 60 * SECOND, changes)
    receive(SILENT, state, message(1, values(70, {"y": 1}), source=other), changes, NEVER)
    assert [one.labels["job"] for one in changes.transitions] == ["node", "other", "other"]
    assert [alert.labels["job"] for alert in state.alerts[0].values()] == ["node"]


def test_an_alert_whose_rule_is_gone_ends() -> None:
    state, changes = Instance("web1"), Changes()
    receive(
        rules({"alert": "A", "expr": "x > 0"}),
        state,
        message(0, values(0, {"x": 1})),
        changes,
        NEVER,
    )
    ((fingerprint, alert),) = state.alerts.pop(0).items()
    retire("g/A", fingerprint, state, alert, changes)
    assert told(changes)[-1] == (0.0, "firing", "inactive")
    assert changes.transitions[-1].fingerprint == fingerprint


def test_memory_stays_bounded_when_layouts_change_all_the_time() -> None:
    state, changes = Instance("web1"), Changes()
    for n in range(2000):
        receive(LOAD, state, message(n, values(n * 10.0, {"load": 0, f"x{n}": 1})), changes, NEVER)
    assert len(state.memory.tracked) < 100
    assert sum(len(one.ring) for one in state.memory.tracked.values() if one.ring) < 100


def test_recent_messages_that_come_again_at_random_change_nothing() -> None:
    rng = random.Random(5)
    course = loads(*[(n * 10, rng.choice([0, 2, 2, 2])) for n in range(200)])
    plain = run(LOAD, course)
    repeated = []
    for n, one in enumerate(course):
        repeated.append(one)
        repeated += [course[rng.randrange(max(0, n - 5), n + 1)] for _ in range(rng.randrange(3))]
    assert run(LOAD, repeated) == plain
