"""Fixtures that several tests on real servers share."""

from collections.abc import AsyncIterator

import pytest

from schemas.topology import topology
from services.bus import Bus
from services.bus_memory import memory_bus
from services.database import Pool, open_pool


@pytest.fixture
async def bus() -> AsyncIterator[Bus]:
    """A bus in memory, with one queue for evaluators."""
    async with memory_bus() as opened:
        await opened.declare(topology(1))
        yield opened


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[Pool]:
    """Connections to a migrated database."""
    async with open_pool(database_url) as opened:
        yield opened


@pytest.fixture(params=["timescale_database_url", "plain_database_url"])
def either_database_url(request: pytest.FixtureRequest) -> str:
    """Of a migrated database, with TimescaleDB and without."""
    found: str = request.getfixturevalue(request.param)
    return found


@pytest.fixture
async def pool_of_either(either_database_url: str) -> AsyncIterator[Pool]:
    """Connections to it."""
    async with open_pool(either_database_url, size=16) as opened:
        yield opened
