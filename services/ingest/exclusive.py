"""Transactions that lock others out: short, and given up rather than waited for."""

import asyncio
from collections.abc import Awaitable, Callable

import asyncpg

from services.database import Connection, Pool

LOCK_TIMEOUTS_MS = (50, 100, 200, 400, 800)
"""How long a try waits for those who use the table, try by try; who comes then waits as long.

All are below PostgreSQL's deadlock_timeout: it is the job that gives way.
"""

PAUSE_S = 1.0
"""Between two tries, so that those who waited behind one are through before the next."""


async def exclusively(pool: Pool, work: Callable[[Connection], Awaitable[bool]]) -> bool:
    """What `work` says after its transaction, or False when its locks are not to be had.

    It may be begun several times; it rolls back what it did by raising.
    """
    for timeout_ms in LOCK_TIMEOUTS_MS:
        try:
            async with pool.acquire() as connection, connection.transaction():
                await connection.execute(f"set local lock_timeout = {timeout_ms}")
                return await work(connection)
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
            await asyncio.sleep(PAUSE_S)
    return False
