"""Spans of time as Prometheus writes them ("1h30m"), timedelta inside.

Syntax: https://prometheus.io/docs/prometheus/latest/querying/basics/#time-durations
"""

import re
from datetime import timedelta
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer

_PARTS = re.compile(
    r"(?:(\d+)y)?(?:(\d+)w)?(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?(?:(\d+)ms)?\Z"
)
_MILLISECONDS = (365 * 86_400_000, 7 * 86_400_000, 86_400_000, 3_600_000, 60_000, 1000, 1)
_UNITS = ("y", "w", "d", "h", "m", "s", "ms")
MAX_MILLISECONDS = 292 * 365 * 86_400_000
"""Prometheus keeps a duration in an int64 of nanoseconds: 292 years."""


def parse_duration(text: str) -> timedelta:
    """ "1h30m", "15s", "250ms" or "0". Raises ValueError."""
    match = _PARTS.match(text) if text and text != "0" else None
    if text == "0":
        return timedelta(0)
    if match is None:
        raise ValueError(f"{text[:40]!r} is not a duration such as 15s, 5m or 1h30m")
    total = sum(int(n) * ms for n, ms in zip(match.groups(), _MILLISECONDS, strict=True) if n)
    if total > MAX_MILLISECONDS:
        raise ValueError(f"{text[:40]!r} is longer than 292 years")
    return timedelta(milliseconds=total)


def format_duration(span: timedelta) -> str:
    """The shortest exact form, to the millisecond: 90 s is "1m30s"."""
    rest = round(span / timedelta(milliseconds=1))
    if rest == 0:
        return "0s"
    text = ""
    for unit, size in zip(_UNITS, _MILLISECONDS, strict=True):
        count = rest // size
        if unit in ("y", "w") and rest % size:
            continue
        rest -= count * size
        text += f"{count}{unit}" if count else ""
    return text


def _validate(value: Any) -> Any:
    if isinstance(value, str):
        return parse_duration(value)
    if isinstance(value, timedelta):
        return value
    raise ValueError("expected a duration such as 15s, 5m or 1h30m")


Duration = Annotated[
    timedelta, BeforeValidator(_validate), PlainSerializer(format_duration, return_type=str)
]
"""The pydantic type of a span in documents and settings."""
