"""Rules on samples that were written from elsewhere: one instant in parts, labels left out."""

import random
from itertools import permutations

import pytest

from schemas.layouts import Series, encode_layout
from schemas.samples import SampleMessage, frame
from schemas.values import ABSENT
from services.evaluator.evaluation import Changes, Instance, Outcome, fall_silent, receive
from services.evaluator.rules import RuleSet
from tests.unit.test_rules_evaluation import NEVER, SECOND, START, message, rules, told

FULL = {"alert": "Full", "expr": "used / size > 0.5"}
LAYOUT = encode_layout([Series("used"), Series("size")])


def part(seq: int, at_s: float, used: float, size: float, epoch: str = "remote1") -> SampleMessage:
    instant = START + int(at_s * SECOND)
    return message(seq, frame("remote_write", LAYOUT, [instant], [[used, size]]), epoch=epoch)


def apart(seq: int, at_s: float, name: str, value: float) -> SampleMessage:
    layout = encode_layout([Series(name)])
    return message(
        seq, frame("remote_write", layout, [START + int(at_s * SECOND)], [[value]]), epoch="remote1"
    )


def states(ruleset: RuleSet, instance: Instance) -> list[str]:
    return [alert.state for alert in instance.alerts.get(0, {}).values()]


@pytest.mark.parametrize("order", list(permutations(range(2))))
def test_parts_of_one_frame_are_evaluated_together_in_any_order(order: tuple[int, ...]) -> None:
    parts = [(9.0, ABSENT), (ABSENT, 10.0)]
    state, changes = Instance("web1"), Changes()
    outcomes = [
        receive(rules(FULL), state, part(seq, 0, *parts[which]), changes, NEVER)
        for seq, which in enumerate(order)
    ]
    assert outcomes == [Outcome.EVALUATED, Outcome.EVALUATED]
    assert states(rules(FULL), state) == ["firing"]


@pytest.mark.parametrize("order", list(permutations(range(2))))
def test_layouts_of_one_instant_that_come_one_by_one_are_evaluated(order: tuple[int, ...]) -> None:
    parts = [("used", 9.0), ("size", 10.0)]
    state, changes = Instance("web1"), Changes()
    for seq, which in enumerate(order):
        receive(rules(FULL), state, apart(seq, 0, *parts[which]), changes, NEVER)
    assert states(rules(FULL), state) == ["firing"]


def test_a_part_that_a_later_instant_overtook_is_evaluated_by_then() -> None:
    state, changes = Instance("web1"), Changes()
    receive(rules(FULL), state, apart(0, 15, "size", 10), changes, NEVER)
    receive(rules(FULL), state, apart(1, 0, "used", 9), changes, NEVER)
    assert states(rules(FULL), state) == ["firing"]


def test_transitions_of_parts_have_instants_that_grow() -> None:
    """Whoever is told of them keeps the newest by its instant."""
    state, changes = Instance("web1"), Changes()
    receive(rules(FULL), state, part(0, 0, 9, 10), changes, NEVER)
    receive(rules(FULL), state, part(1, 15, 20, ABSENT), changes, NEVER)
    receive(rules(FULL), state, part(2, 15, ABSENT, 100), changes, NEVER)
    assert [to for _, _, to in told(changes)] == ["firing", "inactive"]
    first, second = (one.at for one in changes.transitions)
    assert first < second


def test_a_part_that_comes_again_changes_nothing_whoever_sends_it() -> None:
    random_order = random.Random(7)
    parts = [part(0, 0, 9, ABSENT), part(1, 0, ABSENT, 10)]
    state, changes = Instance("web1"), Changes()
    for one in parts:
        receive(rules(FULL), state, one, changes, NEVER)
    before, rows = told(changes), dict(changes.frames)
    for _ in range(20):
        again = random_order.choice([(9.0, ABSENT), (ABSENT, 10.0)])
        epoch = random_order.choice(["remote1", "remote2", "remote3"])
        receive(rules(FULL), state, part(2, 0, *again, epoch=epoch), changes, NEVER)
    assert (told(changes), changes.frames) == (before, rows)


def test_what_is_saved_of_an_instant_is_all_its_parts() -> None:
    state, changes = Instance("web1"), Changes()
    receive(rules(FULL), state, part(0, 0, 9, ABSENT), changes, NEVER)
    receive(rules(FULL), state, part(1, 0, ABSENT, 10), changes, NEVER)
    (row,) = changes.frames.values()
    assert frame("", b"", [], [[9, 10]]).values == row


def test_labels_that_a_source_lacks_are_in_no_alert() -> None:
    both = rules(FULL, {"alert": "Silent", "no_data": "30s"})
    state, changes = Instance(""), Changes()
    source = {"job": "", "instance": ""}
    one = message(0, frame("c", LAYOUT, [START], [[9, 10]]), source=source)
    receive(both, state, one, changes, NEVER)
    fall_silent(both, state, state.sources[""], 1, 30 * SECOND, changes)
    assert [dict(t.labels) for t in changes.transitions] == [
        {"alertname": "Full"},
        {"alertname": "Silent"},
    ]
    again = message(1, frame("c", LAYOUT, [START + SECOND], [[9, 10]]), source=source)
    receive(both, state, again, changes, NEVER)
    assert told(changes)[-1][2] == "inactive"
