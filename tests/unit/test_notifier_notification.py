import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.notifier.notification import (
    MAX_LISTED,
    MAX_TITLE_CHARS,
    Alert,
    Notification,
    body_text,
    in_order,
    one_line,
    prometheus_fingerprint,
    title,
    webhook_body,
)

AT = datetime(2026, 1, 1, tzinfo=UTC)
FACTS = json.loads(Path(__file__).with_name("test_notifier_alertmanager.json").read_text())


def _alert(said: dict[str, Any]) -> Alert:
    return Alert(
        status=said["status"],
        labels=said["labels"],
        annotations=said["annotations"],
        starts_at=said["startsAt"],
        ends_at=None if said["endsAt"].startswith("0001") else said["endsAt"],
        generator_url=said["generatorURL"],
    )


@pytest.mark.parametrize("said", FACTS["bodies"])
def test_a_webhook_body_is_what_alertmanager_sends(said: dict[str, Any]) -> None:
    """The facts are what Debian's Alertmanager 0.25 sent for these alerts."""
    extra = [
        Alert(
            status="firing", labels={"alertname": "Down", "z": str(n)}, annotations={}, starts_at=AT
        )
        for n in range(said["truncatedAlerts"])
    ]
    notification = Notification(
        id="x",
        receiver="ops.team (a)",
        group_key='{}:{alertname="Down"}',
        group_labels={"alertname": "Down"},
        reason="first notification",
        at=AT,
        external_url="http://vervet.example:8420",
        alerts=(*in_order([_alert(a) for a in reversed(said["alerts"])]), *extra),
    )
    body = webhook_body(notification, max_alerts=2)
    if said["status"] == "resolved" and extra:
        # The one difference: where alerts are cut off, ours tells the state of all of them.
        assert body["status"] == "firing"
        body["status"] = "resolved"
    assert body == said
    assert list(body) == list(said)


def notification(*alerts: Alert, **group: str) -> Notification:
    return Notification(
        id="abc",
        receiver="ops",
        group_key="{}:{}",
        group_labels=group,
        reason="first notification",
        at=AT,
        external_url="http://vervet.example",
        alerts=alerts,
    )


def alert(status: str = "firing", summary: str = "", **labels: str) -> Alert:
    annotations = {"summary": summary} if summary else {}
    return Alert.model_validate(
        {"status": status, "labels": labels, "annotations": annotations, "starts_at": AT}
    )


def test_a_title_says_how_many_fire_and_what_they_share() -> None:
    one = notification(
        alert(alertname="Down", instance="a", severity="critical"),
        alert(alertname="Down", instance="b", severity="critical"),
        alert("resolved", alertname="Down", instance="c", severity="critical"),
        alertname="Down",
    )
    assert title(one) == "[FIRING:2] Down (critical)"
    assert title(notification(alert("resolved", alertname="Down"), alertname="Down")) == (
        "[RESOLVED] Down"
    )


@given(st.text(), st.text())
def test_a_title_is_one_bounded_line_whatever_the_labels_say(name: str, value: str) -> None:
    text = title(notification(alert(alertname=name, x=value), alertname=name))
    assert len(text) <= MAX_TITLE_CHARS
    assert re.search(r"[\r\n\x00-\x1f\x7f]", text) is None


def test_a_text_for_people_lists_some_and_says_how_many_more() -> None:
    many = notification(*(alert(alertname="Down", instance=f"i{n}") for n in range(10_000)))
    text = body_text(many)
    assert text.startswith("10000 firing, 0 resolved")
    assert f"… and {10_000 - MAX_LISTED} more" in text
    assert len(text.splitlines()) < MAX_LISTED + 10


def test_a_text_for_people_uses_the_rule_s_words_on_one_line() -> None:
    text = body_text(notification(alert(summary="disk\nfull", alertname="Disk")))
    assert "firing: disk full (since 2026-01-01T00:00:00Z)" in text


def test_a_fingerprint_is_prometheus_own() -> None:
    assert prometheus_fingerprint({}) == "cbf29ce484222325"
    for body in FACTS["bodies"]:
        for said in body["alerts"]:
            assert prometheus_fingerprint(said["labels"]) == said["fingerprint"]


def test_control_characters_become_spaces() -> None:
    assert one_line("a\r\nBcc: b\x00\u2028c") == "a Bcc: b c"
