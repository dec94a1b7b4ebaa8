"""What an api process says of itself, in Prometheus' shape."""

import io
import os
import socket
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

from fastapi import APIRouter, Response
from pydantic import SecretStr
from ruamel.yaml import YAML

from schemas.durations import format_duration
from services.api.envelope import success
from services.api.settings import ApiSettings
from services.api.state import Shared
from services.clock import rfc3339
from services.database import Pool
from services.runtime import version
from services.settings import fields, flag_name

router = APIRouter(prefix="/api/v1/status", include_in_schema=False)

SPOKEN = "2.53.0"
"""The version of Prometheus whose API this is, for clients that choose by it."""

STARTED_AT = datetime.now(UTC)


@router.get("/buildinfo")
async def buildinfo() -> Response:
    """The version: of this program, and of the API that clients may expect."""
    return success(
        {
            "version": f"{SPOKEN}+vervet-{version()}",
            "revision": version(),
            "branch": "",
            "buildUser": "",
            "buildDate": "",
            "goVersion": "",
            "application": "Vervet",
        }
    )


@router.get("/runtimeinfo")
async def runtimeinfo(state: Shared) -> Response:
    """The process; the fields of Go's runtime stand for what is nearest to them."""
    return success(
        {
            "startTime": rfc3339(STARTED_AT),
            "CWD": os.getcwd(),
            "hostname": socket.gethostname(),
            "serverTime": rfc3339(datetime.now(UTC)),
            "reloadConfigSuccess": True,
            "lastConfigTime": rfc3339(STARTED_AT),
            "corruptionCount": 0,
            "goroutineCount": threading.active_count(),
            "GOMAXPROCS": os.cpu_count() or 1,
            "GOMEMLIMIT": 0,
            "GOGC": "",
            "GODEBUG": "",
            "storageRetention": await _retention(state.pool),
        }
    )


async def _retention(pool: Pool) -> str:
    """How long each tier is kept, as `15d (raw), 90d (5m), 2y (1h)`."""
    rows = await pool.fetch("select tier, keep from retention order by keep nulls last")
    return ", ".join(
        f"{'for ever' if row['keep'] is None else format_duration(row['keep'])} ({row['tier']})"
        for row in rows
    )


@router.get("/config")
async def config(state: Shared) -> Response:
    """The settings as YAML, secrets hidden."""
    text = io.StringIO()
    YAML().dump({"vervet_api": shown_settings(state.settings)}, text)
    return success({"yaml": text.getvalue()})


@router.get("/flags")
async def flags(state: Shared) -> Response:
    """The settings as flags, and under Prometheus' names those that it has too."""
    own = shown_settings(state.settings)
    known = {name: own[field] for name, field in _FLAGS.items()}
    return success(known | {flag_name((field,))[2:]: text for field, text in own.items()})


_FLAGS = {
    "query.lookback-delta": "lookback",
    "query.max-concurrency": "query_concurrency",
    "query.max-samples": "query_max_samples",
    "query.timeout": "query_timeout",
    "log.level": "log_level",
    "log.format": "log_format",
    "web.listen-address": "listen",
}


def shown_settings(settings: ApiSettings) -> dict[str, str]:
    """Every setting as a text, fit to be shown."""
    return {path[0]: _shown(getattr(settings, path[0])) for path, _ in fields(ApiSettings)}


def _shown(value: Any) -> str:
    match value:
        case SecretStr():
            return "<secret>"
        case timedelta():
            return format_duration(value)
        case None:
            return ""
        case _:
            return str(value)


@router.get("/walreplay")
async def walreplay() -> Response:
    """Nothing is replayed: PostgreSQL has done that before it answers."""
    return success({"min": 0, "max": 0, "current": 0})
