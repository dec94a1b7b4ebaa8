"""Which series, labels and metrics there are, over HTTP in Prometheus' shape."""

import re
from collections.abc import Awaitable, Callable, Iterable
from itertools import islice
from typing import Any

from fastapi import APIRouter, Request, Response

from engine.promql import Matcher
from engine.promql.blocks import Labels
from engine.promql.ordering import in_order
from services.api import labels
from services.api.envelope import limited, listed, mapped, success_pieces
from services.api.errors import BadData, Unprocessable
from services.api.evaluating import Check, bounded
from services.api.metadata import MAX_METADATA, Described, catalogue, family_of, series_of
from services.api.parameters import Parameters
from services.api.selectors import selector_matchers, selectors_of
from services.api.state import Shared, State
from services.frames import Snapshot

router = APIRouter(prefix="/api/v1", include_in_schema=False)

LABEL_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*\Z")


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
        distinct = in_order({tuple(sorted(one.items())) for one in found})
        check()
        shown, warnings = limited(distinct, limit)
        return success_pieces(listed([dict(one) for one in shown]), warnings)

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

    def present(_: Check) -> list[bytes]:
        shown, warnings = limited(in_order(texts), limit)
        return success_pieces(listed(shown), warnings)

    return state.outgoing.response(await state.turns.compute(present))


@router.get("/metadata")
async def metadata(request: Request, state: Shared) -> Response:
    """Type, help and unit of each metric, all that differ. metric, limit, limit_per_metric."""
    given = await Parameters.of(request)
    metric, most = given.first("metric"), given.natural("limit_per_metric")
    known = await catalogue(state.pool, [metric] if metric else None)

    def present(_: Check) -> list[bytes]:
        shown = (one for one in known.items() if metric in (None, one[0]))
        return success_pieces(
            mapped(
                [
                    (name, [one._asdict() for one in told[: most or None]])
                    for name, told in islice(shown, given.limit() or None)
                ]
            )
        )

    return state.outgoing.response(await state.turns.compute(present))


BY_TARGET = """
select source, metric
from layouts join layout_shapes on layout_id = layouts.id
where ($1::text[] is null or metric = any($1)) and source @> $2
order by layouts.id, metric limit $3
"""


@router.get("/targets/metadata")
async def targets_metadata(request: Request, state: Shared) -> Response:
    """What metrics are, by what reports them. match_target, metric, limit.

    Where senders tell different things of one metric, it is the newest: they don't say of whom.
    """
    given = await Parameters.of(request)
    match, metric = given.first("match_target"), given.first("metric")
    matchers = selector_matchers(match) if match else ()
    equal = {one.name: one.value for one in matchers if one.op == "=" and one.value}
    rows = await state.pool.fetch(
        BY_TARGET, series_of(metric) if metric else None, equal, MAX_METADATA
    )
    known = await catalogue(state.pool, {row["metric"] for row in rows})

    def present(_: Check) -> list[bytes]:
        found: dict[tuple[tuple[tuple[str, str], ...], str], Described] = {}
        for row in _matching(rows, matchers):
            family = family_of(row["metric"], known)
            if family and metric in (None, family[0]):
                found[(tuple(row["source"].items()), family[0])] = family[1]
        shown = [
            {"target": dict(target), **({} if metric else {"metric": name}), **one._asdict()}
            for (target, name), one in islice(found.items(), given.limit() or None)
        ]
        return success_pieces(listed(shown))

    return state.outgoing.response(await state.turns.compute(present))


def _matching(rows: Iterable[Any], matchers: tuple[Matcher, ...]) -> list[Any]:
    return [row for row in rows if all(m.accepts(row["source"].get(m.name, "")) for m in matchers)]
