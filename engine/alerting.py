"""The alert state machine, as a pure function of (rule, alerts, samples, now).

inactive -> pending -> firing -> inactive, with `for` and `keep_firing_for` as in Prometheus
(rules/alerting.go, AlertingRule.Eval). All instants are event time, int64 µs; an inactive alert
is one that does not stand among the active ones.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from engine.promql.blocks import NAME
from engine.templates import Template
from schemas.transitions import AlertState, Transition, fingerprint, transition_id

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class AlertError(ValueError):
    """The rule gave two alerts of the same labels; its alerts stay as they were."""


@dataclass(frozen=True, slots=True)
class AlertRule:
    """What the state machine needs of a rule. `key` is `<group>/<alertname>`."""

    key: str
    name: str
    expr: str = ""
    hold_us: int = 0
    keep_firing_us: int = 0
    labels: tuple[tuple[str, Template], ...] = ()
    annotations: tuple[tuple[str, Template], ...] = ()


@dataclass(frozen=True, slots=True)
class Alert:
    """An active alert.

    active_at_us: since when the condition has held. kept_since_us: since when it no longer holds,
    while keep_firing_for keeps the alert firing.
    """

    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    state: AlertState
    active_at_us: int
    value: float
    fired_at_us: int | None = None
    kept_since_us: int | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """One alert went to `to_state` at `at_us`; `alert` is how it stands then, or last stood."""

    fingerprint: str
    from_state: AlertState
    to_state: AlertState
    at_us: int
    alert: Alert


Active = Mapping[str, Alert]
"""The alerts of a rule that are pending or firing, by fingerprint."""


def step(
    rule: AlertRule,
    active: Active,
    samples: Iterable[tuple[Mapping[str, str], float]],
    now_us: int,
    *,
    after_gap: bool = False,
) -> tuple[dict[str, Alert], list[Change]]:
    """The alerts after one evaluation, and what changed, in the order of fingerprints.

    samples: what the rule's expression gave. now_us must be later than at the last step.
    after_gap: nothing was known for so long that a condition can't be said to have held since;
    a pending alert waits for its whole `for` again. Raises AlertError; `active` still holds then.
    """
    found = _alerts_of(rule, samples, now_us)
    after: dict[str, Alert] = {}
    changes: list[Change] = []
    for key in sorted({*active, *found}):
        known, seen = active.get(key), found.get(key)
        alert = _present(rule, known, seen, now_us, after_gap) if seen else None
        if alert is None and known is not None:
            alert = _missing(rule, known, now_us)
        before = known.state if known else AlertState.INACTIVE
        state = alert.state if alert else AlertState.INACTIVE
        if alert is not None:
            after[key] = alert
        if state is not before:
            last = alert or known
            assert last is not None
            changes.append(Change(key, before, state, now_us, last))
    return after, changes


def _alerts_of(
    rule: AlertRule, samples: Iterable[tuple[Mapping[str, str], float]], now_us: int
) -> dict[str, Alert]:
    """What each sample would be as an alert that begins now."""
    found: dict[str, Alert] = {}
    for series, value in samples:
        labels = {name: text for name, text in series.items() if name != NAME}
        labels |= {name: template.render(series, value) for name, template in rule.labels}
        labels["alertname"] = rule.name
        labels = {name: text for name, text in labels.items() if text}
        key = fingerprint(labels)
        if key in found:
            raise AlertError(f"two alerts of rule {rule.key} have the labels {labels}")
        annotations = {name: text.render(series, value) for name, text in rule.annotations}
        found[key] = Alert(labels, annotations, AlertState.PENDING, now_us, value)
    return found


def _present(
    rule: AlertRule, known: Alert | None, seen: Alert, now_us: int, after_gap: bool
) -> Alert:
    """The condition holds."""
    alert = seen
    if known is not None:
        alert = replace(known, value=seen.value, annotations=seen.annotations, kept_since_us=None)
        if after_gap and known.state is AlertState.PENDING:
            alert = replace(alert, active_at_us=now_us)
    if alert.state is AlertState.PENDING and now_us - alert.active_at_us >= rule.hold_us:
        alert = replace(alert, state=AlertState.FIRING, fired_at_us=now_us)
    return alert


def _missing(rule: AlertRule, known: Alert, now_us: int) -> Alert | None:
    """The condition does not hold: the alert ends, unless it is kept firing."""
    if known.state is AlertState.PENDING or not rule.keep_firing_us:
        return None
    since = now_us if known.kept_since_us is None else known.kept_since_us
    return replace(known, kept_since_us=since) if now_us - since < rule.keep_firing_us else None


def transition(rule: AlertRule, change: Change) -> Transition:
    """The change as it is told to others. The same change makes the same transition and id."""
    at = _instant(change.at_us)
    ended = change.to_state is AlertState.INACTIVE
    alert = change.alert
    return Transition(
        id=transition_id(rule.key, change.fingerprint, change.to_state, at),
        rule=rule.key,
        alertname=alert.labels.get("alertname", rule.name),
        fingerprint=change.fingerprint,
        severity=alert.labels.get("severity", ""),
        from_state=change.from_state,
        to_state=change.to_state,
        at=at,
        active_at=None if ended else _instant(alert.active_at_us),
        value=alert.value,
        labels=dict(alert.labels),
        annotations=dict(alert.annotations),
        expr=rule.expr,
    )


def _instant(at_us: int) -> datetime:
    return _EPOCH + timedelta(microseconds=at_us)
