"""An api that takes remote write, on a bus whose samples are stored as they come."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import httpx
import pytest
from pydantic import SecretStr

import services.ingest.service
from schemas.topology import topology
from services.bus import Bus
from services.bus_memory import memory_bus
from services.database import Pool, open_pool
from services.ingest.settings import IngestSettings
from services.runtime import Context
from tests.api_rig import serving


@pytest.fixture
async def bus() -> AsyncIterator[Bus]:
    """A bus whose samples nobody evaluates."""
    async with memory_bus() as opened:
        await opened.declare(topology(0))
        yield opened


@pytest.fixture
async def pool(bus: Bus, database_url: str) -> AsyncIterator[Pool]:
    """Connections to the database that ingest fills meanwhile."""
    settings = IngestSettings(
        database_url=SecretStr(database_url), batch_age=timedelta(milliseconds=20)
    )
    context = Context(bus)
    async with open_pool(database_url) as opened, asyncio.TaskGroup() as group:
        group.create_task(services.ingest.service.serve(settings, context))
        yield opened
        context.stopping.set()


@pytest.fixture
async def client(bus: Bus, pool: Pool, database_url: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the api."""
    async with serving(bus, database_url) as opened:
        yield opened
