"""The alert state machine: cases, and a naive model that it must agree with."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.alerting import Alert, AlertError, AlertRule, Change, step, transition
from engine.templates import parse_template
from schemas.transitions import AlertState

SECOND = 1_000_000
CPU = {"__name__": "cpu", "instance": "web1"}


def rule(*, hold_s: int = 0, keep_s: int = 0, **labels: str) -> AlertRule:
    templates = tuple((name, parse_template(text)) for name, text in labels.items())
    summary = (("summary", parse_template("{{ $labels.instance }} at {{ $value }}")),)
    return AlertRule(
        "host/Busy", "Busy", "cpu > 1", hold_s * SECOND, keep_s * SECOND, templates, summary
    )


def run(
    alerting: AlertRule, course: Mapping[int, float | None], gaps: frozenset[int] = frozenset()
) -> list[tuple[int, str]]:
    """Steps through {second: value or None}; (second, "from-to") of what changed."""
    active: dict[str, Alert] = {}
    told = []
    for second, value in course.items():
        samples = [] if value is None else [(CPU, value)]
        active, changes = step(alerting, active, samples, second * SECOND, after_gap=second in gaps)
        told += [(second, f"{one.from_state}-{one.to_state}") for one in changes]
    return told


def test_without_for_an_alert_fires_at_once_and_ends_when_the_condition_does() -> None:
    assert run(rule(), {0: 2, 10: 3, 20: None}) == [(0, "inactive-firing"), (20, "firing-inactive")]


def test_for_is_waited_out_from_the_first_sample() -> None:
    course = {0: 2.0, 10: 2.0, 19: 2.0, 20: 2.0, 30: None}
    assert run(rule(hold_s=20), course) == [
        (0, "inactive-pending"),
        (20, "pending-firing"),
        (30, "firing-inactive"),
    ]


def test_a_pending_alert_whose_condition_breaks_begins_anew() -> None:
    course = {0: 2.0, 10: None, 15: 2.0, 30: 2.0, 35: 2.0}
    assert run(rule(hold_s=20), course) == [
        (0, "inactive-pending"),
        (10, "pending-inactive"),
        (15, "inactive-pending"),
        (35, "pending-firing"),
    ]


def test_keep_firing_for_bridges_a_short_relief() -> None:
    course = {0: 2.0, 10: None, 19: None, 25: 2.0, 30: None, 39: None, 40: None}
    assert run(rule(keep_s=10), course) == [(0, "inactive-firing"), (40, "firing-inactive")]


def test_silence_does_not_count_towards_for() -> None:
    course = {0: 2.0, 1000: 2.0, 1020: 2.0}
    assert run(rule(hold_s=20), course, frozenset({1000})) == [
        (0, "inactive-pending"),
        (1020, "pending-firing"),
    ]


def test_a_firing_alert_outlives_a_gap() -> None:
    assert run(rule(), {0: 2.0, 1000: 2.0}, frozenset({1000})) == [(0, "inactive-firing")]


def test_labels_are_the_series_own_and_the_rules_and_empty_ones_are_none() -> None:
    alerting = rule(severity="{{ if_not_here }}".replace("{{ if_not_here }}", "page"), empty="")
    active, changes = step(alerting, {}, [(CPU, 2.5)], 0)
    (alert,) = active.values()
    assert alert.labels == {"alertname": "Busy", "instance": "web1", "severity": "page"}
    assert alert.annotations == {"summary": "web1 at 2.5"}
    assert list(active) == [changes[0].fingerprint]


def test_two_alerts_of_equal_labels_are_an_error() -> None:
    with pytest.raises(AlertError, match="two alerts of rule host/Busy"):
        step(rule(), {}, [(CPU, 2), ({**CPU, "__name__": "other"}, 3)], 0)


def test_the_same_change_makes_the_same_transition() -> None:
    active, changes = step(rule(severity="page"), {}, [(CPU, 2.5)], 7 * SECOND)
    one, other = (transition(rule(severity="page"), changes[0]) for _ in range(2))
    assert one == other
    assert (one.rule, one.severity, one.value) == ("host/Busy", "page", 2.5)
    assert one.at.timestamp() == 7
    assert one.active_at == one.at
    (key,) = active
    _, ended = step(rule(severity="page"), active, [], 9 * SECOND)
    resolved = transition(rule(severity="page"), ended[0])
    assert (resolved.fingerprint, resolved.active_at) == (key, None)
    assert resolved.id != one.id
    assert resolved.annotations == one.annotations


class NaiveAlert:
    """The state machine in words: remembers since when its condition holds or does not."""

    def __init__(self, hold: int, keep: int) -> None:
        self.hold, self.keep = hold, keep
        self.state = AlertState.INACTIVE
        self.since = self.relief = None

    def see(self, now: int, holds: bool) -> AlertState:
        if holds:
            self.relief = None
            if self.state is AlertState.INACTIVE:
                self.state, self.since = AlertState.PENDING, now
            if self.state is AlertState.PENDING and now - self.since >= self.hold:
                self.state = AlertState.FIRING
        elif self.state is AlertState.PENDING:
            self.state = AlertState.INACTIVE
        elif self.state is AlertState.FIRING:
            self.relief = now if self.relief is None else self.relief
            if now - self.relief >= self.keep:
                self.state, self.relief = AlertState.INACTIVE, None
        return self.state


@given(
    st.integers(0, 60),
    st.integers(0, 60),
    st.lists(st.tuples(st.integers(1, 40), st.frozensets(st.sampled_from("abc"))), max_size=40),
)
def test_the_state_machine_agrees_with_a_naive_model(
    hold: int, keep: int, course: list[tuple[int, frozenset[str]]]
) -> None:
    alerting = rule(hold_s=hold, keep_s=keep)
    models = {host: NaiveAlert(hold, keep) for host in "abc"}
    active: dict[str, Alert] = {}
    now = 0
    for pause, holding in course:
        now += pause
        before = {host: model.state for host, model in models.items()}
        samples = [({"instance": host}, 1.0) for host in sorted(holding)]
        active, changes = step(alerting, active, samples, now * SECOND)
        expected = {
            (host, before[host], model.see(now, host in holding)) for host, model in models.items()
        }
        assert {_told(one) for one in changes} == {one for one in expected if one[1] != one[2]}
        assert {alert.labels["instance"] for alert in active.values()} == {
            host for host, model in models.items() if model.state is not AlertState.INACTIVE
        }


def _told(change: Change) -> tuple[str, AlertState, AlertState]:
    return change.alert.labels["instance"], change.from_state, change.to_state
