"""A notification: what a receiver is told of a group, and its forms for machines and people."""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict

MAX_LISTED = 50
"""Alerts that a text for people spells out; it says how many more there are."""

MAX_TITLE_CHARS = 200

Status = Literal["firing", "resolved"]


class Alert(BaseModel):
    """One alert as it was when the notification was decided."""

    model_config = ConfigDict(frozen=True)

    status: Status
    labels: dict[str, str]
    annotations: dict[str, str]
    starts_at: AwareDatetime
    ends_at: AwareDatetime | None = None
    generator_url: str = ""


class Notification(BaseModel):
    """Everything that a channel needs; `id` is the same however often it is sent."""

    model_config = ConfigDict(frozen=True)

    id: str
    receiver: str
    group_key: str
    group_labels: dict[str, str]
    reason: str
    at: AwareDatetime
    external_url: str = ""
    alerts: tuple[Alert, ...]

    @property
    def status(self) -> Status:
        return "firing" if any(alert.status == "firing" for alert in self.alerts) else "resolved"

    @cached_property
    def common_labels(self) -> dict[str, str]:
        return common([alert.labels for alert in self.alerts])

    def of_status(self, status: Status) -> list[Alert]:
        return [alert for alert in self.alerts if alert.status == status]


def in_order(alerts: Sequence[Alert]) -> tuple[Alert, ...]:
    """Alertmanager's order: by job, then instance (absent ones last), then all labels."""
    return tuple(sorted(alerts, key=_order))


def _order(alert: Alert) -> Any:
    labels = alert.labels
    return [
        *((name not in labels, labels.get(name, "")) for name in ("job", "instance")),
        sorted(labels.items()),
    ]


def common(pairs: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """What all of these have in common."""
    if not pairs:
        return {}
    first, *others = pairs
    return {k: v for k, v in first.items() if all(other.get(k) == v for other in others)}


def webhook_body(notification: Notification, max_alerts: int = 0) -> dict[str, Any]:
    """Alertmanager's webhook body, version 4, with keys in its order.

    Common labels and annotations are those of the alerts in the body, as there. Where `max_alerts`
    cuts some off, `status` still is that of all (Alertmanager's own is that of the rest).
    https://prometheus.io/docs/alerting/latest/configuration/#webhook_config
    """
    alerts = notification.alerts[:max_alerts] if max_alerts else notification.alerts
    return {
        "receiver": _quote_meta(notification.receiver),
        "status": notification.status,
        "alerts": [webhook_alert(alert) for alert in alerts],
        "groupLabels": notification.group_labels,
        "commonLabels": common([alert.labels for alert in alerts]),
        "commonAnnotations": common([alert.annotations for alert in alerts]),
        "externalURL": notification.external_url,
        "version": "4",
        "groupKey": notification.group_key,
        "truncatedAlerts": len(notification.alerts) - len(alerts),
    }


def webhook_alert(alert: Alert) -> dict[str, Any]:
    """One alert of a webhook body."""
    return {
        "status": alert.status,
        "labels": dict(sorted(alert.labels.items())),
        "annotations": dict(sorted(alert.annotations.items())),
        "startsAt": _go_time(alert.starts_at),
        "endsAt": _go_time(alert.ends_at) if alert.ends_at else "0001-01-01T00:00:00Z",
        "generatorURL": alert.generator_url,
        "fingerprint": prometheus_fingerprint(alert.labels),
    }


def _go_time(at: datetime) -> str:
    text = at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f").rstrip("0").rstrip(".")
    return f"{text}Z"


def _quote_meta(text: str) -> str:
    """Go's regexp.QuoteMeta: Alertmanager sends a receiver's name so."""
    return re.sub(r"([\\.+*?()|\[\]{}^$])", r"\\\1", text)


def prometheus_fingerprint(labels: Mapping[str, str]) -> str:
    """Prometheus' identity of a label set: FNV-1a, 64 bits, in hexadecimal."""
    value = 0xCBF29CE484222325
    for name, text in sorted(labels.items()):
        for byte in b"%s\xff%s\xff" % (name.encode(), text.encode()):
            value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"{value:016x}"


def title(notification: Notification) -> str:
    """One line: `[FIRING:2] Down web-1 (critical)`, as Alertmanager's subjects."""
    firing = len(notification.of_status("firing"))
    state = f"FIRING:{firing}" if firing else "RESOLVED"
    group = notification.group_labels
    rest = [v for k, v in sorted(notification.common_labels.items()) if k not in group]
    parts = [f"[{state}]", *(group[name] for name in _names_first(group))]
    text = one_line(" ".join([*parts, f"({' '.join(rest)})"] if rest else parts))
    return text if len(text) <= MAX_TITLE_CHARS else text[: MAX_TITLE_CHARS - 1] + "…"


def _names_first(labels: Mapping[str, str]) -> list[str]:
    return sorted(labels, key=lambda name: (name != "alertname", name))


def one_line(text: str) -> str:
    """The text without control characters and line breaks: fit for a header."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def listed(notification: Notification) -> tuple[list[Alert], int]:
    """The alerts that a text spells out, those that fire first, and how many more there are."""
    alerts = notification.of_status("firing") + notification.of_status("resolved")
    return alerts[:MAX_LISTED], max(0, len(alerts) - MAX_LISTED)


def describe(alert: Alert) -> str:
    """An alert in one line: what its rule says of it, or else its labels."""
    said = alert.annotations.get("summary") or alert.annotations.get("description")
    return one_line(said or " ".join(f"{k}={v}" for k, v in sorted(alert.labels.items())))


def body_text(notification: Notification) -> str:
    """A notification for people, as plain text."""
    shown, more = listed(notification)
    firing, resolved = (len(notification.of_status(s)) for s in ("firing", "resolved"))
    lines = [f"{firing} firing, {resolved} resolved ({notification.reason})", ""]
    for alert in shown:
        since = alert.ends_at or alert.starts_at
        lines.append(f"{alert.status}: {describe(alert)} (since {_go_time(since)})")
        extra = alert.annotations.get("description")
        if extra and alert.annotations.get("summary"):
            lines.append(f"    {one_line(extra)}")
    if more:
        lines.append(f"… and {more} more")
    if notification.external_url:
        lines += ["", notification.external_url]
    return "\n".join(lines) + "\n"
