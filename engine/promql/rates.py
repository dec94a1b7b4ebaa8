"""Functions over a window that look at how samples follow each other: rates, trends, resets."""

from typing import NamedTuple

import numpy as np

from engine.promql.blocks import Booleans, Floats, Indexes, Instants, at_rows
from engine.promql.errors import QueryError
from engine.promql.statistics import compensated_sum
from engine.promql.windows import SECOND_US, Windows, gathered


def _seconds(span_us: Instants) -> Floats:
    return span_us / SECOND_US


def extrapolated(windows: Windows, *, counter: bool, per_second: bool) -> tuple[Floats, Booleans]:
    """rate, increase (counter) and delta: the change over the window, extrapolated to its ends.

    Prometheus 3, promql/functions.go, extrapolatedRate.
    """
    first, last = windows.first, windows.last
    counts = windows.counts
    start = at_rows(windows.values, first)
    change = at_rows(windows.values, last) - start
    if counter:
        change = _with_resets(windows, first, last, change)
    covered, before, after = _reach(windows, first, last, counts)
    if counter and (change * (before / covered) > start).any():
        to_zero = covered * (start / change)
        limited = (change > 0) & (start >= 0) & (to_zero < before)
        before = np.where(limited, to_zero, before)
    factor = (covered + before + after) / covered
    if per_second:
        factor = factor / (windows.range_us / SECOND_US)
    change *= factor
    return change, counts >= 2


def _reach(
    windows: Windows, first: Indexes, last: Indexes, counts: Indexes
) -> tuple[Floats, Floats, Floats]:
    """Seconds between a window's samples, and how far before and after them it is extrapolated.

    Each (steps, 1): to the window's end, or by half an interval where that is too far away.
    """
    begin, end = windows.at[first], windows.at[last]
    covered = _seconds(end - begin)
    before = _seconds(begin - (windows.ends - windows.range_us))
    after = _seconds(windows.ends - end)
    gap = covered / np.maximum(counts - 1, 1)
    far, half = gap * 1.1, gap / 2
    before = np.where(before >= far, half, before)
    after = np.where(after >= far, half, after)
    return covered[:, None], before[:, None], after[:, None]


def _with_resets(windows: Windows, first: Indexes, last: Indexes, change: Floats) -> Floats:
    """The change plus what counters had reached when they began anew within each window."""
    fell = windows.values[1:] < windows.values[:-1]
    some = np.flatnonzero(fell.any(axis=0))
    if len(some):
        values = windows.values[:, some]
        sums = np.zeros_like(values)
        np.cumsum(np.where(fell[:, some], values[:-1], 0.0), axis=0, out=sums[1:])
        change[:, some] += at_rows(sums, last) - at_rows(sums, first)
    return change


def between_last_two(windows: Windows, *, counter: bool) -> tuple[Floats, Booleans]:
    """irate (counter: per second, resets heeded) and idelta (plain difference)."""
    last = windows.last
    previous = np.maximum(last - 1, 0)
    enough = windows.counts >= 2
    end, start = at_rows(windows.values, last), at_rows(windows.values, previous)
    if not counter:
        return end - start, enough
    change = np.where(end < start, end, end - start)
    return change / _seconds(windows.at[last] - windows.at[previous])[:, None], enough


def changes(windows: Windows) -> tuple[Floats, Booleans]:
    """How often the value changed; NaN after NaN is no change."""
    old, new = windows.values[:-1], windows.values[1:]
    return _events(windows, (old != new) & ~(np.isnan(old) & np.isnan(new)))


def resets(windows: Windows) -> tuple[Floats, Booleans]:
    """How often the value fell."""
    return _events(windows, windows.values[1:] < windows.values[:-1])


def _events(windows: Windows, happened: Booleans) -> tuple[Floats, Booleans]:
    """Events of each window. happened: (rows - 1, columns), between a row and the next."""
    sums = np.zeros_like(windows.values)
    np.cumsum(happened, axis=0, out=sums[1:])
    some = windows.counts > 0
    found = at_rows(sums, windows.last) - at_rows(sums, windows.first)
    return np.where(some[:, None], found, 0.0), some


class _Line(NamedTuple):
    """Least squares: the slope per second, and the value at the step."""

    slope: Floats
    intercept: Floats


def _regression(cells: Floats, at: Floats) -> _Line:
    """Line through each window's samples, (windows, columns).

    Samples that are all equal have slope 0 exactly, or NaN where they are infinite. The steps are
    those of Prometheus 3, promql/functions.go, linearRegression, so that large values lose the same
    digits: samples are not centred.
    """
    count = cells.shape[2]
    sum_x = compensated_sum(at)[:, None]
    sum_xx = compensated_sum(at * at)[:, None]
    sum_y = compensated_sum(cells)
    sum_xy = compensated_sum(at[:, None, :] * cells)
    slope = (sum_xy - sum_x * sum_y / count) / (sum_xx - sum_x * sum_x / count)
    intercept = sum_y / count - slope * sum_x / count
    flat = (cells == cells[:, :, :1]).all(axis=2)
    level = np.where(np.isinf(cells[:, :, 0]), np.nan, cells[:, :, 0])
    return _Line(
        np.where(flat, level - level, slope),
        np.where(flat, level, intercept),
    )


def deriv(windows: Windows) -> tuple[Floats, Booleans]:
    """Slope per second, by linear regression; instants are counted from each window's first."""
    windows = windows._replace(steps=windows.at[windows.first])
    values = gathered(windows, lambda cells, at: _regression(cells, at).slope)
    return values, windows.counts >= 2


def predict_linear(windows: Windows, ahead_s: Floats) -> tuple[Floats, Booleans]:
    """The value that linear regression expects so many seconds after the step."""

    def predicted(cells: Floats, at: Floats, ahead_s: Floats) -> Floats:
        line = _regression(cells, at)
        return line.slope * ahead_s[:, None] + line.intercept

    return gathered(windows, predicted, ahead_s), windows.counts >= 2


def double_exponential_smoothing(
    windows: Windows, smoothing: Floats, trend: Floats
) -> tuple[Floats, Booleans]:
    """Holt's linear trend method. Raises QueryError for a factor outside of 0..1.

    https://en.wikipedia.org/wiki/Exponential_smoothing#Double_exponential_smoothing
    """
    for word, factor in (("smoothing", smoothing), ("trend", trend)):
        wrong = factor[~((factor > 0) & (factor < 1))]
        if len(wrong):
            raise QueryError(
                f"invalid {word} factor. Expected: 0 < {word[0]}f < 1, got: {wrong[0]:f}"
            )
    return gathered(windows, _smoothed, smoothing, trend), windows.counts >= 2


def _smoothed(cells: Floats, at: Floats, smoothing: Floats, trend: Floats) -> Floats:
    count = cells.shape[2]
    if count < 2:
        return cells[:, :, 0]
    alpha, beta = smoothing[:, None], trend[:, None]
    level, slope = cells[:, :, 0], cells[:, :, 1] - cells[:, :, 0]
    for place in range(1, count):
        before = level
        level = alpha * cells[:, :, place] + (1 - alpha) * (level + slope)
        slope = beta * (level - before) + (1 - beta) * slope
    return level
