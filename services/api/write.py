"""POST /api/v1/write: Prometheus remote write 1.0.

The answers tell a sender what to do: 2xx, forget it; 4xx, it will never be taken; 5xx, send it
again. https://prometheus.io/docs/specs/prw/remote_write_spec/#responses
"""

from collections.abc import Sequence

from fastapi import Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import Counter

from services.api.errors import RETRY_AFTER_S
from services.api.intake import Intake, Outcome
from services.api.remote_write import Malformed, TooLarge
from services.api.state import State
from services.bus import BusError, Refused

PATH = "/api/v1/write"

REQUESTS = Counter("vervet_write_requests_total", "Requests of remote write", ["status"])

MESSAGE = "prometheus.WriteRequest"
"""The protobuf message of version 1.0; a content type that names none means it."""


class Wrong(Exception):
    """A request that is refused before it is read: the status, and why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


async def write(request: Request) -> Response:
    """Take samples; answers once the broker has them all."""
    state: State = request.app.state.vervet
    response = await _answer(request, state.intake)
    REQUESTS.labels(str(response.status_code)).inc()
    return response


async def _answer(request: Request, intake: Intake | None) -> Response:
    try:
        if intake is None:
            raise Wrong(404, "remote write is off; VERVET_REMOTE_WRITE=true turns it on")
        max_bytes = intake.bounds.max_bytes
        _check_headers(request, max_bytes)
        if intake.turns.locked():
            raise Wrong(503, "too many requests at once; send it again")
        async with intake.turns:
            return _said(await intake.take(await _body(request, max_bytes)))
    except (Wrong, Malformed, TooLarge, BusError) as error:
        return _refusal(error)


def _refusal(error: Exception) -> Response:
    status = {Malformed: 400, TooLarge: 413, Refused: 400}.get(type(error), 503)
    if isinstance(error, Wrong):
        status = error.status
    headers = {"Retry-After": RETRY_AFTER_S} if status == 503 else None
    return PlainTextResponse(f"{error}\n", status, headers)


def _check_headers(request: Request, max_bytes: int) -> None:
    """Raises Wrong unless this is remote write 1.0."""
    headers = request.headers
    kind, _, parameters = headers.get("content-type", "").partition(";")
    _, _, message = parameters.strip().partition("=")
    if kind.strip().lower() != "application/x-protobuf" or (message or MESSAGE) != MESSAGE:
        raise Wrong(415, f"expected content type application/x-protobuf with {MESSAGE}")
    if headers.get("content-encoding", "").lower() != "snappy":
        raise Wrong(415, "expected content encoding snappy")
    version = headers.get("x-prometheus-remote-write-version", "0.1.0")
    if not version.startswith(("0.", "1.")):
        raise Wrong(400, f"remote write {version[:20]}; expected 0.1.0")
    if int(headers.get("content-length", 0)) > max_bytes:
        raise TooLarge(f"a body of {headers['content-length']} bytes; at most {max_bytes}")


async def _body(request: Request, max_bytes: int) -> bytes:
    """The body. Raises TooLarge as soon as it is."""
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > max_bytes:
            raise TooLarge(f"a body of more than {max_bytes} bytes")
        chunks.append(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _said(outcome: Outcome) -> Response:
    if not outcome.refused:
        return Response(status_code=204)
    return PlainTextResponse(_told(outcome.refused, outcome.stored, outcome.reasons), 400)


def _told(refused: int, stored: int, reasons: Sequence[str]) -> str:
    """One line: a sender logs the first only."""
    more = "; …" if refused > len(reasons) else ""
    return f"{refused} samples refused, {stored} stored: {'; '.join(reasons)}{more}\n"
