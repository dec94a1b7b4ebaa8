"""A timer that can be rung: loops sleep until their next work is due, and never poll busily."""

import asyncio
from contextlib import suppress
from datetime import datetime, timedelta

SAFETY_POLL = timedelta(seconds=5)
"""At least this often loops look for work that another process recorded and then died."""

MIN_WAIT_S = 0.005
"""Spares a loop from turning for a due time that lies just ahead of the database's clock."""


class Timer:
    """Wakes one loop: when its time has come, when rung, or at the safety poll."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()

    def ring(self) -> None:
        """Wake the loop now, or at its next wait."""
        self._rung.set()

    async def wait(self, now: datetime, due_at: datetime | None) -> None:
        """Returns when rung or due. `now` is the clock's reading that `due_at` is measured by."""
        span = min(due_at - now, SAFETY_POLL) if due_at else SAFETY_POLL
        with suppress(TimeoutError):
            async with asyncio.timeout(max(span.total_seconds(), MIN_WAIT_S)):
                await self._rung.wait()
        self._rung.clear()
