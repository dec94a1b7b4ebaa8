"""The agent as a process of its own: killed, without a broker, with RabbitMQ, unprivileged."""

import asyncio
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path

import psutil
import pytest

from schemas.layouts import decode_layout
from schemas.samples import SampleMessage, decode, from_little
from schemas.topology import INGEST_QUEUE, topology
from services.agent.outgoing import open_envelope
from services.agent.spool import Spool, SpoolStats, open_spool
from services.bus import Bus
from services.bus_rabbit import rabbit_bus
from tests.processes import Running, eventually, vervet
from tests.stack.broker import Broker

NOBODY = 65534
BUDGET_BYTES = 60 * 1024**2
QUICK = ("--interval", "100ms", "--instance", "host-1")


def reopened(directory: Path) -> Spool:
    return open_spool(directory, max_bytes=1 << 30, max_age=timedelta(days=1))


def waiting(directory: Path) -> list[SampleMessage]:
    """Every message in a spool, in order."""
    spool = reopened(directory)
    try:
        envelopes = [open_envelope(record) for record in spool.take(1 << 20, 1 << 30)]
        assert spool.stats().dropped == {}
        return [decode(one.body, one.content_type) for one in envelopes]
    finally:
        spool.close()


def own_series(running: Running, name: str) -> float:
    """A value from the agent's /metrics."""
    lines = running.get("/metrics")[1].splitlines()
    return next((float(line.split()[-1]) for line in lines if line.startswith(name + " ")), 0.0)


@asynccontextmanager
async def agent(directory: Path, *arguments: str, **environ: str) -> AsyncIterator[Running]:
    log = directory.with_suffix(".log")
    given = [*QUICK, "--spool-directory", str(directory), *arguments]
    async with vervet("agent", *given, log=log, **environ) as running:
        yield running


async def test_killed_again_and_again_it_keeps_every_tick_that_it_numbered(tmp_path: Path) -> None:
    directory = tmp_path / "spool"
    for _ in range(5):
        async with agent(directory) as running:
            enough = size(directory) + 15_000
            await eventually(partial(lambda least: size(directory) > least, enough), running.text)
            running.kill()
    messages = waiting(directory)
    assert [message.seq for message in messages] == list(range(1, len(messages) + 1))
    assert len({message.epoch for message in messages}) == 1
    assert len(messages) >= 10


def size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.glob("*.segment"))


async def test_without_a_broker_it_opens_no_socket_but_its_own_page(tmp_path: Path) -> None:
    async with agent(tmp_path / "spool") as running:
        await running.until_ready()
        await eventually(lambda: own_series(running, "vervet_agent_message_seq") >= 2)
        sockets = psutil.Process(running.process.pid).net_connections()
        others = [one for one in sockets if one.laddr.port != int(running.address.split(":")[1])]
        assert others == []
        assert "no broker URL" in running.text()


async def test_told_to_stop_it_ends_in_time_with_status_0(tmp_path: Path) -> None:
    async with agent(tmp_path / "spool") as running:
        await running.until_ready()
        running.process.terminate()
        assert await asyncio.wait_for(running.ended(), 3) == 0
        assert "Traceback" not in running.text()


async def test_a_second_agent_on_one_spool_is_told_without_a_traceback(tmp_path: Path) -> None:
    async with agent(tmp_path / "spool") as first:
        await first.until_ready()
        async with agent(tmp_path / "spool") as second:
            assert await second.ended() == 69
            assert f"process id {first.process.pid}" in second.text()
            assert "Traceback" not in second.text()


async def test_a_mistake_in_the_file_is_told_where_it_stands_with_status_2(tmp_path: Path) -> None:
    config = tmp_path / "agent.toml"
    config.write_text('instance = "a"\nintervall = "5s"\n')
    async with agent(tmp_path / "spool", "--config", str(config)) as running:
        assert await running.ended() == 2
        assert f"{config}:2:1: intervall" in running.text()
        assert "interval" in running.text()
        assert "Traceback" not in running.text()


AS_NOBODY = """
import asyncio, os, sys
from datetime import timedelta
from pathlib import Path
from services.agent.service import serve
from services.agent.settings import AgentSettings
from services.bus_none import NoBus
from services.runtime import Context, stop_on_signals
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
async def main():
    context = Context(NoBus())
    stop_on_signals(context.stopping)
    spool = Path(sys.argv[1])
    settings = AgentSettings(spool_directory=spool, interval=timedelta(milliseconds=100))
    await serve(settings, context)
asyncio.run(main())
"""
"""The agent as another user, imported before: that one may not be able to read the program."""


async def test_it_runs_as_an_ordinary_user() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user; every other test here runs as one")
    with tempfile.TemporaryDirectory() as name:
        os.chown(name, NOBODY, NOBODY)
        directory = Path(name) / "spool"
        process = await asyncio.to_thread(
            subprocess.Popen,
            [sys.executable, "-c", AS_NOBODY, str(directory)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            await eventually(lambda: size(directory) > 20_000 or process.poll() is not None)
        finally:
            process.terminate()
            said, _ = await asyncio.to_thread(process.communicate, None, 10)
        assert process.returncode == 0, said
        assert "collector failed" not in said
        messages = waiting(directory)
    assert {frame.collector for frame in messages[0].frames} >= {"cpu", "filesystem", "netdev"}


def has_published(running: Running, count: float) -> bool:
    return own_series(running, "vervet_agent_messages_published_total") >= count


async def stored(bus: Bus, count: int) -> list[SampleMessage]:
    """The messages in the queue, once there are `count` different ones."""
    found: dict[str, SampleMessage] = {}
    async with bus.consume(INGEST_QUEUE, prefetch=500) as consumer:
        async with asyncio.timeout(30):
            while len(found) < count:
                delivery = await consumer.receive()
                message = decode(delivery.message.body, delivery.message.content_type)
                found.setdefault(message.message_id, message)
                await consumer.ack([delivery])
    return list(found.values())


async def test_killed_while_it_publishes_no_tick_is_lost_or_numbered_twice(
    broker_url: str, tmp_path: Path
) -> None:
    directory = tmp_path / "spool"
    chance = random.Random(7)
    async with rabbit_bus(broker_url, name="test") as bus:
        await bus.declare(topology())
        for _ in range(4):
            async with agent(directory, broker_url=broker_url) as running:
                await running.until_ready()
                reached = own_series(running, "vervet_agent_messages_published_total")
                goal = reached + chance.randrange(2, 9)
                await eventually(partial(has_published, running, goal))
                running.kill()
        async with agent(directory, broker_url=broker_url) as running:
            await running.until_ready()
            await eventually(lambda: own_series(running, "vervet_agent_spool_messages") <= 1)
        books = closed_books(directory)
        messages = await stored(bus, books.confirmed.messages)
    assert sorted(message.seq for message in messages) == list(range(1, len(messages) + 1))
    assert len({message.epoch for message in messages}) == 1
    # On a busy machine the last ticks may still wait in the spool when the agent has to end.
    assert books.generated.messages == books.confirmed.messages + books.waiting.messages
    assert books.dropped == {}


def closed_books(directory: Path) -> SpoolStats:
    spool = reopened(directory)
    try:
        return spool.stats()
    finally:
        spool.close()


async def test_a_broker_that_dies_and_returns_gets_every_message_in_order(
    own_broker: Broker, tmp_path: Path
) -> None:
    directory = tmp_path / "spool"
    url = own_broker.url_of("/")
    async with rabbit_bus(url, name="test") as bus:
        await bus.declare(topology())
    async with agent(directory, broker_url=url) as running:
        await running.until_ready()
        await eventually(partial(has_published, running, 3))
        own_broker.kill()
        await running.until_waiting_for("broker")
        await eventually(lambda: own_series(running, "vervet_agent_spool_messages") >= 5)
        own_broker.start()
        await running.until_ready()
        await eventually(lambda: own_series(running, "vervet_agent_spool_messages") <= 1)
    books = closed_books(directory)
    assert books.dropped == {}
    async with rabbit_bus(url, name="test") as bus:
        messages = await stored(bus, books.confirmed.messages)
    assert [message.seq for message in messages] == list(range(1, len(messages) + 1))


async def test_with_all_collectors_it_stays_within_its_budget_of_memory(
    broker_url: str, tmp_path: Path
) -> None:
    async with rabbit_bus(broker_url, name="test") as bus:
        await bus.declare(topology())
    async with agent(tmp_path / "spool", broker_url=broker_url) as running:
        await running.until_ready()
        await eventually(partial(has_published, running, 20))
        process = psutil.Process(running.process.pid)
        assert process.memory_info().rss < BUDGET_BYTES
        ticks = own_series(running, "vervet_agent_message_seq")
        times = process.cpu_times()
        assert ticks >= 20
        assert times.user + times.system < 10, "seconds, its start included"


MAIL = """
from services.agent.collectors import Host, Options, Reading, collector, gauge

QUEUED = gauge("mail_queued", "Messages that wait for delivery.", "queue")


@collector("mail")
def mail(host: Host, options: Options):
    yield QUEUED(3, "active")
"""


def install(site: Path, name: str, module: str) -> None:
    """A package with one collector, as pip lays it down."""
    (site / f"{name}.py").write_text(module)
    information = site / f"{name}-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(f"[vervet.collectors]\n{name} = {name}\n")


async def test_a_collector_of_another_package_appears_and_a_broken_one_hurts_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    install(site, "mailcollector", MAIL)
    install(site, "brokencollector", "raise RuntimeError('from another age')")
    monkeypatch.setenv("PYTHONPATH", str(site))
    async with agent(tmp_path / "spool", "--collectors-mail-interval", "200ms") as running:
        await running.until_ready()
        await eventually(lambda: own_series(running, "vervet_agent_message_seq") >= 2)
    (first, *_) = waiting(tmp_path / "spool")
    (frame,) = (frame for frame in first.frames if frame.collector == "mail")
    assert decode_layout(frame.layout)[0].labels == {"queue": "active"}
    assert from_little("d", frame.values)[0] == 3
    assert "from another age" in running.text()


async def test_in_a_container_it_reads_the_host_under_its_root(tmp_path: Path) -> None:
    host = tmp_path / "host"
    (host / "proc").mkdir(parents=True)
    for name in ("stat", "loadavg", "meminfo", "diskstats"):
        shutil.copy(Path("/proc") / name, host / "proc" / name)
    async with agent(tmp_path / "spool", "--rootfs", str(host)) as running:
        await running.until_ready()
        await eventually(lambda: own_series(running, "vervet_agent_message_seq") >= 2)
    (first, *_) = waiting(tmp_path / "spool")
    collectors = {frame.collector for frame in first.frames}
    assert "cpu" in collectors
    assert "collector failed" in running.text()
    assert str(host / "proc/self/net/dev") in running.text()
