"""The publisher, a process of its own: for each count on standard input, publish so many messages.

Run as `python -m bench.publisher SAMPLES HOSTS FIRST_MS`, with VERVET_BROKER_URL. Answers every
line with one, once all are confirmed. Encoding, event loop and bus are the product's.
"""

import asyncio
import os
import sys

from bench.hosts import Fleet, Load
from schemas.topology import INTAKE
from services.bus import Bus
from services.bus_rabbit import rabbit_bus
from services.cli import run_loop

AT_ONCE = 256
"""Publishes under way, about what a few hundred agents have; the bus bounds them as well."""


async def main(load: Load) -> None:
    fleet = Fleet(load)
    async with rabbit_bus(os.environ["VERVET_BROKER_URL"], name="bench") as bus:
        while line := await asyncio.to_thread(sys.stdin.readline):
            await publish(bus, fleet, int(line))
            print("published", flush=True)


async def publish(bus: Bus, fleet: Fleet, count: int) -> None:
    """Publish as fast as the broker confirms; raises what the bus raises."""
    messages = fleet.messages(count)

    async def publish_some() -> None:
        for key, message in messages:
            await bus.publish(INTAKE, key, message)

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(publish_some())


if __name__ == "__main__":
    run_loop(main(Load.of(*map(int, sys.argv[1:4]))))
