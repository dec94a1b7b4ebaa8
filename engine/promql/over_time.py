"""Functions over a window that take its samples as a set: the *_over_time family.

To add a function over a window, from here or elsewhere: enter it in FUNCTIONS.
"""

import numpy as np

from engine.promql import rates, statistics
from engine.promql.blocks import Booleans, Floats, Indexes, at_rows
from engine.promql.windows import SECOND_US, WindowFunction, Windows, check_work, gathered

REDUCED_CELLS = 2_000_000
"""Samples that numpy reduces in one call, about 10 ms, in which no other thread runs."""


def _reduced(windows: Windows, ufunc: np.ufunc) -> Floats:
    """`ufunc` over the rows of each window; windows may overlap. An empty one gives any row."""
    check_work(windows)
    padded = np.vstack([windows.values, windows.values[-1:]])
    bounds = np.stack([windows.low, windows.high], axis=1)
    result = np.empty((len(bounds), padded.shape[1]))
    at_once = max(1, REDUCED_CELLS // max(1, int(windows.counts.max()) * padded.shape[1]))
    for begin in range(0, len(bounds), at_once):
        windows.limits.check()
        some = bounds[begin : begin + at_once]
        # What stands behind the last window is left out: it would be reduced too.
        rows = padded[: some.max() + 1]
        result[begin : begin + at_once] = ufunc.reduceat(rows, some.ravel(), axis=0)[::2]
    return result


def _some(windows: Windows) -> Booleans:
    return windows.counts > 0


def sum_over_time(windows: Windows) -> tuple[Floats, Booleans]:
    """Sum of the window's samples."""
    return _sums(windows), _some(windows)


def _sums(windows: Windows) -> Floats:
    sums = _reduced(windows, np.add)
    if (windows.values < 0).any():
        sizes = _reduced(windows._replace(values=np.abs(windows.values)), np.add)
        lost = statistics.cancelled(sums, sizes) & _some(windows)[:, None]
        places = np.flatnonzero(lost.any(axis=1))
        if len(places):
            sums[places] = gathered(
                windows.some(places), lambda cells, at: statistics.compensated_sum(cells)
            )
    return sums


def avg_over_time(windows: Windows) -> tuple[Floats, Booleans]:
    """Mean of the window's samples; where their sum overflows, the sum of their shares."""
    counts = np.maximum(windows.counts, 1)[:, None]
    means = _sums(windows) / counts
    for step in np.flatnonzero(np.isinf(means).any(axis=1) & _some(windows)):
        rows = windows.values[windows.low[step] : windows.high[step]]
        means[step] = np.where(np.isinf(means[step]), (rows / len(rows)).sum(axis=0), means[step])
    return means, _some(windows)


def min_over_time(windows: Windows) -> tuple[Floats, Booleans]:
    """Least sample of the window; NaN only where all are."""
    return _reduced(windows, np.fmin), _some(windows)


def max_over_time(windows: Windows) -> tuple[Floats, Booleans]:
    """Greatest sample of the window; NaN only where all are."""
    return _reduced(windows, np.fmax), _some(windows)


def count_over_time(windows: Windows) -> tuple[Floats, Booleans]:
    """Number of samples in the window."""
    shape = (len(windows.ends), windows.values.shape[1])
    return np.broadcast_to(windows.counts[:, None].astype(np.float64), shape), _some(windows)


def last_over_time(windows: Windows) -> tuple[Floats, Booleans]:
    """Newest sample of the window."""
    return at_rows(windows.values, windows.last), _some(windows)


def first_over_time(windows: Windows) -> tuple[Floats, Booleans]:
    """Oldest sample of the window."""
    return at_rows(windows.values, windows.first), _some(windows)


def present_over_time(windows: Windows) -> tuple[Floats, Booleans]:
    """1 where the window has a sample."""
    return np.ones((len(windows.ends), windows.values.shape[1])), _some(windows)


def quantile_over_time(windows: Windows, ratio: Floats) -> tuple[Floats, Booleans]:
    """The quantile of the window's samples."""

    def of_cells(cells: Floats, at: Floats, ratio: Floats) -> Floats:
        return statistics.quantile(cells, np.ones(cells.shape, dtype=np.bool_), ratio[:, None])

    return gathered(windows, of_cells, ratio), _some(windows)


def mad_over_time(windows: Windows) -> tuple[Floats, Booleans]:
    """Median of the distances from the median; NaN where a sample is."""
    return gathered(windows, _median_distance), _some(windows)


def _median_distance(cells: Floats, at: Floats) -> Floats:
    return _median(np.abs(cells - _median(cells)[:, :, None]))


def _median(cells: Floats) -> Floats:
    found = statistics.quantile(cells, np.ones(cells.shape, dtype=np.bool_), np.array(0.5))
    return np.where(np.isnan(cells).any(axis=2), np.nan, found)


def stdvar_over_time(windows: Windows) -> tuple[Floats, Booleans]:
    """Variance of the window's samples: of samples that are all the same, exactly 0."""

    def variance(cells: Floats, at: Floats) -> Floats:
        return np.asarray((cells - cells[:, :, :1]).var(axis=2))

    return gathered(windows, variance), _some(windows)


def stddev_over_time(windows: Windows) -> tuple[Floats, Booleans]:
    """Standard deviation of the window's samples."""
    variance, present = stdvar_over_time(windows)
    return np.sqrt(variance), present


def _instant(windows: Windows, place: Floats) -> Floats:
    """Seconds since 1970 of rows that stand `place` after each window's first."""
    rows = np.minimum(windows.low[:, None] + place.astype(np.intp), len(windows.at) - 1)
    return np.asarray(windows.at[rows] / SECOND_US)


def _newest_extreme(windows: Windows, sign: float) -> tuple[Floats, Booleans]:
    """When the greatest (sign 1) or least (-1) sample was taken, the newest of equal ones."""

    def place(cells: Floats, at: Floats) -> Floats:
        ranked = np.where(np.isnan(cells), -np.inf, sign * cells)[:, :, ::-1]
        return np.asarray(cells.shape[2] - 1.0 - ranked.argmax(axis=2))

    return _instant(windows, np.nan_to_num(gathered(windows, place))), _some(windows)


def _edge(windows: Windows, rows: Indexes) -> tuple[Floats, Booleans]:
    shape = (len(windows.ends), windows.values.shape[1])
    return np.broadcast_to((windows.at[rows] / SECOND_US)[:, None], shape), _some(windows)


FUNCTIONS: dict[str, WindowFunction] = {
    "rate": lambda windows: rates.extrapolated(windows, counter=True, per_second=True),
    "increase": lambda windows: rates.extrapolated(windows, counter=True, per_second=False),
    "delta": lambda windows: rates.extrapolated(windows, counter=False, per_second=False),
    "irate": lambda windows: rates.between_last_two(windows, counter=True),
    "idelta": lambda windows: rates.between_last_two(windows, counter=False),
    "changes": rates.changes,
    "resets": rates.resets,
    "deriv": rates.deriv,
    "predict_linear": rates.predict_linear,
    "double_exponential_smoothing": rates.double_exponential_smoothing,
    "holt_winters": rates.double_exponential_smoothing,
    "sum_over_time": sum_over_time,
    "avg_over_time": avg_over_time,
    "min_over_time": min_over_time,
    "max_over_time": max_over_time,
    "count_over_time": count_over_time,
    "first_over_time": first_over_time,
    "last_over_time": last_over_time,
    "present_over_time": present_over_time,
    "quantile_over_time": quantile_over_time,
    "mad_over_time": mad_over_time,
    "stddev_over_time": stddev_over_time,
    "stdvar_over_time": stdvar_over_time,
    "ts_of_first_over_time": lambda windows: _edge(windows, windows.first),
    "ts_of_last_over_time": lambda windows: _edge(windows, windows.last),
    "ts_of_max_over_time": lambda windows: _newest_extreme(windows, 1.0),
    "ts_of_min_over_time": lambda windows: _newest_extreme(windows, -1.0),
}

KEEPS_NAME = frozenset({"first_over_time", "last_over_time"})
"""Functions over a window whose result keeps the metric name."""
