"""The whole agent in this process, on the memory bus: from this host's files to messages."""

import asyncio
import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
from prometheus_client import REGISTRY, generate_latest
from structlog.testing import capture_logs

from schemas.events import AgentStatus, decode_status
from schemas.layouts import decode_layout
from schemas.samples import SampleMessage, decode
from schemas.topology import (
    EVENTS,
    FLEET_QUEUE,
    INGEST_QUEUE,
    INTAKE,
    Binding,
    Exchange,
    Queue,
    Topology,
)
from services.agent import service
from services.agent.collectors import Host, Options, Reading, load
from services.agent.service import serve
from services.agent.settings import AgentSettings
from services.agent.store import open_store
from services.bus import Bus, Delivery, Message, Refused
from services.bus_memory import memory_bus
from services.bus_none import NoBus
from services.runtime import Context, Unable
from tests.processes import eventually

SMALL = Topology(
    exchanges=(Exchange(INTAKE, "fanout"), Exchange(EVENTS, "topic")),
    queues=(Queue(INGEST_QUEUE), Queue(FLEET_QUEUE)),
    bindings=(Binding(INTAKE, INGEST_QUEUE), Binding(EVENTS, FLEET_QUEUE, key="agent.#")),
)


def quick(directory: Path, **changes: Any) -> AgentSettings:
    given = {"instance": "host-1", "interval": timedelta(milliseconds=100)} | changes
    return AgentSettings(spool_directory=directory, **given)


@dataclass
class Received:
    """What a broker's consumers got."""

    samples: list[SampleMessage] = field(default_factory=list)
    statuses: list[AgentStatus] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)

    def take(self, delivery: Delivery) -> None:
        self.keys.add(delivery.routing_key)
        if delivery.exchange == INTAKE:
            body, content_type = delivery.message.body, delivery.message.content_type
            self.samples.append(decode(body, content_type))
        else:
            self.statuses.append(decode_status(delivery.message.body))

    def numbers(self) -> list[int]:
        return [message.seq for message in self.samples]


async def consume(bus: Bus, queue: str, received: Received) -> None:
    async with bus.consume(queue, prefetch=100) as consumer:
        async for delivery in consumer:
            received.take(delivery)
            await consumer.ack([delivery])


@asynccontextmanager
async def broker() -> AsyncIterator[tuple[Bus, Received]]:
    """A memory bus whose queues are consumed."""
    received = Received()
    async with memory_bus() as bus:
        await bus.declare(SMALL)
        tasks = [
            asyncio.create_task(consume(bus, queue, received))
            for queue in (INGEST_QUEUE, FLEET_QUEUE)
        ]
        yield bus, received
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


@asynccontextmanager
async def running(settings: AgentSettings, bus: Bus) -> AsyncIterator[Context]:
    """The agent at work; told to stop at the end, and held to doing so in time."""
    context = Context(bus)
    task = asyncio.create_task(serve(settings, context))
    try:
        yield context
        context.stopping.set()
        told = time.monotonic()
        await asyncio.wait_for(task, 5)
        assert time.monotonic() - told < 2
    finally:
        task.cancel()
        await asyncio.wait({task})


async def test_what_the_host_says_arrives_as_messages_in_order(tmp_path: Path) -> None:
    async with broker() as (bus, received):
        async with running(quick(tmp_path), bus) as context:
            await eventually(lambda: len(received.samples) >= 4)
            assert context.health.is_ready()
        assert received.numbers() == list(range(1, len(received.samples) + 1))
    first, second = received.samples[:2]
    assert first.source == {"job": "node", "instance": "host-1"}
    collectors = {frame.collector for frame in first.frames}
    assert {"cpu", "meminfo", "filesystem", "diskstats", "netdev", "agent"} <= collectors
    assert "uname" in collectors
    assert "uname" not in {frame.collector for frame in second.frames}
    names = {one.name for frame in first.frames for one in decode_layout(frame.layout)}
    assert {"node_cpu_seconds_total", "node_load1", "node_boot_time_seconds"} <= names
    assert {"node_scrape_collector_success", "vervet_agent_up"} <= names
    assert "node.host-1" in received.keys


async def test_it_says_hello_and_goodbye(tmp_path: Path) -> None:
    async with broker() as (bus, received):
        async with running(quick(tmp_path), bus):
            await eventually(lambda: bool(received.samples))
        await eventually(lambda: len(received.statuses) == 2)
    hello, goodbye = received.statuses
    assert (hello.state, goodbye.state) == ("started", "stopping")
    assert hello.epoch == received.samples[0].epoch
    assert hello.interval_s == 0.1
    assert hello.version
    assert hello.at < goodbye.at


async def test_numbers_go_on_after_a_restart(tmp_path: Path) -> None:
    async with broker() as (bus, received):
        for wanted in (3, 6):
            async with running(quick(tmp_path), bus):
                await eventually(partial(lambda least: len(received.samples) >= least, wanted))
        assert received.numbers() == list(range(1, len(received.samples) + 1))
        assert len({message.epoch for message in received.samples}) == 1


async def test_without_a_broker_it_reads_and_keeps_and_says_so(tmp_path: Path) -> None:
    with capture_logs() as logs:
        async with running(quick(tmp_path), NoBus()) as context:
            await eventually(lambda: own_metric("vervet_agent_spool_messages") >= 3)
            assert context.health.is_ready()
            page = generate_latest(REGISTRY).decode()
    assert 'vervet_agent_samples_dropped_total{reason="full"} 0.0' in page
    assert any("nothing is sent" in line["event"] for line in logs)
    assert "vervet_agent" not in generate_latest(REGISTRY).decode()
    async with broker() as (bus, received):
        async with running(quick(tmp_path), bus):
            await eventually(lambda: len(received.samples) > 4)
        assert received.numbers() == list(range(1, len(received.samples) + 1))


def own_metric(name: str) -> float:
    return REGISTRY.get_sample_value(name) or 0.0


async def test_a_broker_that_is_away_is_waited_for_and_nothing_is_lost(tmp_path: Path) -> None:
    async with memory_bus() as away:  # without a topology: everything is unroutable
        async with running(quick(tmp_path), away) as context:
            await eventually(lambda: "broker" in context.health.reasons())
            await eventually(lambda: own_metric("vervet_agent_spool_messages") >= 3)
            await away.declare(SMALL)
            received = Received()
            tasks = [
                asyncio.create_task(consume(away, queue, received))
                for queue in (INGEST_QUEUE, FLEET_QUEUE)
            ]
            await eventually(lambda: len(received.samples) >= 4)
            await eventually(context.health.is_ready)
        assert received.numbers() == list(range(1, len(received.samples) + 1))
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def test_the_json_twin_can_be_chosen(tmp_path: Path) -> None:
    async with broker() as (bus, received), running(quick(tmp_path, format="json"), bus):
        await eventually(lambda: len(received.samples) >= 2)
    assert {frame.collector for frame in received.samples[1].frames} >= {"cpu", "loadavg"}


async def test_an_instance_of_any_text_is_a_label_and_a_key(tmp_path: Path) -> None:
    async with broker() as (bus, received):
        settings = quick(tmp_path, instance="a host.#*", labels={"site": "Zürich"})
        async with running(settings, bus):
            await eventually(lambda: bool(received.samples))
    assert received.samples[0].source == {
        "job": "node",
        "instance": "a host.#*",
        "site": "Zürich",
    }
    assert "node.a host___" in received.keys


async def test_each_collector_keeps_its_own_interval(tmp_path: Path) -> None:
    tables = {"cpu": {"interval": "300ms"}, "netdev": {"enabled": False}}
    async with broker() as (bus, received), running(quick(tmp_path, collectors=tables), bus):
        await eventually(lambda: len(received.samples) >= 7)
    seen = ["cpu" in {frame.collector for frame in message.frames} for message in received.samples]
    assert seen[0]
    assert 1 < sum(seen) < len(seen), "a busy machine may skip ticks, but not make more of them"
    assert all(f.collector != "netdev" for message in received.samples for f in message.frames)


async def test_a_collector_that_hangs_does_not_keep_it_from_stopping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, back = threading.Event(), threading.Event()

    def hanging(host: Host, options: Options) -> list[Reading]:
        asked.set()
        back.wait(20)
        return []

    stuck = replace(load()["loadavg"], read=hanging)
    monkeypatch.setattr(service, "load", lambda: {**load(), "loadavg": stuck})
    try:
        async with running(quick(tmp_path), NoBus()):
            await eventually(asked.is_set)
    finally:
        back.set()


async def test_a_hello_that_is_refused_does_not_keep_samples_from_being_sent(
    tmp_path: Path,
) -> None:
    async with broker() as (bus, received):
        publish = bus.publish

        async def refusing(exchange: str, key: str, message: Message) -> None:
            if exchange == EVENTS:
                raise Refused("no permission")
            await publish(exchange, key, message)

        bus.publish = refusing  # type: ignore[method-assign]
        with capture_logs() as logs:
            async with running(quick(tmp_path), bus) as context:
                await eventually(lambda: len(received.samples) >= 3)
                assert context.health.is_ready()
    assert sum(line["event"] == "hello refused" for line in logs) == 1


def test_it_loads_no_servers_libraries() -> None:
    program = (
        "import sys, services.cli, services.agent.service, services.bus_rabbit;"
        "print(*{'numpy', 'asyncpg', 'fastapi', 'promql_parser', 'jinja2'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


async def test_a_second_agent_on_one_spool_is_told_so(tmp_path: Path) -> None:
    async with running(quick(tmp_path), NoBus()) as context:
        await eventually(context.health.is_ready)
        with pytest.raises(Unable, match="in use by the agent with process id"):
            await serve(quick(tmp_path), Context(NoBus()))


async def test_a_spool_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unable, match="--spool-directory"):
        await serve(quick(tmp_path / "file" / "spool"), Context(NoBus()))


async def test_a_disk_that_is_full_at_the_start_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = [True]

    async def sometimes(*arguments: Any, **bounds: Any) -> Any:
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return await open_store(*arguments, **bounds)

    monkeypatch.setattr(service, "open_store", sometimes)
    async with running(quick(tmp_path), NoBus()) as context:
        await eventually(lambda: "No space left" in context.health.reasons().get("spool", ""))
        full.clear()
        await eventually(context.health.is_ready)


async def test_it_can_be_stopped_while_it_waits_for_disk_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(service, "open_store", never)
    async with running(quick(tmp_path), cast(Bus, NoBus())) as context:
        await eventually(lambda: "spool" in context.health.reasons())
