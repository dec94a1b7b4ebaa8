"""The bus of a process that has no broker: an agent that only keeps what it reads."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager

from schemas.topology import Topology
from services.bus import Consumer, Message, Unavailable

WHY = "no broker URL is set"


class NoBus:
    """Every call raises Unavailable; no socket is opened."""

    async def publish(self, exchange: str, key: str, message: Message) -> None:
        raise Unavailable(WHY)

    def consume(self, queue: str, *, prefetch: int) -> AbstractAsyncContextManager[Consumer]:
        raise Unavailable(WHY)

    def subscribe(
        self, exchange: str, keys: Sequence[str], *, max_length: int
    ) -> AbstractAsyncContextManager[Consumer]:
        raise Unavailable(WHY)

    async def declare(self, topology: Topology) -> None:
        raise Unavailable(WHY)

    async def check(self, topology: Topology) -> None:
        raise Unavailable(WHY)

    async def depth(self, queue: str) -> int:
        raise Unavailable(WHY)

    def state(self) -> str | None:
        return WHY
