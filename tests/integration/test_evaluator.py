"""The evaluator on a real PostgreSQL: kept, handed over, killed at every step."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path

import asyncpg
import msgspec
import pytest
from pydantic import SecretStr

from schemas.layouts import Series, encode_layout
from schemas.samples import SAMPLES_MSGPACK, SampleMessage, decode, encode, frame
from schemas.topology import NOTIFY_QUEUE, topology
from schemas.transitions import Transition, decode_transition
from services import clock
from services.bus import Bus, Message, Unavailable
from services.bus_memory import memory_bus
from services.evaluator import partition, service
from services.evaluator.evaluation import Changes, Instance, receive
from services.evaluator.rules import load_rule_set
from services.evaluator.service import serve
from services.evaluator.settings import EvaluatorSettings
from services.runtime import Context

SECOND = 1_000_000
DEADLINE_S = 20.0
PARTITIONS = 2

RULES = """
groups:
  - name: g
    rules:
      - {alert: Load, expr: load > 1, for: 20s, labels: {severity: page}}
      - {alert: Busy, expr: 'rate(ops[1m]) > 1'}
"""


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> EvaluatorSettings:
    file = tmp_path / "rules.yaml"
    file.write_text(RULES)
    return EvaluatorSettings(
        database_url=SecretStr(database_url),
        rules=[file],
        builtin_rules=False,
        partitions=PARTITIONS,
    )


@pytest.fixture
async def bus() -> AsyncIterator[Bus]:
    async with memory_bus() as opened:
        await opened.declare(topology(PARTITIONS))
        yield opened


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


@contextlib.asynccontextmanager
async def running(settings: EvaluatorSettings, bus: Bus) -> AsyncIterator[Context]:
    """An evaluator that is told to stop at the end, and must then end by itself."""
    context = Context(bus)
    task = asyncio.create_task(serve(settings, context))
    try:
        yield context
        context.stopping.set()
        async with asyncio.timeout(DEADLINE_S):
            await task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - what it waits for is in other tasks' data
            await asyncio.sleep(0.02)


def start_us() -> int:
    """A whole second some minutes ago."""
    return (clock.now_us() // SECOND - 600) * SECOND


def sample(seq: int, at_us: int, instance: str = "web1", **numbers: float) -> Message:
    layout = encode_layout([Series(name) for name in numbers])
    frames = (frame("test", layout, [at_us], [list(numbers.values())]),)
    message = SampleMessage({"job": "node", "instance": instance}, "e1", seq, frames)
    return Message(encode(message), SAMPLES_MSGPACK, message.message_id, {"instance": instance})


async def publish(bus: Bus, messages: Iterable[Message]) -> None:
    """Without ingest, so straight to the evaluator's exchange."""
    for one in messages:
        await bus.publish("vervet.evaluate", "", one)


class Told:
    """Collects what is published on the alerts' exchange, as the notifier would."""

    def __init__(self) -> None:
        self.transitions: list[Transition] = []

    @property
    def changes(self) -> list[tuple[str, str, str]]:
        return [(t.alertname, t.from_state, t.to_state) for t in self.transitions]

    async def listen(self, bus: Bus) -> None:
        async with bus.consume(NOTIFY_QUEUE, prefetch=100) as consumer:
            async for delivery in consumer:
                self.transitions.append(decode_transition(delivery.message.body))
                await consumer.ack([delivery])


@pytest.fixture
async def told(bus: Bus) -> AsyncIterator[Told]:
    collector = Told()
    task = asyncio.create_task(collector.listen(bus))
    yield collector
    task.cancel()


FIRED = [("Load", "inactive", "pending"), ("Load", "pending", "firing")]
RESOLVED = ("Load", "firing", "inactive")


async def test_transitions_are_stored_and_published(
    settings: EvaluatorSettings, bus: Bus, told: Told, database: asyncpg.Connection
) -> None:
    start = start_us()
    async with running(settings, bus):
        await publish(bus, [sample(n, start + n * 10 * SECOND, load=2) for n in range(4)])
        await publish(bus, [sample(4, start + 40 * SECOND, load=0)])
    assert told.changes == [*FIRED, RESOLVED]
    rows = await database.fetch("select * from transitions order by sequence")
    assert [row["id"] for row in rows] == [one.id for one in told.transitions]
    assert all(row["published_at"] is not None for row in rows)
    assert rows[0]["severity"] == "page"
    assert await database.fetchval("select count(*) from alerts") == 0
    assert await database.fetchval("select count(*) from evaluators") == 0
    groups = await database.fetch("select name, rules from rule_groups")
    assert [group["name"] for group in groups] == ["g"]


async def test_states_and_windows_outlive_the_evaluator(
    settings: EvaluatorSettings, bus: Bus, told: Told
) -> None:
    start = start_us()
    for n in range(5):
        async with running(settings, bus):
            at = start + n * 10 * SECOND
            await publish(bus, [sample(n, at, load=2, ops=n * 30.0 if n > 1 else 0.0)])
    assert told.changes == [
        ("Load", "inactive", "pending"),
        ("Load", "pending", "firing"),
        ("Busy", "inactive", "firing"),
    ]
    at_s = [(clock.microseconds(one.at) - start) / SECOND for one in told.transitions]
    assert at_s == [0, 20, 30]


async def test_an_alert_whose_rule_was_removed_ends_at_the_next_start(
    settings: EvaluatorSettings, bus: Bus, told: Told
) -> None:
    start = start_us()
    async with running(settings, bus):
        await publish(bus, [sample(n, start + n * 10 * SECOND, load=2) for n in range(3)])
    none = settings.model_copy(update={"rules": []})
    async with running(none, bus):
        await until(lambda: len(told.transitions) == 3)
    assert told.changes == [*FIRED, RESOLVED]


async def test_a_malformed_message_is_rejected_and_the_queue_moves_on(
    settings: EvaluatorSettings, bus: Bus, told: Told
) -> None:
    start = start_us()
    good = sample(0, start, load=2)
    headers = {"instance": "web1"}
    bad = [
        Message(b"\xc1", SAMPLES_MSGPACK, "bad", headers),
        Message(good.body[:-9], SAMPLES_MSGPACK, "cut", headers),
        Message(good.body, "text/plain", "type", headers),
    ]
    async with running(settings, bus):
        await publish(bus, [*bad, good])
        async with bus.consume("dead", prefetch=10) as consumer:
            dead = [await consumer.receive() for _ in bad]
            await consumer.ack(dead)
    assert [one.message.message_id for one in dead] == ["bad", "cut", "type"]
    assert all(one.message.headers["x-reason"] for one in dead)
    assert told.changes == FIRED[:1]


CRASHES = 8


class Crash(Exception):
    """What a failpoint raises here, in the place of SIGKILL."""


async def run_with_crashes(
    settings: EvaluatorSettings,
    bus: Bus,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
    publishing: "asyncio.Future[list[None]]",
) -> int:
    """Evaluators that crash at random failpoints, again and again, until all is evaluated."""
    rng = random.Random(seed)
    crashes = 0
    while True:
        left = rng.randrange(1, 12)

        def failpoint(name: str) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise Crash(name)

        last = crashes == CRASHES
        monkeypatch.setattr(partition, "failpoint", (lambda name: None) if last else failpoint)
        context = Context(bus)
        task = asyncio.create_task(serve(settings, context))
        await asyncio.wait({task, publishing}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            context.stopping.set()
        try:
            async with asyncio.timeout(DEADLINE_S):
                await task
            return crashes
        except* Crash:
            crashes += 1


async def until_published(bus: Bus, message: Message) -> None:
    """As an agent does: again, with the same id, until it is confirmed."""
    while True:
        try:
            return await bus.publish("vervet.evaluate", "", message)
        except Unavailable:
            continue


@pytest.mark.parametrize("seed", [1, 2])
async def test_crashes_anywhere_lose_and_repeat_no_transition(
    settings: EvaluatorSettings,
    bus: Bus,
    told: Told,
    database: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
) -> None:
    rng = random.Random(seed)
    start = start_us()
    course: list[tuple[str, int, dict[str, float]]] = []
    ops = 0.0
    for n in range(30):
        ops += rng.choice([0, 5, 50])
        load = rng.choice([0.0, 2.0, 2.0, 2.0])
        course += [(name, n, {"load": load, "ops": ops}) for name in ("web1", "web2", "web3")]
    sent = [sample(n, start + n * 10 * SECOND, name, **numbers) for name, n, numbers in course]
    few = settings.model_copy(update={"batch_messages": 4})
    publishing = asyncio.gather(*(until_published(bus, one) for one in sent))
    crashes = await run_with_crashes(few, bus, monkeypatch, seed, publishing)
    assert crashes == CRASHES

    expected = offline(settings, course, start)
    stored = await database.fetch("select id from transitions order by sequence")
    assert {row["id"] for row in stored} == expected.keys()
    assert len(stored) == len(expected)
    assert {one.id: one for one in told.transitions} == expected
    for fingerprint in {one.fingerprint for one in told.transitions}:
        first_told: dict[str, Transition] = {}
        for one in told.transitions:
            if one.fingerprint == fingerprint:
                first_told.setdefault(one.id, one)
        at = [one.at for one in first_told.values()]
        assert at == sorted(at)


def offline(
    settings: EvaluatorSettings, course: list[tuple[str, int, dict[str, float]]], start: int
) -> dict[str, Transition]:
    """What one evaluator without database and broker makes of the same samples."""
    rules = load_rule_set(settings.rules, builtin=False)
    instances: dict[str, Instance] = {}
    changes = Changes()
    for name, n, numbers in course:
        body = sample(n, start + n * 10 * SECOND, name, **numbers).body
        instance = instances.setdefault(name, Instance(name))
        receive(rules, instance, decode(body, SAMPLES_MSGPACK), changes, 1 << 62)
    assert len(changes.transitions) > 20
    return {one.id: one for one in changes.transitions}


async def test_a_message_that_no_retry_mends_is_isolated_and_its_neighbours_are_evaluated(
    settings: EvaluatorSettings, bus: Bus, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A defect in the evaluation of one message, in the middle of a batch."""
    start = start_us()

    def defective(rules, instance, message, changes, limit_us):  # type: ignore[no-untyped-def]
        outcome = receive(rules, instance, message, changes, limit_us)
        if message.seq == 1:
            raise ZeroDivisionError("a defect")
        return outcome

    monkeypatch.setattr(partition, "receive", defective)
    other = SampleMessage(
        {"job": "node", "instance": "other"}, "e1", 0, (frame("c", b"bad", [start], [[1]]),)
    )
    bad = Message(encode(other), SAMPLES_MSGPACK, "bad", {"instance": "other"})
    wrong = msgspec.structs.replace(
        sample(0, start, load=2), message_id="wrong", headers={"instance": "web2"}
    )
    messages = [bad, wrong, *[sample(n, start + n * 10 * SECOND, load=2) for n in range(3)]]
    publishing = asyncio.gather(*(bus.publish("vervet.evaluate", "", one) for one in messages))
    await asyncio.sleep(0)
    async with running(settings, bus):
        await publishing
        async with bus.consume("dead", prefetch=10) as consumer:
            dead = [await consumer.receive() for _ in range(3)]
            await consumer.ack(dead)
        assert await bus.depth("dead") == 0
    reasons = {one.message.message_id: one.message.headers["x-reason"] for one in dead}
    assert reasons == {
        "bad": "layout: not zlib data: Error -3 while decompressing data: incorrect header check",
        "wrong": "header instance: 'web2'; expected 'web1'",
        "web1/e1/1": "a defect",
    }
    assert told.changes == FIRED
    assert [clock.microseconds(one.at) - start for one in told.transitions] == [0, 20 * SECOND]


async def test_a_lost_connection_to_the_database_is_opened_again(
    settings: EvaluatorSettings, bus: Bus, told: Told, database: asyncpg.Connection
) -> None:
    start = start_us()
    one = settings.model_copy(update={"database_pool_size": 1})
    async with running(one, bus):
        for n in range(4):
            await publish(bus, [sample(n, start + n * 10 * SECOND, load=2)])
            await database.execute(
                """select pg_terminate_backend(pid) from pg_stat_activity
                   where application_name = 'vervet' and datname = current_database()"""
            )
    assert told.changes == FIRED


async def test_a_replaced_evaluator_can_write_no_more(
    settings: EvaluatorSettings, bus: Bus, told: Told, database: asyncpg.Connection
) -> None:
    start = start_us()
    async with running(settings, bus):
        await publish(bus, [sample(0, start, load=2)])
        await database.execute("update partitions set epoch = epoch + 1, owner = 'another'")
        again = asyncio.create_task(publish(bus, [sample(1, start + 20 * SECOND, load=2)]))
        await until(lambda: len(told.transitions) == 2)
        await again
    owner = await database.fetchval(
        "select owner from partitions join positions using (partition) where instance = 'web1'"
    )
    assert owner != "another"
    assert told.changes == FIRED


async def test_evaluators_share_the_partitions_and_take_over(
    settings: EvaluatorSettings,
    bus: Bus,
    told: Told,
    database: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(service, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(service, "is_predecessor", lambda one: False)  # one process, two of them
    many = settings.model_copy(update={"partitions": 16})
    await bus.declare(topology(16))
    start = start_us()
    names = [f"web{n}" for n in range(40)]

    async def owners() -> set[str]:
        rows = await database.fetch("select distinct owner from partitions")
        return {row["owner"] for row in rows}

    async def tick(n: int) -> None:
        at = start + n * 20 * SECOND
        await asyncio.gather(*(until_published(bus, sample(n, at, one, load=2)) for one in names))

    async with running(many, bus):
        await tick(0)
        async with running(many, bus):
            async with asyncio.timeout(DEADLINE_S):
                while len(await owners()) < 2:  # noqa: ASYNC110 - asked of the database
                    await asyncio.sleep(0.05)
            await tick(1)
        await tick(2)
        assert await database.fetchval("select count(*) from evaluators") == 1
    assert len(told.transitions) == len({one.id for one in told.transitions}) == 2 * len(names)


async def test_a_silent_agent_is_told_apart_from_one_that_said_goodbye(
    settings: EvaluatorSettings,
    bus: Bus,
    told: Told,
    database: asyncpg.Connection,
    tmp_path: Path,
) -> None:
    file = tmp_path / "silence.yaml"
    file.write_text("groups: [{name: g, rules: [{alert: Silent, no_data: 2s}]}]")
    await database.executemany(
        """insert into agent_status (job, instance, epoch, state, at, version, interval_s, source)
           values ('node', $1, 'e1', $2, now(), '', 0.5, '{}')""",
        [("lost", "started"), ("gone", "stopping")],
    )
    silent = settings.model_copy(update={"rules": [file]})
    start = clock.now_us()
    async with running(silent, bus):
        await publish(bus, [sample(0, start, name, x=1) for name in ("lost", "gone")])
        await until(lambda: bool(told.transitions))
        await publish(bus, [sample(1, start + 5 * SECOND, "lost", x=1)])
        await until(lambda: len(told.transitions) == 2)
    assert [one.labels["instance"] for one in told.transitions] == ["lost", "lost"]
    assert told.changes == [("Silent", "inactive", "firing"), ("Silent", "firing", "inactive")]
    assert clock.microseconds(told.transitions[0].at) == start + 2 * SECOND


async def test_silence_is_not_told_while_messages_wait(
    settings: EvaluatorSettings,
    bus: Bus,
    told: Told,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "silence.yaml"
    file.write_text("groups: [{name: g, rules: [{alert: Silent, no_data: 1s}]}]")
    monkeypatch.setattr(partition, "DEFAULT_INTERVAL_US", 1)
    looked = 0

    async def backlog(self: object) -> bool:
        nonlocal looked
        looked += 1
        return False

    monkeypatch.setattr(partition.Partition, "_is_caught_up", backlog)
    async with running(settings.model_copy(update={"rules": [file]}), bus):
        await publish(bus, [sample(0, clock.now_us(), x=1)])
        await until(lambda: looked > 0)
    assert told.transitions == []
