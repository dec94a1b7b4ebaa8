"""Large answers on their way: bounded in bytes and in time, since a client may read slowly or not
at all, and what it does not read stays in memory."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import structlog
from fastapi import Response
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from services.api.errors import Busy

log = structlog.get_logger("vervet.api")

JSON = "application/json"

LARGE_BYTES = 2 * 1024**2
"""From here on an answer is sent piece by piece, as the client reads it."""

MAX_BYTES = 512 * 1024**2
"""Large answers that are being sent, all together; one more is refused."""

TIMEOUT_S = 60.0
"""Time that a large answer may take to be sent; then the connection is closed."""


class Outgoing:
    """The large answers of one process that are being sent."""

    def __init__(self) -> None:
        self.bytes = 0

    def response(self, pieces: Sequence[bytes]) -> Response:
        """A response of these pieces. Raises Busy where too much is being sent already."""
        size = sum(map(len, pieces))
        if size < LARGE_BYTES:
            return Response(b"".join(pieces), media_type=JSON)
        if self.bytes and self.bytes + size > MAX_BYTES:
            raise Busy(f"large answers of {self.bytes:,} bytes are being sent; come again")
        return _Large(self, pieces, size)


class _Large(StreamingResponse):
    def __init__(self, outgoing: Outgoing, pieces: Sequence[bytes], size: int) -> None:
        super().__init__(_each(pieces), media_type=JSON, headers={"Content-Length": str(size)})
        self._outgoing, self._size = outgoing, size

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._outgoing.bytes += self._size
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await super().__call__(scope, receive, send)
        except TimeoutError:
            log.warning("a client read too slowly", path=scope["path"], bytes=self._size)
        finally:
            self._outgoing.bytes -= self._size


async def _each(pieces: Sequence[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
