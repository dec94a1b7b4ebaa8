"""Fixtures that several tests on real servers share."""

from collections.abc import AsyncIterator

import pytest

from services.database import Pool, open_pool


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
