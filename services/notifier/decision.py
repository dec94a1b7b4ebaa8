"""What a channel is told of a group, and why: pure decisions, without I/O.

The sense is Alertmanager's: the first notification, then at each flush what changed, then a repeat.
One thing is stricter: a channel hears that an alert is resolved if, and only if, it heard, or may
have heard, that it fired.
"""

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

AlertId = int


class Reason(StrEnum):
    """Why a channel is told something, or why not: the words of the ledger."""

    FIRST = "first notification"
    NEW_ALERTS = "new alerts added"
    SOME_RESOLVED = "some alerts resolved"
    ALL_RESOLVED = "all alerts resolved"
    REPEAT = "repeat interval elapsed"
    UNCHANGED = "nothing changed"
    NEVER_TOLD = "resolved before it was told"
    BUSY = "the last notification is being sent"

    @property
    def tells(self) -> bool:
        """Whether a notification follows."""
        return self not in (Reason.UNCHANGED, Reason.NEVER_TOLD, Reason.BUSY)


@dataclass(frozen=True)
class Told:
    """What one channel knows of one group."""

    firing: frozenset[AlertId] = frozenset()
    """Alerts that it was told are firing, and nothing since."""
    doubtful: frozenset[AlertId] = frozenset()
    """Alerts of notifications that were given up with an unknown outcome: it may know of them."""
    sends: int = 0
    """Notifications that succeeded; part of the next one's id, so that a repeat has another."""
    at: datetime | None = None
    """When the last one succeeded."""

    @property
    def believed(self) -> frozenset[AlertId]:
        """Alerts that have to be told resolved once they are."""
        return self.firing | self.doubtful

    def without(self, alerts: Collection[AlertId]) -> "Told":
        gone = frozenset(alerts)
        return replace(self, firing=self.firing - gone, doubtful=self.doubtful - gone)


def decide(
    told: Told,
    firing: frozenset[AlertId],
    resolved: frozenset[AlertId],
    *,
    repeat_interval: timedelta | None,
    now: datetime,
) -> Reason:
    """Why to notify a channel that was `told` this, or why not.

    firing, resolved: the group's alerts as they are now. repeat_interval: None never repeats.
    """
    if not firing <= told.firing:
        return Reason.NEW_ALERTS if told.firing else Reason.FIRST
    if told.believed & resolved:
        return Reason.SOME_RESOLVED if firing else Reason.ALL_RESOLVED
    if not firing:
        return Reason.NEVER_TOLD
    if repeat_interval and told.at and told.at + repeat_interval <= now:
        return Reason.REPEAT
    return Reason.UNCHANGED


@dataclass(frozen=True)
class GroupAlert:
    """An alert of a group, as decisions see it."""

    id: AlertId
    firing: bool
    at: datetime
    """Event time of its last change: an alert that resolved and fired again is news."""


@dataclass(frozen=True)
class Pending:
    """A notification that is decided and not sent yet."""

    id: str
    digest: str
    firing: frozenset[AlertId]
    attempts: int = 0
    doubtful: bool = False
    """An attempt may have reached the receiver."""
    leased: bool = False
    """Some notifier is sending it right now."""


@dataclass(frozen=True)
class Content:
    """The alerts that a notification holds."""

    firing: frozenset[AlertId]
    resolved: frozenset[AlertId]
    digest: str


@dataclass(frozen=True)
class Plan:
    """What to do about one channel of a group."""

    reason: Reason
    told: Told
    content: Content | None = None
    """Tell this. None: tell nothing, or go on with what is pending."""
    superseded: bool = False
    """What is pending is no longer true, or is told better by `content`."""


def plan(
    told: Told,
    pending: Pending | None,
    alerts: Sequence[GroupAlert],
    *,
    send_resolved: bool,
    repeat_interval: timedelta | None,
    retired: bool,
    now: datetime,
) -> Plan:
    """What a channel is told at a flush of its group.

    A notification that could not be sent yet is replaced by what is true now: a receiver that was
    away hears neither a stale "firing" nor the "resolved" of what it never heard of, unless an
    attempt may have reached it. retired: no route leads here any more, so only ends are told.
    """
    if pending and pending.leased:
        return Plan(Reason.BUSY, told)
    known = told
    if pending and pending.doubtful:
        known = replace(told, doubtful=told.doubtful | pending.firing)
    firing = frozenset(alert.id for alert in alerts if alert.firing)
    resolved = frozenset(alert.id for alert in alerts if not alert.firing)
    if retired:
        firing &= known.firing
    if not send_resolved:
        known = known.without(resolved)
    reason = decide(
        known, firing, resolved, repeat_interval=None if retired else repeat_interval, now=now
    )
    if not reason.tells:
        return Plan(reason, known, superseded=pending is not None)
    ended = resolved & known.believed
    told_of = firing | ended
    content = Content(firing, ended, digest_of(a for a in alerts if a.id in told_of))
    if pending and pending.digest == content.digest:
        return Plan(reason, told)
    return Plan(reason, known, content, superseded=pending is not None)


def after_success(
    told: Told, firing: Iterable[AlertId], resolved: Iterable[AlertId], now: datetime
) -> Told:
    """What a channel knows once it took a notification of these alerts."""
    held = frozenset(firing)
    return Told(held, told.doubtful - held - frozenset(resolved), told.sends + 1, now)


def after_failure(told: Told, firing: Iterable[AlertId], *, doubtful: bool) -> Told:
    """What it may know once a notification was given up."""
    return replace(told, doubtful=told.doubtful | frozenset(firing)) if doubtful else told


def digest_of(alerts: Iterable[GroupAlert]) -> str:
    """Identity of what a notification says: which alerts, in which state, since when."""
    lines = sorted(f"{a.id} {a.firing} {a.at.timestamp():.6f}" for a in alerts)
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()


def notification_id(group: bytes, target: str, sends: int, digest: str) -> str:
    """The stable id of a notification: the same however often it is decided or sent."""
    text = f"{group.hex()}\n{target}\n{sends}\n{digest}"
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
