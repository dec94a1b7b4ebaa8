"""Transitions: an alert's changes of state, as the evaluator publishes them on `vervet.alerts`."""

import hashlib
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from schemas.bodies import Instant, Text, decode_body
from schemas.layouts import series_hash
from schemas.topology import alert_key

TRANSITION_JSON = "application/vnd.vervet.transition+json"


class AlertState(StrEnum):
    """Prometheus' three states of an alert."""

    INACTIVE = "inactive"
    PENDING = "pending"
    FIRING = "firing"


class Transition(BaseModel):
    """One alert went from one state to another, at an instant of the host's own time."""

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="strings")

    id: Text
    """Hash of (rule, fingerprint, state, at): a change keeps its id whenever it is sent."""
    rule: Text
    """`<group>/<alertname>`."""
    alertname: Text
    fingerprint: Text
    """Hash of the alert's labels, 32 hexadecimal digits."""
    severity: Text = ""
    from_state: AlertState
    to_state: AlertState
    at: Instant
    """Event time: the instant of the sample that caused it."""
    active_at: Instant | None = None
    """Since when the condition has held; None once it no longer does."""
    value: float | None = None
    labels: dict[Text, Text]
    """All labels, `alertname` included: the series' own and the rule's."""
    annotations: dict[Text, Text] = {}
    expr: Text = ""

    @property
    def routing_key(self) -> str:
        return alert_key(
            self.severity, self.to_state, self.labels.get("instance", ""), self.alertname
        )


def fingerprint(labels: Mapping[str, str]) -> str:
    """Identity of an alert by its labels."""
    return series_hash("", labels).hex()


def transition_id(rule: str, fingerprint: str, state: AlertState, at: datetime) -> str:
    """Identity of a transition; depends on nothing that a replay could change."""
    text = f"{rule}\n{fingerprint}\n{state}\n{int(at.timestamp() * 1_000_000)}"
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def encode_transition(transition: Transition) -> bytes:
    """The JSON body."""
    return transition.model_dump_json().encode()


def decode_transition(body: bytes) -> Transition:
    """The transition of a JSON body. Raises Invalid with the reason."""
    return decode_body(Transition, body, "transition")
