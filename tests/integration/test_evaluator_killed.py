"""The evaluator's process, killed for real at each step, on RabbitMQ and PostgreSQL."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import asyncpg
import pytest

from schemas.topology import NOTIFY_QUEUE, topology
from schemas.transitions import Transition, decode_transition
from services.bus_rabbit import rabbit_bus
from tests.integration.test_evaluator import FIRED, RESOLVED, RULES, SECOND, sample, start_us

DEADLINE_S = 60.0
LOADS = (2.0, 2.0, 2.0, 0.0)


class Host:
    """Starts evaluators as processes of their own."""

    def __init__(self, broker_url: str, database_url: str, rules: Path) -> None:
        self._environ = {
            **{name: value for name, value in os.environ.items() if "VERVET" not in name},
            "VERVET_BROKER_URL": broker_url,
            "VERVET_DATABASE_URL": database_url,
            "VERVET_LISTEN": "127.0.0.1:0",
            "VERVET_RULES": str(rules),
            "VERVET_BUILTIN_RULES": "false",
            "VERVET_PARTITIONS": "2",
        }

    async def start(self, failpoint: str = "") -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "services.evaluator",
            env={**self._environ, "VERVET_FAILPOINT": failpoint},
        )


async def ended(process: asyncio.subprocess.Process) -> int:
    try:
        async with asyncio.timeout(DEADLINE_S):
            return await process.wait()
    except TimeoutError:
        process.kill()
        raise


@pytest.mark.parametrize("step", ["before_commit", "after_commit", "after_publish"])
async def test_an_evaluator_killed_at_every_message_loses_and_repeats_no_transition(
    broker_url: str, database_url: str, tmp_path: Path, step: str
) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text(RULES)
    host = Host(broker_url, database_url, rules)
    start = start_us()
    database = await asyncpg.connect(database_url)
    async with rabbit_bus(broker_url, name="test") as bus:
        await bus.declare(topology(2))
        for n, load in enumerate(LOADS):
            one = sample(n, start + n * 10 * SECOND, load=load)
            await bus.publish("vervet.evaluate", "", one)
            killed = await host.start(f"evaluator.{step}")
            assert await ended(killed) == -signal.SIGKILL
        last = await host.start()
        told: dict[str, Transition] = {}
        try:
            async with asyncio.timeout(DEADLINE_S), bus.consume(NOTIFY_QUEUE, prefetch=9) as queue:
                while len(told) < 3:
                    delivery = await queue.receive()
                    one_told = decode_transition(delivery.message.body)
                    told.setdefault(one_told.id, one_told)
                    await queue.ack([delivery])
                while any([await bus.depth(f"evaluate.{p}") for p in range(2)]):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
        finally:
            last.send_signal(signal.SIGTERM)
            code = await ended(last)
        assert code == 0
        assert await bus.depth("dead") == 0
    rows = await database.fetch("select id, at from transitions order by sequence")
    await database.close()
    assert [(t.alertname, t.from_state, t.to_state) for t in told.values()] == [*FIRED, RESOLVED]
    assert [row["id"] for row in rows] == list(told)
    assert [(row["at"].timestamp() * SECOND - start) / SECOND for row in rows] == [0, 20, 30]
