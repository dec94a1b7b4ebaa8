"""The spool as the event loop sees it: every call is made by one hand, in order."""

import asyncio
from collections.abc import Callable, Collection, Sequence
from datetime import timedelta
from pathlib import Path

from services.agent.collectors import AgentFacts
from services.agent.hand import Hand
from services.agent.records import Record
from services.agent.spool import Spool, open_spool
from services.clock import now_us


class Store:
    """An open spool and its hand. `arrived` is set whenever there may be something to take."""

    def __init__(self, hand: Hand, spool: Spool, facts: AgentFacts) -> None:
        self._hand = hand
        self._spool = spool
        self._facts = facts
        self.epoch = spool.epoch
        self.arrived = asyncio.Event()
        self.arrived.set()

    async def append(self, make: Callable[[str, int], Sequence[Record]]) -> None:
        """Store what `make` gives for the epoch and the next number; on disk when this returns."""

        def work() -> None:
            self._spool.append(make(self._spool.epoch, self._spool.next_seq), now_us())
            self._facts.spool = self._spool.stats()

        await self._hand.do(work)
        self.arrived.set()

    async def take(self, window: int, max_bytes: int) -> list[Record]:
        """As Spool.take; clears `arrived` first."""
        self.arrived.clear()
        return await self._hand.do(lambda: self._spool.take(window, max_bytes))

    async def settle(self, confirmed: Collection[int], refused: Collection[int]) -> None:
        """As Spool.settle."""

        def work() -> None:
            self._spool.settle(confirmed, refused)
            self._facts.spool = self._spool.stats()

        await self._hand.do(work)

    async def close(self) -> None:
        await self._hand.do(self._spool.close)
        self._hand.rest()


async def open_store(
    directory: Path, facts: AgentFacts, *, max_bytes: int, max_age: timedelta
) -> Store:
    """The spool in `directory`, opened. Raises SpoolInUse, OSError."""
    hand = Hand("spool")
    try:
        spool = await hand.do(lambda: open_spool(directory, max_bytes=max_bytes, max_age=max_age))
    except BaseException:
        hand.rest()
        raise
    facts.spool = spool.stats()
    return Store(hand, spool, facts)
