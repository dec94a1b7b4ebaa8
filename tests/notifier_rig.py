"""A notifier without its loops: a test turns it by hand, on a real database and its own clock."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from schemas.routing import RoutingDocument, routing_tree
from schemas.transitions import AlertState, Transition, fingerprint, transition_id
from services.database import Pool
from services.notifier.channels import DeliveryError
from services.notifier.decision import Reason
from services.notifier.flush import Flusher
from services.notifier.ledger import Claimed, Ledger, Slots
from services.notifier.notification import Notification
from services.notifier.routing import Routing, target_name
from services.notifier.store import Recorded, Store

START = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
GIVE_UP_AFTER = timedelta(days=3)
RULE = "host/Down"

DOWN = DeliveryError("cannot connect")
LOST = DeliveryError("no answer", reached=True)
REFUSED = DeliveryError("HTTP 400", permanent=True)


def transition(
    instance: str, to: str, at: datetime, *, rule: str = RULE, **labels: str
) -> Transition:
    """An alert of `instance` changes to `to`."""
    alertname = rule.rpartition("/")[2]
    every = {"alertname": alertname, "instance": instance, "job": "node", **labels}
    key, state = fingerprint(every), AlertState(to)
    return Transition(
        id=transition_id(rule, key, state, at),
        rule=rule,
        alertname=alertname,
        fingerprint=key,
        severity=labels.get("severity", ""),
        from_state=AlertState.FIRING if to == "inactive" else AlertState.INACTIVE,
        to_state=state,
        at=at,
        labels=every,
        annotations={"summary": f"{instance} is down"},
        expr="up == 0",
    )


@dataclass
class FakeChannel:
    """A receiver whose answers a test scripts; what it took is in `taken`, by id in `heard`."""

    send_resolved: bool = True
    timeout: timedelta = timedelta(seconds=10)
    answer: DeliveryError | None = None
    taken: list[Notification] = field(default_factory=list)
    attempts: list[str] = field(default_factory=list)

    async def send(self, notification: Notification) -> str:
        self.attempts.append(notification.id)
        if self.answer is None or self.answer.reached:
            self.taken.append(notification)
        if self.answer is not None:
            raise self.answer
        return ""

    @property
    def heard(self) -> list[Notification]:
        """As an idempotent receiver sees it: each id once, in order of arrival."""
        return list({one.id: one for one in reversed(self.taken)}.values())[::-1]

    def told(self) -> list[str]:
        """`firing web-1 web-2 | resolved web-3` of each notification."""
        return [summary(one) for one in self.heard]


def summary(notification: Notification) -> str:
    parts = []
    for status in ("firing", "resolved"):
        names = sorted(a.labels["instance"] for a in notification.alerts if a.status == status)
        if names:
            parts.append(" ".join([status, *names]))
    return " | ".join(parts)


DOCUMENT = {
    "route": {
        "receiver": "ops",
        "group_by": ["alertname"],
        "group_wait": "30s",
        "group_interval": "5m",
        "repeat_interval": "4h",
    },
    "receivers": [{"name": "ops"}],
}


class Rig:
    """One notifier. Several on one pool are several notifiers; give them one clock."""

    def __init__(
        self,
        pool: Pool,
        channels: Mapping[str, list[FakeChannel]],
        document: Mapping[str, object] | None = None,
        clock: Callable[[], datetime] | None = None,
    ) -> None:
        self.pool = pool
        self.time = START
        self._clock = clock
        parsed = RoutingDocument.model_validate(document or DOCUMENT)
        self.routing = Routing(
            routing_tree(parsed),
            parsed.model_dump_json(),
            {
                receiver: {target_name(receiver, "fake", n): one for n, one in enumerate(fakes)}
                for receiver, fakes in channels.items()
            },
        )
        self.store = Store(pool)
        self.ledger = Ledger(pool, give_up_after=GIVE_UP_AFTER)
        self.flusher = Flusher(
            pool, self.routing, external_url="http://vervet.example/", give_up_after=GIVE_UP_AFTER
        )

    @property
    def now(self) -> datetime:
        return self._clock() if self._clock else self.time

    async def reconcile(self) -> bool:
        return await self.store.reconcile(self.routing, self.now)

    async def change(self, to: str, *instances: str, **labels: str) -> Recorded:
        """These instances' alerts change now."""
        changes = [transition(name, to, self.now, **labels) for name in instances]
        return await self.store.record(changes, self.routing.root, self.now)

    async def fire(self, *instances: str, **labels: str) -> Recorded:
        return await self.change("firing", *instances, **labels)

    async def resolve(self, *instances: str, **labels: str) -> Recorded:
        return await self.change("inactive", *instances, **labels)

    async def flush(self) -> list[Reason]:
        """Decide for every group that is due now."""
        found: list[Reason] = []
        while reasons := await self.flusher.flush(self.now):
            found += reasons
            assert len(found) < 10_000, f"groups stay due: {reasons}"
        return found

    async def claim(self, free: int = 10) -> list[Claimed]:
        slots = {
            target: Slots(free, channel.timeout + timedelta(seconds=20))
            for target, channel in self.routing.targets.items()
        }
        return await self.ledger.claim(slots, self.now)

    async def attempt(self, claimed: Claimed) -> None:
        """Send one and record what became of it."""
        try:
            note = await self.routing.targets[claimed.target].send(claimed.notification)
        except DeliveryError as error:
            await self.ledger.failed(claimed, error, self.now)
        else:
            await self.ledger.succeeded(claimed, note, self.now)

    async def send(self) -> None:
        """Attempt every delivery that is due now."""
        while claimed := await self.claim():
            for one in claimed:
                await self.attempt(one)

    async def next_due(self) -> datetime | None:
        """When there is something to do."""
        dues = [
            await self.flusher.next_due(),
            await self.ledger.next_due(list(self.routing.targets)),
        ]
        return min((due for due in dues if due), default=None)

    async def advance(self, span: timedelta) -> None:
        """Let time pass; everything happens when it is due."""
        end = self.time + span
        turns = 0
        while (due := await self.next_due()) and due <= end:
            turns += 1
            assert turns < 2_000, f"due again and again at {due}"
            self.time = max(self.time, due)
            await self.flush()
            await self.send()
        self.time = end


@dataclass
class Hook:
    """A receiver of webhooks: what came, and what is done about it before the answer."""

    port: int = 0
    status: int = 200
    delay_s: float = 0.0
    before_answer: Callable[[], None] | None = None
    gate: asyncio.Event | None = None
    ids: list[str] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    @property
    def told(self) -> dict[str, list[str]]:
        """By instance, the states that it was told in, each notification once."""
        found: dict[str, list[str]] = {}
        for body in dict(zip(self.ids, self.bodies, strict=True)).values():
            for alert in body["alerts"]:
                found.setdefault(alert["labels"]["instance"], []).append(alert["status"])
        return found

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
            headers = dict(line.split(": ", 1) for line in head[1:] if line)
            body = await reader.readexactly(int(headers["content-length"]))
            self.ids.append(headers["x-vervet-notification-id"])
            self.bodies.append(json.loads(body))
            if self.before_answer:
                self.before_answer()
            if self.gate:
                await self.gate.wait()
            await asyncio.sleep(self.delay_s)
            writer.write(f"HTTP/1.1 {self.status} X\r\nContent-Length: 0\r\n\r\n".encode())
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the notifier was killed
        finally:
            writer.close()


@asynccontextmanager
async def hook(**given: Any) -> AsyncIterator[Hook]:
    """A receiver that listens as long as this lasts."""
    receiver = Hook(**given)
    server = await asyncio.start_server(receiver.handle, "127.0.0.1", receiver.port)
    receiver.port = server.sockets[0].getsockname()[1]
    try:
        yield receiver
    finally:
        server.close()
