"""Sums that don't lose small numbers, and quantiles: for aggregations and for windows alike."""

import numpy as np

from engine.promql.blocks import Booleans, Floats, Indexes

CANCELLED = 1e-4
"""A sum this much smaller than the sum of its terms' sizes has lost digits: 12 of 16 are left."""


def cancelled(sums: Floats, sizes: Floats) -> Booleans:
    """Where plain sums are not exact enough. sizes: the sums of the terms' absolute values."""
    return np.asarray(np.isfinite(sizes) & (np.abs(sums) < sizes * CANCELLED))


def compensated_sum(terms: Floats) -> Floats:
    """The sum over the last axis, by Neumaier's algorithm (Kahan-Babuška)."""
    total = np.zeros(terms.shape[:-1])
    lost = np.zeros(total.shape)
    for place in range(terms.shape[-1]):
        term = terms[..., place]
        grown = total + term
        greater = np.abs(total) >= np.abs(term)
        lost += np.where(greater, (total - grown) + term, (term - grown) + total)
        total = grown
    return total + lost


def quantile(values: Floats, present: Booleans, ratio: Floats) -> Floats:
    """The quantile over the last axis of the present values; NaN counts as the smallest number.

    ratio: broadcast to the other axes; below 0 it gives -Inf, above 1 +Inf.
    Prometheus 3, promql/quantile.go: linear between the two nearest ranks.
    """
    counts = present.sum(axis=-1)
    nans = (present & np.isnan(values)).sum(axis=-1)
    ordered = np.where(present, np.where(np.isnan(values), -np.inf, values), np.inf)
    ordered.sort(axis=-1)
    ratio = np.broadcast_to(ratio, counts.shape)
    inside = (ratio >= 0) & (ratio <= 1)
    rank = np.where(inside, ratio, 0.0) * np.maximum(counts - 1, 0)
    lower = np.floor(rank).astype(np.intp)
    upper = np.minimum(lower + 1, np.maximum(counts - 1, 0))
    weight = rank - lower
    found = _at(ordered, lower, nans) * (1 - weight) + _at(ordered, upper, nans) * weight
    outside = np.where(ratio < 0, -np.inf, np.where(ratio > 1, np.inf, np.nan))
    return np.where(inside, found, outside)


def _at(ordered: Floats, place: Indexes, nans: Indexes) -> Floats:
    """The value of this rank; the first `nans` of them are NaN."""
    found = np.take_along_axis(ordered, place[..., None], axis=-1)[..., 0]
    return np.where(place < nans, np.nan, found)
