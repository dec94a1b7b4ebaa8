"""The wall clock, as everything here counts it: microseconds since 1970 UTC."""

import time
from datetime import UTC, datetime, timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

POSTGRES_EPOCH_US = 946_684_800_000_000
"""2000-01-01: PostgreSQL's binary timestamps count from there."""

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US

_LAST_US = 253_370_764_800_000_000  # the beginning of the year 9999


def now_us() -> int:
    """This instant."""
    return time.time_ns() // 1000


def instant(at_us: int) -> datetime:
    """As a datetime. Raises OverflowError outside the years 1 to 9999."""
    return EPOCH + timedelta(microseconds=at_us)


def clamped(at_us: int) -> datetime:
    """As a datetime, or the nearest from 1970 to 9999, which every store can hold."""
    return instant(min(max(at_us, 0), _LAST_US))


def microseconds(at: datetime) -> int:
    """Of an aware datetime, exactly."""
    return (at - EPOCH) // timedelta(microseconds=1)


def rfc3339(at: int | datetime) -> str:
    """`2026-01-02T03:04:05.678901Z`."""
    moment = instant(at) if isinstance(at, int) else at.astimezone(UTC)
    return moment.isoformat().replace("+00:00", "Z")
