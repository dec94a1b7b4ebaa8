"""Errors over HTTP: Prometheus' envelope under /api/v1, RFC 9457 problem documents elsewhere."""

from http import HTTPStatus

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from engine.promql.errors import QueryError
from services.database import Verdict, verdict

log = structlog.get_logger("vervet.api")

RETRY_AFTER_S = "2"


def prometheus_error(status: int, kind: str, text: str) -> JSONResponse:
    """The envelope of Prometheus' HTTP API."""
    body = {"status": "error", "errorType": kind, "error": text}
    return JSONResponse(body, status, headers=_retry(status))


def problem(status: int, detail: str) -> JSONResponse:
    """An RFC 9457 problem document; its type is the status, which says all there is to say."""
    body = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
    }
    return JSONResponse(body, status, headers=_retry(status), media_type="application/problem+json")


def _retry(status: int) -> dict[str, str]:
    return {"Retry-After": RETRY_AFTER_S} if status == 503 else {}


_KINDS = {404: "not_found", 405: "bad_data", 422: "execution", 503: "unavailable"}


def answer(request: Request, status: int, text: str) -> JSONResponse:
    """The error in the format of the API that was asked."""
    if request.url.path.startswith("/api/v1/"):
        return prometheus_error(status, _KINDS.get(status, "bad_data"), text)
    return problem(status, text)


def install(app: FastAPI) -> None:
    """Give `app` an answer for everything that can go wrong in a request."""

    @app.exception_handler(QueryError)
    async def wrong_query(request: Request, error: QueryError) -> JSONResponse:
        return answer(request, 400, str(error))

    @app.exception_handler(RequestValidationError)
    async def wrong_request(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return answer(request, 400, f"{first['loc'][-1]}: {first['msg']}")

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        return answer(request, error.status_code, str(error.detail))

    @app.exception_handler(TimeoutError)
    async def too_slow(request: Request, error: TimeoutError) -> JSONResponse:
        if request.url.path.startswith("/api/v1/"):
            return prometheus_error(503, "timeout", "the query took too long")
        return problem(503, "the database took too long")

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        if verdict(error) is Verdict.RETRY:
            return answer(request, 503, "the database does not answer; try again")
        log.error("a request failed", path=request.url.path, exc_info=error)
        return answer(request, 500, "an error of the server; its log says more")
