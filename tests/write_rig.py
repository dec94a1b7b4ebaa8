"""Rig for remote write: an api on a bus whose samples are stored as they come."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import httpx
from pydantic import SecretStr

import services.ingest.service
from services.api.service import serve
from services.api.settings import ApiSettings
from services.bus import Bus
from services.database import Pool, open_pool
from services.ingest.settings import IngestSettings
from services.runtime import Context
from tests.api_rig import answers
from tests.processes import eventually, free_port


@asynccontextmanager
async def storing(bus: Bus, url: str) -> AsyncIterator[Pool]:
    """A pool on the database that ingest fills meanwhile."""
    settings = IngestSettings(database_url=SecretStr(url), batch_age=timedelta(milliseconds=20))
    context = Context(bus)
    async with open_pool(url) as opened, asyncio.TaskGroup() as group:
        group.create_task(services.ingest.service.serve(settings, context))
        yield opened
        context.stopping.set()


@asynccontextmanager
async def api(
    bus: Bus, url: str, port: int | None = None, **settings: Any
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an api that serves."""
    address = f"127.0.0.1:{port or free_port()}"
    context = Context(bus)
    given = ApiSettings(database_url=SecretStr(url), listen=address, **settings)
    async with asyncio.TaskGroup() as group:
        service = group.create_task(serve(given, context))
        async with httpx.AsyncClient(
            base_url=f"http://{address}", timeout=30, trust_env=False
        ) as client:
            await eventually(lambda: answers(client, "/-/ready"))
            yield client
        context.stopping.set()
        await service
