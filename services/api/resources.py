"""Vervet's own resources under /v1: lists with cursors, problem documents for errors."""

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query

from services.api import store
from services.api.state import Shared

router = APIRouter(prefix="/v1")

Limit = Annotated[int, Query(ge=1, le=1000)]
Item = dict[str, Any]

NEWEST_FIRST = 2**62
"""A sequence above all: where a list that is newest first begins."""


def page(items: Sequence[Item], limit: int, position: Callable[[Item], Any]) -> Item:
    """One page of a list; `next` is the cursor of the following one, null at the end."""
    following = _cursor(position(items[-1])) if len(items) == limit else None
    return {"items": items, "next": following}


def _cursor(position: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(position).encode()).decode()


def _position(cursor: str | None, default: Any) -> Any:
    """What a cursor stands for. Raises HTTPException (400) for one that is not ours."""
    if cursor is None:
        return default
    try:
        found = json.loads(base64.urlsafe_b64decode(cursor))
    except (binascii.Error, ValueError) as error:
        raise HTTPException(400, "cursor: not one that this list gave") from error
    shape = type(default)
    if not isinstance(found, list if shape is tuple else shape) or isinstance(found, bool):
        raise HTTPException(400, "cursor: not one that this list gave")
    if shape is tuple:
        if len(found) != len(default) or not all(isinstance(part, str) for part in found):
            raise HTTPException(400, "cursor: not one that this list gave")
        return tuple(found)
    return found


@router.get("/agents")
async def agents(state: Shared, limit: Limit = 200, cursor: str | None = None) -> Item:
    """Agents by job and instance, with their state and what of theirs is missing."""
    after = _position(cursor, ("", ""))
    items = await store.agents(state.pool, after, limit)
    return page(items, limit, lambda item: [item["job"], item["instance"]])


@router.get("/transitions")
async def transitions(
    state: Shared,
    instance: str | None = None,
    alertname: str | None = None,
    limit: Limit = 100,
    cursor: str | None = None,
) -> Item:
    """Alerts' changes of state, newest first."""
    before = _position(cursor, NEWEST_FIRST)
    items = await store.transitions(state.pool, before, instance, alertname, limit)
    return page(items, limit, lambda item: item["sequence"])


@router.get("/inbox")
async def inbox(state: Shared, limit: Limit = 100, cursor: str | None = None) -> Item:
    """Notifications of the `inbox` receivers, newest first."""
    before = _position(cursor, NEWEST_FIRST)
    items = await store.inbox(state.pool, before, limit)
    return page(items, limit, lambda item: item["sequence"])


@router.get("/deliveries")
async def deliveries(state: Shared, limit: Limit = 100, cursor: str | None = None) -> Item:
    """Attempts to tell receivers, newest first, each with its reason."""
    before = _position(cursor, NEWEST_FIRST)
    items = await store.deliveries(state.pool, before, limit)
    return page(items, limit, lambda item: item["sequence"])


@router.get("/pipeline")
async def pipeline(state: Shared) -> dict[str, int]:
    """Samples generated, stored, dropped and on their way."""
    return await store.pipeline(state.pool)


@router.get("/jobs")
async def jobs(state: Shared) -> Item:
    """The jobs on stored data, each with how its last run went and how far it has come."""
    return {"items": await store.jobs(state.pool), "next": None}
