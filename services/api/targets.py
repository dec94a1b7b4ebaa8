"""Agents as Prometheus shows its targets: what reports, since when, and whether it still does."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from fastapi import APIRouter, Request, Response

from schemas.durations import format_duration
from services.api import store
from services.api.envelope import success
from services.api.parameters import Parameters
from services.api.state import Shared

router = APIRouter(prefix="/api/v1", include_in_schema=False)

MAX_TARGETS = 10_000
"""Agents of one answer, in the order of job and instance."""

HEALTH = {"up": "up", "silent": "down", "gone": "unknown"}
"""By an agent's state. One that said goodbye is not down."""

ERRORS = {"up": "", "silent": "no samples for three intervals", "gone": "the agent was stopped"}


@router.get("/targets")
async def targets(request: Request, state: Shared) -> Response:
    """The agents; scrapePool is their job. state=active|dropped|any, scrapePool."""
    given = await Parameters.of(request)
    wanted, pool = (given.first("state") or "any").lower(), given.first("scrapePool")
    if wanted == "dropped":
        return success({"activeTargets": [], "droppedTargets": []})
    agents = await store.agents(state.pool, ("", ""), MAX_TARGETS)
    active = [_target(agent) for agent in agents if pool in (None, agent["job"])]
    body: dict[str, Any] = {"activeTargets": active, "droppedTargets": []}
    if wanted != "active":
        body["droppedTargetCounts"] = {}
    return success(body)


def _target(agent: Mapping[str, Any]) -> dict[str, Any]:
    interval = format_duration(timedelta(seconds=agent["interval_s"] or store.DEFAULT_INTERVAL_S))
    return {
        "discoveredLabels": {"__address__": agent["instance"], "job": agent["job"]},
        "labels": agent["labels"],
        "scrapePool": agent["job"],
        "scrapeUrl": "",
        "globalUrl": "",
        "lastError": ERRORS[agent["state"]],
        "lastScrape": agent["last_sample_at"],
        "lastScrapeDuration": 0,
        "health": HEALTH[agent["state"]],
        "scrapeInterval": interval,
        "scrapeTimeout": interval,
    }


@router.get("/scrape_pools")
async def scrape_pools(state: Shared) -> Response:
    """The jobs that agents report for."""
    rows = await state.pool.fetch("select distinct job from agents order by job")
    return success({"scrapePools": [row["job"] for row in rows]})
