"""Parameters of Prometheus' HTTP API: from the query string and a form body alike."""

import math
import re
from datetime import UTC, datetime, timedelta

from fastapi import Request
from starlette.datastructures import QueryParams

from engine.promql import QueryError
from schemas.durations import parse_duration
from services.clock import microseconds

MAX_BODY_BYTES = 1024**2
"""A form holds one expression; Prometheus' own clients stay far below."""

MAX_SECONDS = 253_402_300_799.0
"""The year 9999; beyond, an instant is a mistake."""


class Parameters:
    """What a request gives, by name; a body's values come before the query string's."""

    def __init__(self, *sources: QueryParams) -> None:
        self._sources = sources

    @classmethod
    async def of(cls, request: Request) -> "Parameters":
        """Of a request; a POST's body is a URL-encoded form. Raises QueryError past the bound."""
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                raise QueryError(f"a body of more than {MAX_BODY_BYTES} bytes")
        return cls(QueryParams(body.decode("utf-8", "replace")), request.query_params)

    def all(self, name: str) -> list[str]:
        return [str(value) for source in self._sources for value in source.getlist(name)]

    def first(self, name: str) -> str | None:
        return next(iter(self.all(name)), None)

    def required(self, name: str) -> str:
        """Raises QueryError where it is missing or empty."""
        value = self.first(name)
        if not value:
            raise QueryError(f"invalid parameter {name!r}: it is missing")
        return value

    def instant_us(self, name: str, default: int) -> int:
        value = self.first(name)
        return default if value is None else instant_us(value)

    def span(self, name: str, default: timedelta) -> timedelta:
        value = self.first(name)
        return default if value is None else timedelta(microseconds=span_us(value))

    def range_us(self) -> tuple[int | None, int | None]:
        start, end = self.first("start"), self.first("end")
        return (
            None if start is None else instant_us(start),
            None if end is None else instant_us(end),
        )


_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)\Z")


def instant_us(text: str) -> int:
    """Microseconds since 1970 of unix seconds or RFC 3339. Raises QueryError."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if abs(number) <= MAX_SECONDS:
        return round(number * 1_000_000)
    if _RFC3339.match(text):
        try:
            return microseconds(datetime.fromisoformat(text.upper()).astimezone(UTC))
        except (ValueError, OverflowError):
            pass
    raise QueryError(f"cannot parse {text[:60]!r} to a valid timestamp")


def span_us(text: str) -> int:
    """Microseconds of a number of seconds or a Prometheus duration. Raises QueryError."""
    try:
        number = float(text)
    except ValueError:
        try:
            return parse_duration(text) // timedelta(microseconds=1)
        except ValueError:
            number = math.nan
    if abs(number) > MAX_SECONDS or number != number:
        raise QueryError(f"cannot parse {text[:60]!r} to a valid duration")
    return round(number * 1_000_000)
