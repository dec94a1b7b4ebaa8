"""Errors over HTTP: Prometheus' envelope under /api/v1, RFC 9457 problem documents elsewhere."""

from http import HTTPStatus
from typing import Any

import asyncpg
import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException

from engine.promql.errors import QueryError
from services.database import ERRORS, Verdict, verdict

log = structlog.get_logger("vervet.api")

RETRY_AFTER_S = "2"

CLIENT_CLOSED_REQUEST = 499
"""The status that nginx invented, and Prometheus uses, for a client that went away."""


class Refused(Exception):
    """A request that is not answered. `kind` is Prometheus' errorType; the text is shown."""

    kind = "bad_data"
    status = 400


class BadData(Refused):
    """A parameter or an expression that can't be used."""


class Unprocessable(Refused):
    """An expression that can't be answered: the data forbids it, or it is past a bound."""

    kind, status = "execution", 422


class TimedOut(Refused):
    """A query that took too long, in the queue or afterwards."""

    kind, status = "timeout", 503


class Canceled(Refused):
    """A query whose client went away."""

    kind, status = "canceled", CLIENT_CLOSED_REQUEST


class Busy(Refused):
    """More queries at once than may wait."""

    kind, status = "unavailable", 503


class NotFound(Refused):
    """A thing that is not there."""

    kind, status = "not_found", 404


def prometheus_error(status: int, kind: str, text: str) -> JSONResponse:
    """The envelope of Prometheus' HTTP API."""
    body = {"status": "error", "errorType": kind, "error": text}
    return JSONResponse(body, status, headers=_retry(status))


def problem(status: int, detail: str) -> JSONResponse:
    """An RFC 9457 problem document; its type is the status, which says all there is to say."""
    body: dict[str, Any] = {"type": "about:blank", "status": status, "detail": detail}
    if status != CLIENT_CLOSED_REQUEST:
        body["title"] = HTTPStatus(status).phrase
    return JSONResponse(body, status, headers=_retry(status), media_type="application/problem+json")


def _retry(status: int) -> dict[str, str]:
    return {"Retry-After": RETRY_AFTER_S} if status == 503 else {}


_KINDS = {404: "not_found", 422: "execution", 500: "internal", 503: "unavailable"}


def answer(request: Request, status: int, text: str, kind: str | None = None) -> Response:
    """The error in the format of the API that was asked."""
    path = request.url.path
    if path.startswith("/api/v1/"):
        return prometheus_error(status, kind or _KINDS.get(status, "bad_data"), text)
    if path == "/federate":
        return PlainTextResponse(f"{text}\n", status, headers=_retry(status))
    return problem(status, text)


def install(app: FastAPI) -> None:
    """Give `app` an answer for everything that can go wrong in a request."""

    @app.exception_handler(Refused)
    async def refusal(request: Request, error: Refused) -> Response:
        return answer(request, error.status, str(error), error.kind)

    @app.exception_handler(QueryError)
    async def wrong_query(request: Request, error: QueryError) -> Response:
        return answer(request, 400, str(error))

    @app.exception_handler(RequestValidationError)
    async def wrong_request(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return answer(request, 400, f"{first['loc'][-1]}: {first['msg']}")

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        told = answer(request, error.status_code, str(error.detail))
        told.headers.update(error.headers or {})  # of a 405, which methods there are
        return told

    @app.exception_handler(TimeoutError)
    async def too_slow(request: Request, error: TimeoutError) -> Response:
        return answer(request, 503, "the database took too long", TimedOut.kind)

    @app.exception_handler(asyncpg.QueryCanceledError)
    async def stopped(request: Request, error: asyncpg.QueryCanceledError) -> Response:
        return answer(request, 503, "the database took too long", TimedOut.kind)

    @app.exception_handler(asyncpg.DataError)
    async def unfit(request: Request, error: asyncpg.DataError) -> Response:
        return answer(request, 400, "a text holds what can't be stored, such as a zero byte")

    async def failed(request: Request, error: Exception) -> Response:
        if verdict(error) is Verdict.RETRY:
            return answer(request, 503, "the database does not answer; try again")
        log.error("a request failed", path=request.url.path, exc_info=error)
        return answer(request, 500, "an error of the server; its log says more")

    # What is not expected is shown by the web server too; the database's errors are.
    for kind in (*ERRORS, Exception):
        app.add_exception_handler(kind, failed)
