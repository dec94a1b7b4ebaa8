"""Make database and broker hold what this version needs: the first step of every set-up."""

import asyncio

import structlog
from pydantic import Field

from schemas.topology import DEFAULT_PARTITIONS, topology
from services.bus import Bus, BusError, Unavailable
from services.database import SchemaMissing, Verdict, describe, migrate, verdict
from services.runtime import Unable, backoff_s
from services.settings import DatabaseSettings

log = structlog.get_logger("vervet.migrate")

WAIT_S = 120.0
"""How long servers that are just starting are waited for."""


class MigrateSettings(DatabaseSettings):
    """`vervet migrate`."""

    partitions: int = Field(
        DEFAULT_PARTITIONS,
        ge=1,
        le=1024,
        description="evaluator partitions: evaluators that can share the work at most",
    )


class Unprepared(Unable):
    """Database or broker cannot be made to hold it; the text says why."""


async def prepare(
    database_url: str, bus: Bus, *, partitions: int = DEFAULT_PARTITIONS, wait_s: float = WAIT_S
) -> None:
    """Apply missing migrations and declare the topology; again is a no-op. Raises Unprepared."""
    deadline = asyncio.get_running_loop().time() + wait_s
    attempt = 0
    while True:
        try:
            applied = await migrate(database_url)
            await bus.declare(topology(partitions))
            break
        except Exception as error:
            reason = describe(error)
            if not _temporary(error) or asyncio.get_running_loop().time() > deadline:
                raise Unprepared(reason) from error
            log.info("waiting", reason=reason)
        await asyncio.sleep(backoff_s(attempt, most_s=5))
        attempt += 1
    log.info("database and broker are ready", applied=applied)


def _temporary(error: Exception) -> bool:
    if isinstance(error, BusError):
        return isinstance(error, Unavailable)
    return not isinstance(error, SchemaMissing) and verdict(error) is Verdict.RETRY
