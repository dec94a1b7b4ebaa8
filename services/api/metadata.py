"""What is known of metrics: types, helps and units, as agents' layouts and other senders tell them.

An agent tells the type of each series; a Prometheus that of families, whose series have names of
their own: the histogram `x` is `x_bucket`, `x_sum` and `x_count`.
"""

from collections.abc import Collection, Iterable, Iterator
from datetime import timedelta
from typing import NamedTuple

from asyncpg import Record

from engine.promql.ordering import in_order
from services.database import Connection, Pool
from services.series_lookup import aside

MAX_METADATA = 100_000
"""Metrics of one answer."""

CURRENT = timedelta(hours=3)
"""What was not told for this long while other metadata of the metric was, is no more so: senders'
is passed on every hour (telling.py)."""

TOLD = """
select metric, type, help, unit
from (select *, max(told_at) over (partition by metric) as newest_at from metric_metadata
      where $1::text[] is null or metric = any($1)) told
where told_at > newest_at - $2::interval order by metric, told_at desc, hash
"""

OF_SHAPES = """
select distinct on (metric) metric, type, '' as help, unit from shapes
where ($1::text[] is null or metric = any($1)) and (type <> 'unknown' or unit <> '')
order by metric, id limit $2
"""

SUFFIXES = {
    "_bucket": ("histogram", "gaugehistogram"),
    "_sum": ("histogram", "summary"),
    "_count": ("histogram", "summary"),
    "_gsum": ("gaugehistogram",),
    "_gcount": ("gaugehistogram",),
    "_total": ("counter",),
    "_info": ("info",),
    "_created": ("counter", "histogram", "summary"),
}
"""Of the names of a family's series, with the types of family that have such
(https://prometheus.io/docs/specs/om/open_metrics_spec/#suffixes)."""


class Described(NamedTuple):
    """What is known of a metric. No agent tells what one is about: then `help` is empty."""

    type: str
    help: str
    unit: str


Catalogue = dict[str, list[Described]]
"""By metric, what is told of it now, the newest first: targets may differ."""


async def catalogue(connection: Connection | Pool, metrics: Collection[str] | None) -> Catalogue:
    """What is known of these metrics and of families that they may be of; of all for None."""
    names = None if metrics is None else sorted({n for one in metrics for n in _names(one)})
    told = await connection.fetch(TOLD, names, CURRENT)
    shapes = await connection.fetch(OF_SHAPES, names, MAX_METADATA)
    return await aside(len(told) + len(shapes), lambda: _catalogue(told, shapes))


def _catalogue(told: Iterable[Record], shapes: Iterable[Record]) -> Catalogue:
    found: Catalogue = {}
    for row in told:
        found.setdefault(row["metric"], []).append(_described(row))
    for row in shapes:
        if family_of(row["metric"], found) is None:
            found[_family(row["metric"], row["type"])] = [_described(row)]
    names = in_order(found)
    return {name: found[name] for name in names[:MAX_METADATA]}


def family_of(metric: str, known: Catalogue) -> tuple[str, Described] | None:
    """The family of the series with this name, and the newest that is known of it."""
    for name, types in _families(metric):
        if name in known and (not types or known[name][0].type in types):
            return name, known[name][0]
    return None


def _family(metric: str, type_: str) -> str:
    """The name of the family that a series of this type is of."""
    names = [name for name, types in _families(metric) if type_ in types and type_ != "counter"]
    return names[0] if names else metric


def series_of(metric: str) -> list[str]:
    """What series of this family may be named."""
    return [metric, *(metric + suffix for suffix in SUFFIXES)]


def _families(metric: str) -> Iterator[tuple[str, Collection[str]]]:
    """What a series' family may be named, with the types that it then has; none: any."""
    yield metric, ()
    for suffix, types in SUFFIXES.items():
        if metric.endswith(suffix):
            yield metric.removesuffix(suffix), types


def _names(metric: str) -> Iterable[str]:
    return (name for name, _ in _families(metric))


def _described(row: Record) -> Described:
    return Described(row["type"] or "unknown", row["help"], row["unit"])
