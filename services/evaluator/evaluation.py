"""Evaluating one instance's messages: pure, in event time, replay-safe.

`receive` takes a message into an instance's state and notes in `Changes` what must be saved for it.
A message that was received before, or is older than what was evaluated, changes no alert.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

import numpy as np

from engine.alerting import Alert, AlertError, AlertRule, Change, step, transition
from engine.promql import DEFAULT_LOOKBACK, Moment, QueryError, Vector
from engine.promql.blocks import Floats, Labels
from schemas.errors import Invalid
from schemas.samples import Frame, SampleMessage, present_labels
from schemas.transitions import AlertState, Transition
from services.evaluator.memory import Memory, Ring, Tracked, track
from services.evaluator.rules import RuleSet

TICK_US = 500_000
"""Instants of one message that are closer than this are one tick, evaluated once, at its end."""

MINUTE_US = 60_000_000
LOOKBACK_US = DEFAULT_LOOKBACK.seconds * 1_000_000


class Outcome(StrEnum):
    """What became of a message."""

    EVALUATED = "evaluated"
    LATE = "late"
    """It holds nothing that was still to be evaluated: kept for later evaluations, or too old."""
    AHEAD = "ahead"
    """All of it lies too far in the future: a wrong clock."""
    REPLAYED = "replayed"
    """It was received before, or its successors were."""


@dataclass(slots=True)
class Source:
    """How far one source has been evaluated. `heard_s`: monotonic, of its last message here."""

    labels: Mapping[str, str]
    epoch: str
    seq: int
    at_us: int
    heard_s: float = 0.0


@dataclass(slots=True)
class Instance:
    """What is known of one instance. Alerts are by index of their rule and by fingerprint."""

    name: str
    sources: dict[str, Source] = field(default_factory=dict)
    alerts: dict[int, dict[str, Alert]] = field(default_factory=dict)
    memory: Memory = field(default_factory=Memory)

    @property
    def evaluated_us(self) -> int:
        """The newest instant at which rules were evaluated."""
        return max((source.at_us for source in self.sources.values()), default=0)


class AlertKey(NamedTuple):
    """Identity of an alert in the database."""

    rule: str
    fingerprint: str


@dataclass(slots=True)
class Changes:
    """What one transaction saves."""

    alerts: dict[AlertKey, tuple[str, Alert | None]] = field(default_factory=dict)
    """By identity: the instance, and the alert as it is now, None where it is inactive."""
    transitions: list[Transition] = field(default_factory=list)
    sources: dict[tuple[str, str], Source] = field(default_factory=dict)
    """By instance and job."""
    layouts: dict[int, tuple[str, Tracked]] = field(default_factory=dict)
    frames: dict[tuple[int, int], bytes] = field(default_factory=dict)
    """Float64 values by key of the layout and instant in µs."""
    failures: list[tuple[str, str]] = field(default_factory=list)
    """(rule, reason) where an evaluation failed: its alerts stay as they were."""

    def __bool__(self) -> bool:
        return bool(self.alerts or self.sources or self.frames)


class _Row(NamedTuple):
    """One row of one frame, its selected columns."""

    at_us: int
    tracked: Tracked
    values: Floats | None


def receive(
    rules: RuleSet, instance: Instance, message: SampleMessage, changes: Changes, limit_us: int
) -> Outcome:
    """Take in a message. Samples after `limit_us` are left out.

    Raises Invalid with the reason, before anything has changed.
    """
    rows = _rows(rules, instance, message)
    job = message.source["job"]
    source = instance.sources.get(job)
    if source is not None and source.epoch == message.epoch and message.seq <= source.seq:
        return Outcome.REPLAYED
    rows = [row for row in rows if row.at_us <= limit_us]
    if not rows:
        return Outcome.AHEAD
    evaluated_us = instance.evaluated_us
    newest_us = rows[-1].at_us
    if source is None:
        source = instance.sources[job] = Source(message.source, message.epoch, message.seq, 0)
    if newest_us > source.at_us or message.epoch == source.epoch:
        source.epoch, source.seq = message.epoch, message.seq
    source.labels = message.source
    source.at_us = max(source.at_us, newest_us)
    changes.sources[instance.name, job] = source
    _recover(rules, instance, source, rows[0].at_us, changes)
    outcome = Outcome.LATE
    for tick in _ticks(rows):
        fed = _remember(instance, tick, changes)
        at_us = tick[-1].at_us
        if fed and evaluated_us - LOOKBACK_US < at_us <= evaluated_us:
            at_us = evaluated_us + 1  # a part that others of its instant overtook
        if at_us > evaluated_us:
            _evaluate(rules, instance, fed, at_us, evaluated_us, changes)
            source.at_us = evaluated_us = at_us
            outcome = Outcome.EVALUATED
    _tidy(rules, instance)
    return outcome


def _rows(rules: RuleSet, instance: Instance, message: SampleMessage) -> list[_Row]:
    """All rows of a message in the order of time. Raises Invalid."""
    rows = []
    for frame in message.frames:
        tracked = _tracked(rules, instance, message, frame)
        at = np.frombuffer(frame.at, "<i8")
        if len(frame.values) != 8 * len(at) * tracked.width:
            raise Invalid(
                f"frame {frame.collector}: values: {len(frame.values)} bytes; expected "
                f"{len(at)} rows of {tracked.width} float64"
            )
        if tracked.ring is None:
            rows += [_Row(one, tracked, None) for one in at.tolist()]
            continue
        values = np.frombuffer(frame.values, "<f8").reshape(len(at), tracked.width)
        chosen = values[:, tracked.positions]
        rows += [_Row(one, tracked, chosen[n]) for n, one in enumerate(at.tolist())]
    if len(rows) > 1:
        rows.sort(key=lambda row: row.at_us)
    if rows[0].at_us < 0:
        raise Invalid(f"at: {rows[0].at_us} µs is before 1970")
    return rows


def _tracked(rules: RuleSet, instance: Instance, message: SampleMessage, frame: Frame) -> Tracked:
    job = message.source["job"]
    known = instance.memory.tracked.get((job, frame.layout))
    if known is None or known.source != message.source:
        known = track(rules, instance.name, message.source, frame.layout)
        instance.memory.add(job, known)
    return known


def _ticks(rows: Sequence[_Row]) -> list[Sequence[_Row]]:
    """Rows in the order of time, cut where a tick ends."""
    if rows[-1].at_us - rows[0].at_us < TICK_US:
        return [rows]
    ticks, begin = [], 0
    for place in range(1, len(rows)):
        if rows[place].at_us - rows[place - 1].at_us >= TICK_US:
            ticks.append(rows[begin:place])
            begin = place
    return [*ticks, rows[begin:]]


def _remember(instance: Instance, rows: Sequence[_Row], changes: Changes) -> set[int]:
    """Put rows into the rings; indexes of the rules that they feed."""
    fed: set[int] = set()
    for at_us, tracked, values in rows:
        ring = tracked.ring
        if ring is not None and values is not None:
            last_us = ring.last_us
            if last_us == at_us and ring.fill(values):
                _save_row(ring, tracked, at_us, changes)
                fed |= tracked.feeds
            if last_us is not None and at_us <= last_us:
                continue
            if not tracked.saved or last_us is None or last_us <= at_us - ring.window_us:
                changes.layouts[tracked.key] = (instance.name, tracked)
            ring.append(at_us, values)
            _save_row(ring, tracked, at_us, changes)
            fed |= tracked.feeds
        tracked.last_us = max(tracked.last_us, at_us)
    return fed


def _save_row(ring: Ring, tracked: Tracked, at_us: int, changes: Changes) -> None:
    changes.frames[tracked.key, at_us] = ring.newest_row()[1].tobytes()


def _evaluate(
    rules: RuleSet,
    instance: Instance,
    fed: set[int],
    at_us: int,
    previous_us: int,
    changes: Changes,
) -> None:
    """Evaluate, at one instant, the rules whose result may have changed since the previous."""
    after_gap = at_us - previous_us > LOOKBACK_US
    moment = Moment(at_us, instance.memory, LOOKBACK_US)
    minute_began = at_us // MINUTE_US != previous_us // MINUTE_US
    for index in sorted(fed | instance.alerts.keys() | rules.reading_time):
        rule = rules.rules[index]
        if rule.query is None:
            continue
        known = instance.alerts.get(index, {})
        try:
            vector = moment.answer(rule.query)
            assert isinstance(vector, Vector)
            if not known and not len(vector.values):
                continue
            samples = zip(vector.labels, vector.values.tolist(), strict=True)
            after, changed = step(rule.alert, known, samples, at_us, after_gap=after_gap)
        except (QueryError, AlertError) as error:
            changes.failures.append((rule.alert.key, str(error)))
            continue
        _note(rules, instance, index, after, changed, changes)
        for fingerprint, alert in after.items():
            before = known.get(fingerprint)
            if before is not None and (minute_began or _differs(before, alert)):
                key = AlertKey(rule.alert.key, fingerprint)
                changes.alerts[key] = (instance.name, alert)


def _differs(before: Alert, after: Alert) -> bool:
    """Whether what later evaluations depend on has changed."""
    return (before.active_at_us, before.kept_since_us) != (after.active_at_us, after.kept_since_us)


def _note(
    rules: RuleSet,
    instance: Instance,
    index: int,
    after: dict[str, Alert],
    changed: Sequence[Change],
    changes: Changes,
) -> None:
    """Make `after` the rule's alerts, and note what changed."""
    rule = rules.rules[index].alert
    if after:
        instance.alerts[index] = after
    else:
        instance.alerts.pop(index, None)
    for change in changed:
        key = AlertKey(rule.key, change.fingerprint)
        changes.alerts[key] = (instance.name, after.get(change.fingerprint))
        changes.transitions.append(transition(rule, change))


def _of_source(alerts: Mapping[str, Alert], source: Source) -> dict[str, Alert]:
    job = source.labels["job"]
    return {key: alert for key, alert in alerts.items() if alert.labels.get("job", "") == job}


def fall_silent(
    rules: RuleSet, instance: Instance, source: Source, index: int, span_us: int, changes: Changes
) -> None:
    """A source has been silent for a span: the rule's alert fires, as of the end of that span."""
    rule = rules.rules[index].alert
    at_us = source.at_us + span_us
    known = instance.alerts.get(index, {})
    own = _of_source(known, source)
    sample: tuple[Labels, float] = (present_labels(source.labels), span_us / 1_000_000)
    after, changed = step(rule, own, [sample], at_us)
    others = {key: alert for key, alert in known.items() if key not in own}
    _note(rules, instance, index, others | after, changed, changes)


def _recover(
    rules: RuleSet, instance: Instance, source: Source, at_us: int, changes: Changes
) -> None:
    """A sample has come: the source is not silent any more."""
    for index in rules.no_data:
        known = instance.alerts.get(index)
        own = _of_source(known, source) if known else {}
        if known and own:
            fired_us = max(alert.fired_at_us or 0 for alert in own.values())
            _, changed = step(rules.rules[index].alert, own, [], max(at_us, fired_us))
            others = {key: alert for key, alert in known.items() if key not in own}
            _note(rules, instance, index, others, changed, changes)


def retire(
    rule_key: str, fingerprint: str, instance: Instance, alert: Alert, changes: Changes
) -> None:
    """An alert whose rule is gone ends: who was told that it fires is told that it has ended."""
    rule = AlertRule(rule_key, alert.labels.get("alertname", ""))
    at_us = max(instance.evaluated_us, alert.fired_at_us or alert.active_at_us)
    change = Change(fingerprint, alert.state, AlertState.INACTIVE, at_us, alert)
    changes.alerts[AlertKey(rule_key, fingerprint)] = (instance.name, None)
    changes.transitions.append(transition(rule, change))


def _tidy(rules: RuleSet, instance: Instance) -> None:
    """Forget layouts that are out of every rule's sight; seldom is there one."""
    memory = instance.memory
    if len(memory.tracked) > memory.tidy_at:
        memory.forget_before(instance.evaluated_us - max(rules.window_us, LOOKBACK_US))
        memory.tidy_at = 2 * len(memory.tracked) + 8
