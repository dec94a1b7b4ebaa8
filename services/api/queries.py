"""Expressions over HTTP: query, query_range and their kin, and Vervet's own explanation of them."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import lru_cache

import msgspec
from fastapi import APIRouter, Request, Response

from engine.promql import Matrix, Query, QueryError, Result, Vector, parse
from engine.promql.places import placed
from engine.promql.printing import format_query as printed
from engine.promql.remarks import remarks
from engine.promql.syntax import parse_query as tree_of
from services.api import encoding, explaining
from services.api.costs import PHASES, Costs
from services.api.envelope import TRUNCATED, success, success_pieces
from services.api.errors import BadData, Unprocessable
from services.api.evaluating import Asked, Check, T, evaluate, unless_gone
from services.api.parameters import Parameters, instant_us, span_us
from services.api.settings import ApiSettings
from services.api.state import Shared, State
from services.clock import now_us

router = APIRouter(prefix="/api/v1", include_in_schema=False)
explain_router = APIRouter(prefix="/v1")

GET_OR_FORM = ["GET", "POST"]


async def query(request: Request) -> Response:
    """An expression at one instant: query, time, timeout, limit, lookback_delta, stats."""
    state: State = request.app.state.vervet
    given = await Parameters.of(request)
    return await _answered(request, state, given, instant_query(state.settings, given))


async def query_range(request: Request) -> Response:
    """An expression over time: query, start, end, step, and what `query` takes."""
    state: State = request.app.state.vervet
    given = await Parameters.of(request)
    return await _answered(request, state, given, range_query(state.settings, given))


ROUTES = {"/api/v1/query": query, "/api/v1/query_range": query_range}


@router.api_route("/format_query", methods=GET_OR_FORM)
async def format_query(request: Request, state: Shared) -> Response:
    """An expression in the usual form, over several lines where it is long."""
    text = expression(state.settings, await Parameters.of(request))
    try:
        return success(await asyncio.to_thread(printed, text))
    except QueryError as error:
        raise _wrong(text, error) from error


@router.api_route("/parse_query", methods=GET_OR_FORM)
async def parse_query(request: Request, state: Shared) -> Response:
    """An expression's syntax tree."""
    text = expression(state.settings, await Parameters.of(request))
    try:
        return success(await asyncio.to_thread(tree_of, text))
    except QueryError as error:
        raise _wrong(text, error) from error


@router.api_route("/query_exemplars", methods=GET_OR_FORM)
async def query_exemplars(request: Request, state: Shared) -> Response:
    """Exemplars are not stored: an expression that parses has none."""
    given = await Parameters.of(request)
    given.range_us()
    parsed(state.settings, given)
    return success([])


@explain_router.get("/explain")
@explain_router.post("/explain")
async def explain(request: Request, state: Shared) -> explaining.Explanation:
    """What an expression reads and costs. It takes what `query` takes, or `query_range`."""
    given = await Parameters.of(request)
    ranged = given.first("start") is not None
    asked = (range_query if ranged else instant_query)(state.settings, given)

    def present(result: Result, costs: Costs, _: Check) -> explaining.Explanation:
        return explaining.explanation(asked, result, costs)

    return await _evaluated(request, state, given, asked, present)


def instant_query(settings: ApiSettings, given: Parameters) -> Asked:
    """What is asked at `time`, or now. Raises BadData, Unprocessable."""
    at_us = given.instant_us("time", now_us())
    return Asked(parsed(settings, given), at_us, at_us)


def range_query(settings: ApiSettings, given: Parameters) -> Asked:
    """What is asked from `start` to `end`. Raises BadData, Unprocessable."""
    start_us, end_us = given.read("start", instant_us), given.read("end", instant_us)
    step_us = given.read("step", span_us)
    if end_us < start_us:
        raise BadData('invalid parameter "end": end timestamp must not be before start time')
    if step_us <= 0:
        raise BadData(
            'invalid parameter "step": zero or negative query resolution step widths are not'
            " accepted. Try a positive integer"
        )
    found = parsed(settings, given, step_us, end_us - start_us)
    if found.kind in _NOT_IN_RANGE:
        raise BadData(
            f'invalid parameter "query": invalid expression type "{_NOT_IN_RANGE[found.kind]}"'
            " for range query, must be Scalar or instant Vector"
        )
    return Asked(found, start_us, end_us, step_us)


_NOT_IN_RANGE = {"matrix": "range vector", "string": "string"}


def expression(settings: ApiSettings, given: Parameters) -> str:
    """The text of the expression. Raises Unprocessable where it is too long."""
    text = given.first("query") or ""
    if len(text) > settings.query_max_chars:
        raise Unprocessable(
            f"expression of {len(text):,} characters; at most {settings.query_max_chars:,}"
            " (query_max_chars)"
        )
    return text


def parsed(settings: ApiSettings, given: Parameters, step_us: int = 0, range_us: int = 0) -> Query:
    """The expression, of a range query with this step over this time. Raises BadData,
    Unprocessable."""
    text = expression(settings, given)
    lookback = given.span("lookback_delta", settings.lookback)
    within = lookback or settings.lookback
    read = _read_lately if len(text) <= MAX_REMEMBERED_CHARS else parse
    try:
        return read(text, lookback=within, step_us=step_us, range_us=range_us)
    except QueryError as error:
        raise _wrong(text, error) from error


MAX_REMEMBERED_CHARS = 1000
"""A longer expression is parsed each time: all that are remembered take some megabytes."""

_read_lately = lru_cache(maxsize=256)(parse)


def _wrong(text: str, error: QueryError) -> BadData:
    return BadData(f'invalid parameter "query": {placed(text, str(error))}')


async def _evaluated(
    request: Request,
    state: State,
    given: Parameters,
    asked: Asked,
    present: Callable[[Result, Costs, Check], T],
) -> T:
    settings = state.settings
    limit = min(given.span("timeout", settings.query_timeout), settings.query_timeout)
    limit = max(limit, timedelta(0))
    work = evaluate(state.turns, state.reader, settings, asked, limit, present)
    return await unless_gone(request, work)


async def _answered(request: Request, state: State, given: Parameters, asked: Asked) -> Response:
    limit, with_stats = given.limit(), given.first("stats") is not None

    def present(result: Result, costs: Costs, check: Check) -> list[bytes]:
        shown, cut = _limited(result, limit)
        kind, pieces = encoding.data(shown, asked.end_us)
        written = [b'{"resultType":"%b","result":' % kind.encode()]
        for piece in pieces:
            check()
            written.append(piece)
        written.append(b',"stats":' + _stats(costs) + b"}" if with_stats else b"}")
        warnings, infos = _remarks(asked, costs)
        return success_pieces(written, [*cut, *warnings], [*costs.notes, *infos])

    return state.outgoing.response(await _evaluated(request, state, given, asked, present))


def _remarks(asked: Asked, costs: Costs) -> tuple[list[str], list[str]]:
    """(warnings, infos) on the expression."""
    found = {read.select.matchers for read in costs.reads if read.series}
    query = asked.query
    every = remarks(query.text, query.tree, lambda selector: selector.matchers in found)
    return (
        [one.text for one in every if one.level == "warning"],
        [one.text for one in every if one.level == "info"],
    )


def _limited(result: Result, limit: int) -> tuple[Result, Sequence[str]]:
    """The first `limit` series of a result, with a warning where there are more."""
    if not isinstance(result, Vector | Matrix) or not 0 < limit < len(result.labels):
        return result, ()
    labels = result.labels[:limit]
    if isinstance(result, Vector):
        return replace(result, labels=labels, values=result.values[:limit]), [TRUNCATED]
    values, present = result.values[:, :limit], result.present[:, :limit]
    return replace(result, labels=labels, values=values, present=present), [TRUNCATED]


def _stats(costs: Costs) -> bytes:
    """What the query cost, under Prometheus' names."""
    queue, read, evaluate = (costs.phases[name] for name in PHASES)
    return msgspec.json.encode(
        {
            "timings": {
                "evalTotalTime": read + evaluate,
                "resultSortTime": 0,
                "queryPreparationTime": read,
                "innerEvalTime": evaluate,
                "execQueueTime": queue,
                "execTotalTime": queue + read + evaluate,
            },
            "samples": {"totalQueryableSamples": costs.samples, "peakSamples": costs.samples},
        }
    )
