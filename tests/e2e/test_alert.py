"""One alert, from the host's reading to three receivers, through the whole product."""

import asyncio
import json
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session

from tests.processes import Running, eventually, free_port, vervet

RULES = """
groups:
  - name: test
    rules:
      - alert: JustStarted
        expr: vervet_agent_message_seq < 12
        labels: {severity: warning}
        annotations: {summary: "{{ $labels.instance }} has just started"}
"""

ROUTING = """
global:
  smtp_smarthost: "127.0.0.1:%(smtp)d"
  smtp_from: vervet@example.org
  smtp_require_tls: false
route:
  receiver: everywhere
  group_by: [alertname]
  group_wait: 0s
  group_interval: 1s
receivers:
  - name: everywhere
    inbox_configs: [{}]
    webhook_configs: [{url: "http://127.0.0.1:%(http)d/hook"}]
    email_configs: [{to: oncall@example.org, send_resolved: true}]
"""


@contextmanager
def webhook() -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """A receiver that keeps the bodies it is sent."""
    bodies: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port, bodies
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Mailbox:
    def __init__(self) -> None:
        self.subjects: list[str] = []

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        text = bytes(envelope.content or b"").decode()
        self.subjects += [line for line in text.splitlines() if line.startswith("Subject: ")]
        return "250 taken"


@pytest.fixture
def place() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="vervet-", dir="/var/tmp"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


async def test_an_alert_reaches_inbox_webhook_and_mailbox_and_ends_there(place: Path) -> None:
    mailbox = Mailbox()
    controller = Controller(mailbox, hostname="127.0.0.1", port=free_port())
    await asyncio.to_thread(controller.start)
    try:
        with webhook() as (port, bodies):
            (place / "rules.yml").write_text(RULES)
            routing = ROUTING % {"smtp": controller.port, "http": port}
            (place / "routing.yml").write_text(routing)
            async with vervet(
                "up",
                log=place / "log",
                home=str(place / "state"),
                interval="1s",
                builtin_rules="false",
                rules=str(place / "rules.yml"),
                routing_file=str(place / "routing.yml"),
            ) as running:
                await eventually(lambda: told(bodies) == ["firing", "resolved"], running.text, 60)
                await eventually(lambda: len(mailbox.subjects) == 2, running.text)
                await eventually(lambda: inbox(running) == ["resolved", "firing"], running.text)
                await eventually(lambda: deliveries(running) == ["sent"] * 6, running.text)
                assert states(running, "/v1/transitions", "to") == ["inactive", "firing"]
    finally:
        await asyncio.to_thread(controller.stop)
    body = bodies[0]
    assert (body["version"], body["receiver"]) == ("4", "everywhere")
    (alert,) = body["alerts"]
    assert alert["labels"]["alertname"] == "JustStarted"
    assert alert["labels"]["severity"] == "warning"
    assert alert["annotations"]["summary"].endswith("has just started")
    assert "FIRING" in mailbox.subjects[0]


def told(bodies: list[dict[str, Any]]) -> list[str]:
    return [body["status"] for body in bodies]


def states(running: Running, path: str, field: str) -> list[str]:
    return [item[field] for item in json.loads(running.get(path)[1])["items"]]


def deliveries(running: Running) -> list[str]:
    return states(running, "/v1/deliveries", "state")


def inbox(running: Running) -> list[str]:
    return states(running, "/v1/inbox", "status")
