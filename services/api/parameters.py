"""Parameters of Prometheus' HTTP API: from the query string and a form body alike."""

import math
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from fastapi import Request
from starlette.datastructures import QueryParams

from schemas.durations import parse_duration
from services.api.errors import BadData
from services.clock import microseconds

MAX_BODY_BYTES = 256 * 1024
"""A form holds one expression, at worst twelve bytes for each of its characters; to decode more
would keep the event loop from others."""

MAX_FIELDS = 1000
"""Parameters in a form; reading a million of them would take a second."""

MAX_SECONDS = 253_402_300_799.0
"""The year 9999; beyond, an instant is a mistake."""

T = TypeVar("T")


class Parameters:
    """What a request gives, by name; a body's values come before the query string's.

    An empty value counts as none, as in Prometheus. All of it raises BadData, which names the
    parameter.
    """

    def __init__(self, *sources: QueryParams) -> None:
        self._values: dict[str, list[str]] = {}
        for source in sources:
            for name, value in source.multi_items():
                self._values.setdefault(name, []).append(value)

    @classmethod
    async def of(cls, request: Request) -> "Parameters":
        """Of a request; a POST's body is a URL-encoded form."""
        if request.method != "POST":
            return cls(request.query_params)
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                raise BadData(f"a body of more than {MAX_BODY_BYTES} bytes")
        if body.count(b"&") >= MAX_FIELDS:
            raise BadData(f"a form of more than {MAX_FIELDS} parameters")
        return cls(QueryParams(body.decode("utf-8", "replace")), request.query_params)

    def all(self, name: str) -> list[str]:
        return self._values.get(name, [])

    def first(self, name: str) -> str | None:
        return next(iter(self.all(name)), None) or None

    def read(self, name: str, convert: Callable[[str], T]) -> T:
        """What `convert` makes of the parameter, which may be missing: then of ""."""
        try:
            return convert(self.first(name) or "")
        except ValueError as error:
            raise BadData(f'invalid parameter "{name}": {error}') from error

    def optional(self, name: str, convert: Callable[[str], T]) -> T | None:
        """What `convert` makes of the parameter, None where it is missing."""
        return None if self.first(name) is None else self.read(name, convert)

    def instant_us(self, name: str, default: int) -> int:
        found = self.optional(name, instant_us)
        return default if found is None else found

    def span(self, name: str, default: timedelta) -> timedelta:
        found = self.optional(name, span_us)
        return default if found is None else timedelta(microseconds=found)

    def range_us(self) -> tuple[int | None, int | None]:
        """`start` and `end`, where they are given."""
        start, end = self.optional("start", instant_us), self.optional("end", instant_us)
        if start is not None and end is not None and end < start:
            raise BadData('invalid parameter "end": end timestamp must not be before start time')
        return start, end

    def limit(self) -> int:
        """`limit`; 0 is none."""
        return self.natural("limit")

    def natural(self, name: str) -> int:
        """A number of things; 0 where it is missing."""
        return self.optional(name, _natural) or 0

    def flag(self, name: str) -> bool:
        """Whether a parameter is true; missing, it is not."""
        return self.optional(name, _boolean) or False


_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)\Z", re.ASCII)


def instant_us(text: str) -> int:
    """Microseconds since 1970 of unix seconds or RFC 3339. Raises ValueError."""
    number = _number(text)
    if number is not None and abs(number) <= MAX_SECONDS:
        return round(number * 1_000_000)
    if _RFC3339.match(text):
        try:
            return microseconds(datetime.fromisoformat(text.upper()).astimezone(UTC))
        except (ValueError, OverflowError):
            pass
    raise ValueError(f'cannot parse "{text[:60]}" to a valid timestamp')


def span_us(text: str) -> int:
    """Microseconds of a number of seconds or a Prometheus duration. Raises ValueError."""
    number = _number(text)
    if number is None:
        try:
            number = parse_duration(text) / timedelta(seconds=1)
        except ValueError:
            number = math.inf
    if abs(number) > MAX_SECONDS:
        raise ValueError(f'cannot parse "{text[:60]}" to a valid duration')
    return round(number * 1_000_000)


def _number(text: str) -> float | None:
    """A float64 as Go reads it; None where it is none, or NaN."""
    try:
        number = float(text)
    except ValueError:
        return None
    return None if math.isnan(number) or not text.isascii() or text != text.strip() else number


def _natural(text: str) -> int:
    """A count from 0 on. Raises ValueError."""
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII):
        raise ValueError(f'cannot parse "{text[:60]}" to a number from 0 to 999999999')
    return int(text)


_BOOLEANS = {
    **dict.fromkeys(("1", "t", "T", "true", "TRUE", "True"), True),
    **dict.fromkeys(("0", "f", "F", "false", "FALSE", "False"), False),
}


def _boolean(text: str) -> bool:
    """As Go reads one. Raises ValueError."""
    if text not in _BOOLEANS:
        raise ValueError(f'cannot parse "{text[:60]}" to true or false')
    return _BOOLEANS[text]
