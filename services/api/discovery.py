"""Which series, labels and metrics there are, over HTTP in Prometheus' shape."""

import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from engine.promql import Matcher
from engine.promql.blocks import Labels
from services.api import labels
from services.api.envelope import limited, success, success_pieces
from services.api.errors import BadData, Unprocessable
from services.api.evaluating import Check, bounded
from services.api.parameters import Parameters
from services.api.selectors import selector_matchers, selectors_of
from services.api.state import Shared, State
from services.frames import Snapshot

router = APIRouter(prefix="/api/v1", include_in_schema=False)

LABEL_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*\Z")

MAX_METADATA = 100_000
"""Metrics of one answer."""


@router.api_route("/series", methods=["GET", "POST"])
async def series(request: Request, state: Shared) -> Response:
    """Label sets of the series that match any of match[], with samples in start..end. limit."""
    given = await Parameters.of(request)
    selectors = selectors_of(given)
    if not selectors:
        raise BadData("no match[] parameter provided")
    range_us, limit, most = given.range_us(), given.limit(), state.settings.query_max_series
    found: list[Labels] = []
    async with bounded(state.settings), state.reader.snapshot() as now:
        for one in selectors:
            found += await labels.series(now.connection, now.catalogue, one, range_us, most)
            if len(found) > most:
                raise Unprocessable(f"{len(found)} series match; at most {most} (query_max_series)")

    def present(check: Check) -> list[bytes]:
        distinct = sorted({tuple(sorted(one.items())) for one in found})
        check()
        shown, warnings = limited(distinct, limit)
        return success_pieces([msgspec.json.encode([dict(one) for one in shown])], warnings)

    return state.outgoing.response(await state.turns.compute(present))


@router.api_route("/labels", methods=["GET", "POST"])
async def label_names(request: Request, state: Shared) -> Response:
    """Label names of the series that match any of match[], or of all. limit."""
    given = await Parameters.of(request)
    range_us = given.range_us()

    async def found(now: Snapshot, matchers: tuple[Matcher, ...]) -> set[str]:
        return await labels.names(now.connection, now.catalogue, matchers, range_us)

    return await _united(state, given, found)


@router.get("/label/{name}/values")
async def label_values(name: str, request: Request, state: Shared) -> Response:
    """Values of one label among the series that match any of match[], or of all. limit."""
    if not LABEL_NAME.match(name):
        raise BadData(f'invalid label name: "{name}"')
    given = await Parameters.of(request)
    range_us = given.range_us()

    async def found(now: Snapshot, matchers: tuple[Matcher, ...]) -> set[str]:
        return await labels.values(now.connection, now.catalogue, name, matchers, range_us)

    return await _united(state, given, found)


async def _united(
    state: State,
    given: Parameters,
    found: Callable[[Snapshot, tuple[Matcher, ...]], Awaitable[set[str]]],
) -> Response:
    """What is found by any of match[], or without matchers, sorted."""
    limit = given.limit()
    texts: set[str] = set()
    async with bounded(state.settings), state.reader.snapshot() as now:
        for matchers in selectors_of(given) or [()]:
            texts |= await found(now, matchers)
    shown, warnings = limited(sorted(texts), limit)
    return success(shown, warnings)


METRICS = """
select distinct on (metric) metric, type, unit from shapes
where $1::text is null or metric = $1 order by metric, id limit $2
"""


@router.get("/metadata")
async def metadata(request: Request, state: Shared) -> Response:
    """Type and unit of each metric, as its first series had them. metric, limit."""
    given = await Parameters.of(request)
    limit = given.limit() or MAX_METADATA
    rows = await state.pool.fetch(METRICS, given.first("metric"), limit)
    return success({row["metric"]: [_described(row)] for row in rows})


def _described(row: Any) -> dict[str, str]:
    """No agent tells what a metric is about, so the help is empty."""
    return {"type": row["type"] or "unknown", "help": "", "unit": row["unit"]}


BY_TARGET = """
select source, layout_shapes.metric, type, unit
from layouts join layout_shapes on layout_id = layouts.id join shapes on shapes.id = shape_id
where ($1::text is null or layout_shapes.metric = $1) and source @> $2
order by layouts.id, layout_shapes.metric limit $3
"""


@router.get("/targets/metadata")
async def targets_metadata(request: Request, state: Shared) -> Response:
    """Type and unit of metrics by the agent that reports them. match_target, metric, limit."""
    given = await Parameters.of(request)
    match, metric = given.first("match_target"), given.first("metric")
    matchers = selector_matchers(match) if match else ()
    equal = {one.name: one.value for one in matchers if one.op == "=" and one.value}
    limit = given.limit() or MAX_METADATA
    rows = await state.pool.fetch(BY_TARGET, metric, equal, limit)
    return success([_of_target(row, metric) for row in _matching(rows, matchers)])


def _matching(rows: Iterable[Any], matchers: tuple[Matcher, ...]) -> list[Any]:
    return [row for row in rows if all(m.accepts(row["source"].get(m.name, "")) for m in matchers)]


def _of_target(row: Any, metric: str | None) -> dict[str, Any]:
    named = {} if metric else {"metric": row["metric"]}
    return {"target": row["source"], **named, **_described(row)}
