"""The notifier as it runs: from a message on the bus to a receiver."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP
from pydantic import SecretStr

from schemas.topology import ALERTS, DEAD_QUEUE, topology
from schemas.transitions import TRANSITION_JSON, Transition, encode_transition
from services.bus import Bus, Message, Unavailable
from services.bus_memory import memory_bus
from services.bus_rabbit import rabbit_bus
from services.database import Pool
from services.notifier.service import serve
from services.notifier.settings import NotifierSettings
from services.notifier.store import Store
from services.runtime import Context
from tests.notifier_rig import Hook, hook, transition
from tests.processes import eventually, vervet


@pytest.fixture
async def bus() -> AsyncIterator[Bus]:
    async with memory_bus() as opened:
        await opened.declare(topology())
        yield opened


@asynccontextmanager
async def notifier(
    bus: Bus, database_url: str, routing: Path | None = None
) -> AsyncIterator[Context]:
    context = Context(bus)
    settings = NotifierSettings(database_url=SecretStr(database_url), routing_file=routing)
    task = asyncio.create_task(serve(settings, context))
    try:
        yield context
        assert not task.done(), task.result()
    finally:
        context.stopping.set()
        async with asyncio.timeout(8):
            await task


async def publish(bus: Bus, *transitions: Transition) -> None:
    """As the evaluator does: again, until confirmed."""

    async def one(transition: Transition) -> None:
        message = Message(encode_transition(transition), TRANSITION_JSON, transition.id)
        while True:
            try:
                return await bus.publish(ALERTS, transition.routing_key, message)
            except Unavailable:
                await asyncio.sleep(0.1)

    await asyncio.gather(*(one(transition) for transition in transitions))


def now() -> datetime:
    return datetime.now(UTC)


def routing_file(directory: Path, hooks: dict[str, Hook], **route: Any) -> Path:
    """Everything goes to every hook, in groups of one instance, without waits."""
    file = directory / "routing.json"
    common = {"group_by": ["instance"], "group_wait": "0s", "group_interval": "1s", **route}
    document = {
        "route": {
            "receiver": next(iter(hooks)),
            "routes": [{"receiver": name, "continue": True} for name in hooks],
            **common,
        },
        "receivers": [
            {"name": name, "webhook_configs": [{"url": one.url, "timeout": "2s"}]}
            for name, one in hooks.items()
        ],
    }
    file.write_text(json.dumps(document))
    return file


async def test_without_a_document_notifications_reach_the_inbox(
    bus: Bus, pool: Pool, database_url: str
) -> None:
    async with notifier(bus, database_url):
        await publish(bus, transition("web-1", "firing", now(), severity="critical"))
        await eventually(lambda: count(pool, "inbox", 1))
        await publish(bus, transition("web-1", "inactive", now(), severity="critical"))
        await eventually(lambda: count(pool, "inbox", 2))
    first, second = await pool.fetch("select * from inbox order by sequence")
    assert first["title"] == "[FIRING:1] Down web-1 (node critical)"
    assert second["title"] == "[RESOLVED] Down web-1 (node critical)"
    assert (first["receiver"], first["status"], first["read"]) == ("inbox", "firing", False)
    assert "web-1 is down" in first["body"]
    assert first["labels"]["instance"] == "web-1"
    assert second["alerts"][0]["status"] == "resolved"
    rows = await pool.fetch("select id, channel, state, attempts from deliveries order by sequence")
    assert [tuple(row) for row in rows] == [
        (first["id"], "inbox", "sent", 1),
        (second["id"], "inbox", "sent", 1),
    ]


async def test_a_malformed_transition_goes_to_the_dead_queue_and_the_queue_moves_on(
    bus: Bus, pool: Pool, database_url: str
) -> None:
    good = transition("web-1", "firing", now())
    bad = encode_transition(good).replace(b'"firing"', b'"burning"')
    unstorable = good.model_copy(update={"fingerprint": "x", "labels": {"alertname": "a\x00b"}})
    endless = good.model_copy(update={"rule": "r" * 100_000})
    bodies = [b"{", bad, encode_transition(unstorable), encode_transition(endless)]
    async with notifier(bus, database_url):
        async with asyncio.TaskGroup() as tasks:
            for position, body in enumerate(bodies):
                message = Message(body, TRANSITION_JSON, str(position))
                tasks.create_task(bus.publish(ALERTS, "x.firing.x.x", message))
            tasks.create_task(publish(bus, good))
            reasons = {}
            async with bus.consume(DEAD_QUEUE, prefetch=10) as dead:
                for _ in bodies:
                    letter = await dead.receive()
                    reasons[letter.message.message_id] = str(letter.message.headers["x-reason"])
                    await dead.ack([letter])
        await eventually(lambda: count(pool, "inbox", 1))
    assert reasons["0"].startswith("transition: ")
    assert reasons["1"].startswith("transition: ")
    assert "rule: 100000 characters" in reasons["3"]
    assert len(reasons) == 4


async def test_every_channel_of_a_receiver_is_told(
    bus: Bus, pool: Pool, database_url: str, tmp_path: Path
) -> None:
    mails: list[Any] = []

    class Mailbox:
        async def handle_DATA(self, server: object, session: object, envelope: Any) -> str:
            mails.append(envelope)
            return "250 taken"

    smtp = await asyncio.get_running_loop().create_server(lambda: SMTP(Mailbox()), "127.0.0.1", 0)
    port = smtp.sockets[0].getsockname()[1]
    async with hook() as receiver:
        file = tmp_path / "routing.json"
        document = {
            "global": {
                "smtp_smarthost": f"127.0.0.1:{port}",
                "smtp_from": "vervet@example.org",
                "smtp_require_tls": False,
            },
            "route": {"receiver": "all", "group_wait": "0s"},
            "receivers": [
                {
                    "name": "all",
                    "inbox_configs": [{}],
                    "webhook_configs": [{"url": receiver.url}],
                    "email_configs": [{"to": "ops@example.org"}],
                }
            ],
        }
        file.write_text(json.dumps(document))
        async with notifier(bus, database_url, file):
            await publish(bus, transition("web-1", "firing", now()))
            await eventually(lambda: count(pool, "deliveries where state = 'sent'", 3))
    smtp.close()
    rows = await pool.fetch("select target, channel from deliveries order by target")
    assert [tuple(row) for row in rows] == [
        ("all/email/0", "email"),
        ("all/inbox/0", "inbox"),
        ("all/webhook/0", "webhook"),
    ]
    (mail,) = mails
    assert (mail.mail_from, mail.rcpt_tos) == ("vervet@example.org", ["ops@example.org"])
    assert receiver.bodies[0]["groupKey"] == "{}:{}"
    assert await pool.fetchval("select title from inbox") == "[FIRING:1] (Down web-1 node)"


async def test_two_notifiers_tell_everything_once(
    bus: Bus, pool: Pool, database_url: str, tmp_path: Path
) -> None:
    names = [f"host-{n}" for n in range(60)]
    async with hook() as a, hook() as b:
        file = routing_file(tmp_path, {"a": a, "b": b})
        async with notifier(bus, database_url, file), notifier(bus, database_url, file):
            await publish(bus, *(transition(name, "firing", now()) for name in names))
            await publish(bus, *(transition(name, "firing", now()) for name in names))
            await eventually(lambda: len(a.told) == len(b.told) == 60)
            await publish(bus, *(transition(name, "inactive", now()) for name in names))
            await eventually(lambda: count(pool, "notify_groups", 0))
    for one in (a, b):
        assert one.told == {name: ["firing", "resolved"] for name in names}
        assert len(set(one.ids)) == len(one.ids) == 120


async def test_a_slow_receiver_delays_no_other(
    bus: Bus, pool: Pool, database_url: str, tmp_path: Path
) -> None:
    names = [f"host-{n}" for n in range(20)]
    async with hook(delay_s=1.5) as slow, hook() as fast:
        file = routing_file(tmp_path, {"slow": slow, "fast": fast})
        async with notifier(bus, database_url, file):
            await publish(bus, *(transition(name, "firing", now()) for name in names))
            await eventually(lambda: len(fast.told) == 20, within_s=5)
            assert len(slow.ids) <= 8


@pytest.mark.broker
@pytest.mark.parametrize("killed", ["before the answer", "after the answer"])
async def test_a_notifier_killed_while_sending_sends_again_under_the_same_id(
    killed: str, broker_url: str, pool: Pool, database_url: str, tmp_path: Path
) -> None:
    urls = {"broker_url": broker_url, "database_url": database_url}
    async with rabbit_bus(broker_url, name="test") as bus, hook() as receiver:
        await bus.declare(topology())
        file = str(routing_file(tmp_path, {"ops": receiver}))
        log = tmp_path / "log"
        async with vervet("notifier", "--routing-file", file, log=log, **urls) as first:
            await first.until_ready()
            if killed == "before the answer":
                receiver.before_answer = first.process.kill
                await publish(bus, transition("web-1", "firing", now()))
            else:
                receiver.gate = asyncio.Event()
                await publish(bus, transition("web-1", "firing", now()))
                await eventually(lambda: len(receiver.ids) == 1)
                async with pool.acquire() as connection, connection.transaction():
                    # The group's row lock keeps the outcome from being recorded.
                    await connection.execute("select from notify_groups for update")
                    receiver.gate.set()
                    await eventually(lambda: count(pool, "pg_locks where not granted", 1))
                    first.process.kill()
            assert await first.ended() != 0
        receiver.before_answer = receiver.gate = None
        async with vervet("notifier", "--routing-file", file, log=log, **urls) as second:
            await eventually(lambda: len(receiver.ids) == 2, second.text)
            await publish(bus, transition("web-1", "inactive", now()))
            await eventually(lambda: count(pool, "notify_groups", 0), second.text)
    assert len(set(receiver.ids)) == 2
    assert receiver.ids[0] == receiver.ids[1]
    assert receiver.told == {"web-1": ["firing", "resolved"]}
    row = await pool.fetchrow("select state, attempts from deliveries order by sequence limit 1")
    assert tuple(row) == ("sent", 2)


async def test_a_storm_is_told_in_few_notifications_that_say_how_many(
    bus: Bus, pool: Pool, database_url: str, tmp_path: Path
) -> None:
    storm = 10_000
    async with hook() as receiver:
        file = routing_file(
            tmp_path,
            {"ops": receiver},
            group_by=["alertname"],
            group_wait="2s",
            group_interval="5s",
        )
        document = json.loads(file.read_text())
        document["receivers"][0]["webhook_configs"][0]["max_alerts"] = 10
        document["receivers"][0]["inbox_configs"] = [{}]
        file.write_text(json.dumps(document))
        async with notifier(bus, database_url, file):
            for start in range(0, storm, 500):
                batch = [transition(f"host-{start + n}", "firing", now()) for n in range(500)]
                await publish(bus, *batch)
            await eventually(lambda: told_of(receiver.bodies, storm), within_s=60)
    assert len(receiver.ids) < 20
    assert all(len(body["alerts"]) == 10 for body in receiver.bodies)
    title = await pool.fetchval("select title from inbox order by sequence desc limit 1")
    assert title.startswith(f"[FIRING:{storm}]")
    assert await pool.fetchval("select max(pg_column_size(alerts)) from inbox") < 100_000


def told_of(bodies: Sequence[dict[str, Any]], alerts: int) -> bool:
    return bool(bodies) and len(bodies[-1]["alerts"]) + bodies[-1]["truncatedAlerts"] == alerts


async def test_a_notifier_stops_in_time_while_a_receiver_hangs(
    bus: Bus, pool: Pool, database_url: str, tmp_path: Path
) -> None:
    async with hook(delay_s=30) as receiver:
        file = routing_file(tmp_path, {"ops": receiver})
        loop = asyncio.get_running_loop()
        async with notifier(bus, database_url, file):
            await publish(bus, transition("web-1", "firing", now()))
            await eventually(lambda: len(receiver.ids) == 1)
            started = loop.time()
        assert loop.time() - started < 4
    state = await pool.fetchrow("select state, attempts, doubtful from deliveries")
    assert tuple(state) == ("pending", 1, True)


async def test_connections_that_are_cut_lose_and_double_nothing(
    bus: Bus, pool: Pool, database_url: str, tmp_path: Path
) -> None:
    names = [f"host-{n}" for n in range(50)]
    cut = """select pg_terminate_backend(pid) from pg_stat_activity
             where datname = current_database() and pid <> pg_backend_pid()
               and backend_type = 'client backend'"""
    async with hook() as receiver:
        file = routing_file(tmp_path, {"ops": receiver})
        async with notifier(bus, database_url, file), asyncio.TaskGroup() as tasks:
            told = tasks.create_task(eventually(lambda: len(receiver.told) == len(names)))
            for name in names:
                tasks.create_task(publish(bus, transition(name, "firing", now())))
            while not told.done():
                await pool.execute(cut)
                await asyncio.sleep(0.2)
            await publish(bus, *(transition(name, "inactive", now()) for name in names))
            await eventually(lambda: count(pool, "notify_groups", 0))
    assert receiver.told == {name: ["firing", "resolved"] for name in names}


async def test_an_idle_notifier_hardly_asks_the_database(
    bus: Bus, pool: Pool, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = 0
    now_of_database = Store.now

    async def counted(store: Store) -> datetime:
        nonlocal turns
        turns += 1
        return await now_of_database(store)

    monkeypatch.setattr(Store, "now", counted)
    async with notifier(bus, database_url):
        await publish(bus, transition("web-1", "firing", now()))
        await eventually(lambda: count(pool, "deliveries where state = 'sent'", 1))
        await asyncio.sleep(0.5)  # the loops go to sleep
        turns = 0
        await asyncio.sleep(6)
    assert 1 <= turns <= 6  # two loops, each looks every 5 s for what a dead notifier left


async def count(pool: Pool, table: str, rows: int) -> bool:
    found: int = await pool.fetchval(f"select count(*) from {table}")
    return found == rows
