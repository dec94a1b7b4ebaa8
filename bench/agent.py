"""The benchmark `agent`: what an agent with all its collectors costs the host that it watches.

One `vervet agent` reads this host every 5 s and publishes to RabbitMQ with confirms. Afterwards its
messages are taken from the queue and counted: each tick has to be there.
"""

import asyncio
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import psutil

from bench.figures import Failed, Figure, Options
from bench.processes import cpu_s
from bench.product import vervet
from schemas.layouts import decode_layout
from schemas.samples import SampleMessage, decode
from schemas.topology import INGEST_QUEUE, topology
from services.bus import Bus, Unavailable
from services.bus_rabbit import rabbit_bus
from tests.stack.process import Say, is_alive, tail
from tests.stack.session import Stack

BENCH = "agent"
INTERVAL_S = 5
WINDOW_S = 60
START_TIMEOUT_S = 30.0
MOST_RESIDENT_MB = 60.0
MOST_CORE_PERCENT = 1.0


@dataclass(frozen=True)
class Window:
    """One span of the agent's life."""

    core_percent: float
    resident_mb: float


async def measure(stack: Stack, say: Say, options: Options) -> list[Figure]:
    """Windows of a minute, one after another, of one agent."""
    runs = options.runs
    with stack.broker().virtual_host() as url, tempfile.TemporaryDirectory() as folder:
        home, log, config = Path(folder) / "home", Path(folder) / "log", Path(folder) / "agent.toml"
        config.touch()
        settings = {
            "VERVET_BROKER_URL": url,
            "VERVET_HOME": str(home),
            "VERVET_CONFIG": str(config),
            "VERVET_INTERVAL": f"{INTERVAL_S}s",
        }
        async with rabbit_bus(url, name="bench") as bus:
            async with asyncio.timeout(START_TIMEOUT_S):
                await declare(bus)
            with vervet(stack, "agent", settings, log) as process:
                await first_messages(bus, process, log)
                windows = [await window(process, say, f"{n + 1} of {runs}") for n in range(runs)]
            messages = await published(bus)
    check(messages, runs)
    newest = messages[-1]
    parameters = {
        "interval_s": INTERVAL_S,
        "collectors": len(newest.frames),
        "samples": sum(len(decode_layout(frame.layout)) for frame in newest.frames),
    }
    core = tuple(one.core_percent for one in windows)
    resident = tuple(one.resident_mb for one in windows)
    return [
        Figure(BENCH, "vervet", "core", core, "%", parameters, MOST_CORE_PERCENT),
        Figure(BENCH, "vervet", "resident", resident, "MB", parameters, MOST_RESIDENT_MB),
    ]


async def window(process: psutil.Process, say: Say, number: str) -> Window:
    """Look at the process for a while."""
    say(f"agent: minute {number}")
    before, began = cpu_s(process.pid), time.monotonic()
    await asyncio.sleep(WINDOW_S)
    used, lasted = cpu_s(process.pid) - before, time.monotonic() - began
    return Window(used / lasted * 100, process.memory_info().rss / 1e6)


async def declare(bus: Bus) -> None:
    """The product's topology, as soon as the broker is connected."""
    while True:
        try:
            return await bus.declare(topology())
        except Unavailable:
            await asyncio.sleep(0.2)


async def first_messages(bus: Bus, process: psutil.Process, log: Path) -> None:
    """Wait until the agent has started and everything in it has run once."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while await bus.depth(INGEST_QUEUE) < 2:
        if time.monotonic() > deadline or not is_alive(process):
            raise Failed(f"no messages from the agent; its log ends:\n{tail(log)}")
        await asyncio.sleep(0.5)


async def published(bus: Bus) -> list[SampleMessage]:
    """Every message in the queue, in order."""
    messages, waiting = [], await bus.depth(INGEST_QUEUE)
    async with bus.consume(INGEST_QUEUE, prefetch=100) as consumer:
        for _ in range(waiting):
            delivery = await consumer.receive()
            messages.append(decode(delivery.message.body, delivery.message.content_type))
            await consumer.ack([delivery])
    return messages


def check(messages: list[SampleMessage], runs: int) -> None:
    """Raises Failed where a tick is missing."""
    numbers = [message.seq for message in messages]
    if any(later != earlier + 1 for earlier, later in pairwise(numbers)):
        raise Failed(f"the agent's messages are not in sequence: {numbers}")
    if len(messages) < runs * WINDOW_S // INTERVAL_S:
        raise Failed(f"{len(messages)} messages in {runs * WINDOW_S} s, one each {INTERVAL_S} s")
