"""Reading what is stored, once."""

from collections.abc import Sequence

from engine.promql import Block, Matcher
from services.database import Pool
from services.frames import Reader


async def read(pool: Pool, matchers: Sequence[Matcher], start_us: int, end_us: int) -> list[Block]:
    """`Snapshot.read` by a reader that nobody asks a second time."""
    async with Reader(pool).snapshot() as snapshot:
        return await snapshot.read(matchers, start_us, end_us)
