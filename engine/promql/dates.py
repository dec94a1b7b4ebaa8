"""Parts of the date, in UTC, of values that are seconds since 1970."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from engine.promql.blocks import Floats

DAY_S = 86_400

LIMIT_S = 1e14
"""Beyond 3 million years from 1970 a value is no date, and its parts are NaN."""

Seconds = npt.NDArray[np.int64]


def _days(seconds: Seconds) -> npt.NDArray[np.datetime64]:
    return (seconds // DAY_S).astype("datetime64[D]")


def _whole(instants: npt.NDArray[np.datetime64], unit: str) -> npt.NDArray[np.datetime64]:
    return instants.astype(f"datetime64[{unit}]")


def _number(span: npt.NDArray[np.generic]) -> Seconds:
    return span.astype(np.int64)


def _day_of_month(seconds: Seconds) -> Seconds:
    days = _days(seconds)
    return _number(days - _whole(_whole(days, "M"), "D")) + 1


def _day_of_year(seconds: Seconds) -> Seconds:
    days = _days(seconds)
    return _number(days - _whole(_whole(days, "Y"), "D")) + 1


def _days_in_month(seconds: Seconds) -> Seconds:
    month = _whole(_days(seconds), "M")
    return _number(_whole(month + 1, "D") - _whole(month, "D"))


PARTS: dict[str, Callable[[Seconds], Seconds]] = {
    "minute": lambda seconds: seconds // 60 % 60,
    "hour": lambda seconds: seconds // 3600 % 24,
    "day_of_week": lambda seconds: (seconds // DAY_S + 4) % 7,
    "day_of_month": _day_of_month,
    "day_of_year": _day_of_year,
    "days_in_month": _days_in_month,
    "month": lambda seconds: _number(_whole(_days(seconds), "M")) % 12 + 1,
    "year": lambda seconds: _number(_whole(_days(seconds), "Y")) + 1970,
}


def part(name: str, values: Floats) -> Floats:
    """The part of the date of this name, of values in seconds; NaN where that is no date."""
    known = np.abs(values) < LIMIT_S
    seconds = np.trunc(np.where(known, values, 0.0)).astype(np.int64)
    return np.where(known, PARTS[name](seconds).astype(np.float64), np.nan)
