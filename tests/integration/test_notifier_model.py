"""Two notifiers, a receiver that fails in every way, crashes and redeliveries, in any order: in the
end the receiver knows what is true, and it never hears of an end without a beginning."""

from collections.abc import AsyncIterator
from datetime import datetime, timedelta

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from schemas.transitions import Transition
from services.database import Pool, open_pool
from services.notifier.channels import DeliveryError
from tests.notifier_rig import DOCUMENT, DOWN, LOST, REFUSED, START, FakeChannel, Rig, transition

INSTANCES = ["a", "b", "c"]
ANSWERS: dict[str, DeliveryError | None] = {
    "fine": None, "down": DOWN, "lost": LOST, "refused": REFUSED,
}  # fmt: skip
TABLES = "notify_alerts, notify_groups, notify_members, notify_told, deliveries, notify_routing"

STEP = st.one_of(
    st.tuples(st.just("fire"), st.sampled_from(INSTANCES)),
    st.tuples(st.just("resolve"), st.sampled_from(INSTANCES)),
    st.tuples(st.just("pass"), st.sampled_from(["1", "29", "31", "290", "310", "1000", "15000"])),
    st.tuples(st.just("answer"), st.sampled_from(sorted(ANSWERS))),
    st.tuples(st.just("crash"), st.sampled_from(["before the send", "after the send"])),
    st.tuples(st.just("redeliver"), st.sampled_from(["0", "1", "2", "3", "-1", "-2", "all"])),
)


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[Pool]:
    async with open_pool(database_url) as opened:
        yield opened


class World:
    """Two notifiers that share a clock, and what a receiver heard."""

    def __init__(self, pool: Pool) -> None:
        self.time = START
        self.receiver = FakeChannel()
        self.rigs = [
            Rig(pool, {"ops": [self.receiver]}, DOCUMENT, clock=lambda: self.time) for _ in "ab"
        ]
        self.sent: list[Transition] = []
        self.firing: set[str] = set()
        self.excused: set[str] = set()
        self.turn = 0

    @property
    def rig(self) -> Rig:
        """The notifiers take turns."""
        self.turn += 1
        return self.rigs[self.turn % 2]

    async def step(self, action: str, what: str) -> None:
        self.time += timedelta(milliseconds=1)
        if action == "pass":
            await self.advance(timedelta(seconds=int(what)))
        elif action == "answer":
            self.receiver.answer = ANSWERS[what]
        elif action == "crash":
            await self.crash(after_send=what == "after the send")
        elif action == "redeliver":
            again = self.sent[::-1] if what == "all" else self.sent[int(what) :][:1]
            await self.record(again)
        else:
            change = transition(what, "firing" if action == "fire" else "inactive", self.time)
            (self.firing.add if action == "fire" else self.firing.discard)(what)
            self.sent.append(change)
            await self.record([change])

    async def record(self, transitions: list[Transition]) -> None:
        rig = self.rig
        await rig.store.record(transitions, rig.routing.root, self.time)

    async def crash(self, *, after_send: bool) -> None:
        """A notifier ends after it claimed deliveries, or after it sent them."""
        rig = self.rig
        self.time = max(self.time, await rig.next_due() or self.time)
        await rig.flush()
        for claimed in await rig.claim():
            if after_send and self.receiver.answer is None:
                self.receiver.taken.append(claimed.notification)
            else:  # it was not heard, and nobody who goes on knows
                alerts = claimed.notification.alerts
                self.excused |= {alert.labels["instance"] for alert in alerts}

    async def advance(self, span: timedelta) -> None:
        end = self.time + span
        for _ in range(5_000):
            due: datetime | None = await self.rig.next_due()
            if due is None or due > end:
                break
            self.time = max(self.time, due)
            await self.rig.flush()
            await self.rig.send()
        else:
            pytest.fail("something stays due")
        self.time = end

    def history(self, instance: str) -> list[str]:
        return [
            alert.status
            for notification in self.receiver.heard
            for alert in notification.alerts
            if alert.labels["instance"] == instance
        ]


@settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=st.lists(STEP, max_size=25))
@example(
    [
        ("fire", "a"),
        ("crash", "after the send"),
        ("answer", "down"),
        ("resolve", "a"),
        ("pass", "1000"),
    ]
)
@example(
    [
        ("fire", "a"),
        ("answer", "down"),
        ("crash", "after the send"),
        ("resolve", "a"),
        ("pass", "290"),
    ]
)
@example([("fire", "a"), ("answer", "lost"), ("pass", "31"), ("resolve", "a"), ("pass", "310")])
async def test_a_receiver_knows_the_truth_in_the_end_and_hears_no_end_without_a_beginning(
    pool: Pool, steps: list[tuple[str, str]]
) -> None:
    await pool.execute(f"truncate {TABLES} cascade")
    world = World(pool)
    for action, what in steps:
        await world.step(action, what)
    world.receiver.answer = None
    await world.advance(timedelta(hours=2))
    for instance in INSTANCES:
        history = world.history(instance)
        known = history[-1] if history else "resolved"
        assert known == ("firing" if instance in world.firing else "resolved"), history
        if instance not in world.excused:
            before = ["resolved", *history]
            ends = [n for n, status in enumerate(history) if status == "resolved"]
            assert all(before[n] == "firing" for n in ends), history
    ids = [notification.id for notification in world.receiver.heard]
    assert len(set(ids)) == len(ids)
    waiting = await pool.fetchval("select count(*) from deliveries where state = 'pending'")
    groups = await pool.fetchval("select count(*) from notify_groups")
    assert (waiting, groups) == (0, int(bool(world.firing)))
