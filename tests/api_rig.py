"""An api over HTTP, and samples in its database."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import httpx
from pydantic import SecretStr

from schemas.layouts import Series
from services.api.service import serve
from services.api.settings import ApiSettings
from services.bus import Bus
from services.clock import now_us
from services.database import open_pool
from services.ingest.batch import Layouts, Window, receive
from services.ingest.store import Store
from services.runtime import Context
from tests.builders import delivery
from tests.processes import eventually, free_port

MINUTE_US = 60_000_000
START_US = now_us() // MINUTE_US * MINUTE_US - 10 * MINUTE_US
LOAD = (
    Series("node_load1", {}, "gauge"),
    Series("node_cpu_seconds_total", {"cpu": "0", "mode": "idle"}, "counter"),
)


@asynccontextmanager
async def serving(
    bus: Bus, url: str, port: int | None = None, *, until: str = "/-/ready", **settings: Any
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an api that serves. until: what it answers by then."""
    address = f"127.0.0.1:{port or free_port()}"
    context = Context(bus)
    given = ApiSettings(database_url=SecretStr(url), listen=address, **settings)
    async with asyncio.TaskGroup() as group:
        service = group.create_task(serve(given, context))
        async with httpx.AsyncClient(
            base_url=f"http://{address}", timeout=30, trust_env=False
        ) as client:
            await eventually(lambda: answers(client, until))
            yield client
        context.stopping.set()
        await service


async def answers(client: httpx.AsyncClient, path: str) -> bool:
    try:
        return (await client.get(path)).status_code == 200
    except httpx.TransportError:
        return False


async def store(url: str, *messages: Any) -> None:
    async with open_pool(url) as pool:
        layouts = Layouts()
        bounds = Window(timedelta(days=9), timedelta(days=1)).bounds_us(now_us())
        await Store(pool).write([receive(delivery(m), m, layouts, bounds) for m in messages])
