"""Rules and alerts over HTTP, in Prometheus' shape."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

from engine.promql import Matcher, matches
from services.api import store
from services.api.envelope import success
from services.api.errors import BadData
from services.api.parameters import Parameters
from services.api.selectors import selectors_of
from services.api.state import Shared

router = APIRouter(prefix="/api/v1", include_in_schema=False)

TYPES = {"alert": "alerting", "record": "recording"}

Item = Mapping[str, Any]


@router.get("/rules")
async def rules(request: Request, state: Shared) -> Response:
    """The rules that the evaluators run, with the alerts of each.

    type, rule_name[], rule_group[], file[], match[], exclude_alerts.
    """
    given = await Parameters.of(request)
    wanted = _wanted(given)
    files, names = given.all("file[]"), given.all("rule_group[]")
    without_alerts = given.flag("exclude_alerts")
    found = []
    for group in await store.rule_groups(state.pool):
        if not _among(group["file"], files) or not _among(group["name"], names):
            continue
        kept = [rule for rule in group["rules"] if wanted(rule)]
        if without_alerts:
            kept = [{key: rule[key] for key in rule if key != "alerts"} for rule in kept]
        if kept or not group["rules"]:
            found.append({**group, "rules": kept})
    return success({"groups": found})


@router.get("/alerts")
async def alerts(state: Shared) -> Response:
    """All alerts that are pending or firing."""
    return success({"alerts": await store.active_alerts(state.pool)})


@router.get("/alertmanagers")
async def alertmanagers() -> Response:
    """None: notifications are sent by Vervet's own notifier."""
    return success({"activeAlertmanagers": [], "droppedAlertmanagers": []})


def _wanted(given: Parameters) -> Callable[[Item], bool]:
    """Which rules are asked for. Raises BadData."""
    kind = given.first("type")
    if kind is not None and kind not in TYPES:
        raise BadData(f'invalid parameter "type": not supported value "{kind}"')
    names = given.all("rule_name[]")
    selectors = selectors_of(given)

    def wanted(rule: Item) -> bool:
        right_type = kind is None or rule["type"] == TYPES[kind]
        return right_type and _among(rule["name"], names) and _labelled(rule, selectors)

    return wanted


def _among(name: str, names: Sequence[str]) -> bool:
    return not names or name in names


def _labelled(rule: Item, selectors: Sequence[Sequence[Matcher]]) -> bool:
    return not selectors or any(matches(one, rule["labels"]) for one in selectors)
