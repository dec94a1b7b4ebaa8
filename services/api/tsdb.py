"""Cardinality: how many series there are, and what they are many of."""

from datetime import datetime
from typing import Any

from fastapi import APIRouter, Request, Response

from services.api.envelope import success
from services.api.parameters import Parameters
from services.api.state import Shared
from services.clock import microseconds

router = APIRouter(prefix="/api/v1/status", include_in_schema=False)

DEFAULT_LIMIT = 10
MAX_LIMIT = 10_000

HEAD = """
select (select coalesce(sum(width), 0) from layouts)::bigint as series,
       (select count(*) from layouts) as layouts,
       least((select min(start) from blocks), (select min(at) from frames)) as first,
       greatest((select max(start) + interval '1 hour' from blocks),
                (select max(at) from frames)) as last
"""

METRICS = """
select count(*), coalesce(sum(octet_length(metric)), 0)::bigint as bytes
from (select distinct metric from shapes) named
"""

BY_METRIC = """
select metric as name, sum(length)::bigint as value from layout_shapes
group by metric order by value desc, name limit $1
"""

# A label stands in sources or in shapes, never in both for one series.
VALUES = """
with pairs (label, text) as (
    select name, value from layouts, jsonb_each_text(source) as pair (name, value)
    union
    select name, pair.value
    from shapes, jsonb_array_elements(labels) as one, jsonb_each_text(one) as pair (name, value))
select label as name, count(*) as value, sum(octet_length(text))::bigint as bytes
from pairs group by label order by value desc, name limit $1
"""

PAIRS = """
with counted as (
    select pair.name || '=' || pair.value as name, sum(width)::bigint as value
    from layouts, jsonb_each_text(source) as pair (name, value) group by 1
    union all
    select pair.name || '=' || pair.value, sum(uses)::bigint
    from (select shape_id, count(*) as uses from layout_shapes group by shape_id) used
    join shapes on id = shape_id, jsonb_array_elements(labels) as one,
         jsonb_each_text(one) as pair (name, value) group by 1
    union all
    select '__name__=' || metric, sum(length)::bigint from layout_shapes group by metric)
select name, sum(value)::bigint as value from counted
group by name order by value desc, name limit $1
"""


@router.get("/tsdb")
async def tsdb(request: Request, state: Shared) -> Response:
    """Numbers of series, of labels' values and of their pairs, the largest first. limit."""
    limit = min((await Parameters.of(request)).limit() or DEFAULT_LIMIT, MAX_LIMIT)
    async with (
        state.pool.acquire() as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        head = await connection.fetchrow(HEAD)
        metrics = await connection.fetchrow(METRICS)
        by_metric = await connection.fetch(BY_METRIC, limit)
        values = await connection.fetch(VALUES, MAX_LIMIT)
        pairs = await connection.fetch(PAIRS, limit)
    assert head is not None, "an aggregate has a row"
    assert metrics is not None, "an aggregate has a row"
    names = {"name": "__name__", "value": metrics["count"], "bytes": metrics["bytes"]}
    labels = sorted((names, *map(dict, values)), key=lambda one: -one["value"])
    return success(
        {
            "headStats": {
                "numSeries": head["series"],
                "numLabelPairs": sum(one["value"] for one in labels),
                "chunkCount": head["layouts"],
                "minTime": _milliseconds(head["first"]),
                "maxTime": _milliseconds(head["last"]),
            },
            "seriesCountByMetricName": [dict(row) for row in by_metric],
            "labelValueCountByLabelName": _ranked(labels, "value", limit),
            "memoryInBytesByLabelName": _ranked(labels, "bytes", limit),
            "seriesCountByLabelValuePair": [dict(row) for row in pairs],
        }
    )


def _ranked(labels: list[dict[str, Any]], figure: str, limit: int) -> list[dict[str, Any]]:
    """The labels of which a figure is largest."""
    ranked = sorted(labels, key=lambda one: (-one[figure], one["name"]))[:limit]
    return [{"name": one["name"], "value": one[figure]} for one in ranked]


def _milliseconds(at: datetime | None) -> int:
    return 0 if at is None else microseconds(at) // 1000
