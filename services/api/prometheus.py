"""Prometheus' HTTP API under /api/v1, in its own envelope.

Source: https://prometheus.io/docs/prometheus/latest/querying/api/
"""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import PositiveInt

from engine.promql import (
    Block,
    Matcher,
    Matrix,
    Query,
    QueryError,
    Result,
    Scalar,
    Select,
    Vector,
    parse,
)
from engine.promql.nodes import Selector
from services import frames
from services.api import store
from services.api.parameters import Parameters, instant_us, span_us
from services.api.state import Shared, State
from services.clock import now_us
from services.runtime import version

router = APIRouter(prefix="/api/v1", include_in_schema=False)


def success(data: Any) -> JSONResponse:
    """The envelope of an answer."""
    return JSONResponse({"status": "success", "data": data})


@router.api_route("/query", methods=["GET", "POST"])
async def query(request: Request, state: Shared) -> JSONResponse:
    """An expression at one instant: query, time, timeout."""
    given = await Parameters.of(request)
    at_us = given.instant_us("time", now_us())
    asked = parse(given.required("query"), lookback=state.settings.lookback)
    result = await _evaluate(
        state, given, asked, (at_us, at_us), lambda blocks: asked.instant(at_us, blocks)
    )
    return success(_result(result))


@router.api_route("/query_range", methods=["GET", "POST"])
async def query_range(request: Request, state: Shared) -> JSONResponse:
    """An expression over time: query, start, end, step, timeout."""
    given = await Parameters.of(request)
    start_us, end_us = instant_us(given.required("start")), instant_us(given.required("end"))
    step_us = span_us(given.required("step"))
    if end_us < start_us:
        raise QueryError("end is before start")
    if step_us <= 0:
        raise QueryError("step must be above zero")
    if (end_us - start_us) // step_us >= state.settings.max_points:
        raise QueryError(
            f"more than {state.settings.max_points} points per series; make step longer"
        )
    asked = parse(given.required("query"), lookback=state.settings.lookback)
    result = await _evaluate(
        state,
        given,
        asked,
        (start_us, end_us),
        lambda blocks: asked.range(start_us, end_us, step_us, blocks),
    )
    return success(_result(result))


async def _evaluate(
    state: State, given: Parameters, asked: Query, range_us: tuple[int, int], answer: Any
) -> Result:
    """Read what the query selects, then compute off the loop. Raises QueryError, TimeoutError."""
    limit = min(given.span("timeout", state.settings.query_timeout), state.settings.query_timeout)
    async with asyncio.timeout(limit / timedelta(seconds=1)), state.evaluating:
        blocks: dict[Select, list[Block]] = {}
        for select in asked.selects(*range_us):
            blocks[select] = await frames.read(
                state.pool, select.matchers, select.start_us, select.end_us
            )
        result: Result = await asyncio.to_thread(answer, blocks)
        return result


def _result(result: Result) -> dict[str, Any]:
    if isinstance(result, Vector):
        at = seconds(result.at_us)
        items = zip(result.labels, result.values.tolist(), strict=True)
        rows = [{"metric": dict(one), "value": [at, number(value)]} for one, value in items]
        return {"resultType": "vector", "result": rows}
    if isinstance(result, Matrix):
        return {"resultType": "matrix", "result": _matrix(result)}
    if isinstance(result, Scalar):
        value = [seconds(result.at_us), number(result.value)]
        return {"resultType": "scalar", "result": value}
    return {"resultType": "string", "result": [seconds(now_us()), result]}


def _matrix(matrix: Matrix) -> list[dict[str, Any]]:
    rows = []
    for labels, at, values in matrix.series():
        points = zip((at / 1_000_000).round(3).tolist(), values.tolist(), strict=True)
        rows.append(
            {"metric": dict(labels), "values": [[when, number(value)] for when, value in points]}
        )
    return rows


def seconds(at_us: int) -> float:
    """Unix seconds to the millisecond, as Prometheus writes them."""
    return round(at_us / 1_000_000, 3)


def number(value: float) -> str:
    """A float64 as Prometheus writes it in JSON: the shortest decimal form, never an exponent."""
    text = repr(value)
    if text.endswith(".0"):
        return text[:-2]
    if "e" in text:
        return _without_exponent(text)
    return {"nan": "NaN", "inf": "+Inf", "-inf": "-Inf"}.get(text, text)


def _without_exponent(text: str) -> str:
    mantissa, exponent = text.split("e")
    sign = "-" if mantissa.startswith("-") else ""
    whole, _, part = mantissa.lstrip("-").partition(".")
    shift = int(exponent)
    if shift < 0:
        return f"{sign}0.{'0' * (-shift - 1)}{whole}{part}"
    return f"{sign}{whole}{part.ljust(shift, '0')}"


@router.api_route("/series", methods=["GET", "POST"])
async def series(request: Request, state: Shared) -> JSONResponse:
    """Label sets of the series that match any of match[], with samples in start..end."""
    given = await Parameters.of(request)
    selectors = given.all("match[]")
    if not selectors:
        raise QueryError("no match[] parameter provided")
    found: dict[tuple[tuple[str, str], ...], Mapping[str, str]] = {}
    for matchers in map(selector_matchers, selectors):
        for labels in await store.series_labels(state.pool, matchers, given.range_us()):
            found[tuple(sorted(labels.items()))] = labels
    return success([dict(found[key]) for key in sorted(found)])


@router.api_route("/labels", methods=["GET", "POST"])
async def labels(request: Request, state: Shared) -> JSONResponse:
    """Label names of the series that match any of match[], or of all."""
    names: set[str] = set()
    for one in await _matching(await Parameters.of(request), state):
        names.update(one)
    return success(sorted(names))


@router.get("/label/{name}/values")
async def label_values(name: str, request: Request, state: Shared) -> JSONResponse:
    """Values of one label among the series that match any of match[], or of all."""
    if not name.replace("_", "a").replace(":", "a").isalnum() or name[0].isdigit():
        raise QueryError(f"invalid label name: {name!r}")
    found = await _matching(await Parameters.of(request), state)
    return success(sorted({one[name] for one in found if name in one}))


async def _matching(given: Parameters, state: State) -> list[Mapping[str, str]]:
    selectors: Sequence[Sequence[Matcher]] = [
        selector_matchers(text) for text in given.all("match[]")
    ] or [()]
    found: list[Mapping[str, str]] = []
    for matchers in selectors:
        found += await store.series_labels(state.pool, matchers, given.range_us())
    return found


def selector_matchers(text: str) -> tuple[Matcher, ...]:
    """The matchers of a series selector. Raises QueryError when it is anything else."""
    tree = parse(text).tree
    if not isinstance(tree, Selector):
        raise QueryError(f"match[] {text!r} is not a series selector")
    return tree.matchers


@router.get("/rules")
async def rules(state: Shared) -> JSONResponse:
    """The rules that the evaluators run, with the alerts of each."""
    return success({"groups": await store.rule_groups(state.pool)})


@router.get("/alerts")
async def alerts(state: Shared) -> JSONResponse:
    """All alerts that are pending or firing."""
    return success({"alerts": await store.active_alerts(state.pool)})


@router.get("/metadata")
async def metadata(
    state: Shared,
    metric: str | None = None,
    limit: PositiveInt | None = None,
) -> JSONResponse:
    """Type and unit of each metric, as its first series had them."""
    return success(await store.metadata(state.pool, metric, limit))


@router.api_route("/query_exemplars", methods=["GET", "POST"])
async def query_exemplars(request: Request) -> JSONResponse:
    """Exemplars are not stored: an expression that parses has none."""
    parse((await Parameters.of(request)).required("query"))
    return success([])


@router.get("/status/buildinfo")
async def buildinfo() -> JSONResponse:
    """The version: of this program, and of the API that clients may expect."""
    return success({"version": f"2.53.0+vervet-{version()}", "application": "Vervet"})
