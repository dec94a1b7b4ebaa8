"""`vervet jobs`: how the jobs on stored data are doing, as an api says; or one is asked to run."""

import json
import re
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Literal

from schemas.durations import format_duration
from schemas.errors import Invalid
from services.operators import operators_pool
from services.query import NO_ANSWER, aligned, api_url, no_answer
from services.runtime import Unable

TIMEOUT_S = 10.0


def answer(api: str, output: Literal["table", "json"]) -> str:
    """The jobs as a table or as JSON. Raises Unable where no api answers."""
    try:
        with urllib.request.urlopen(f"{api_url(api)}/v1/jobs", timeout=TIMEOUT_S) as reply:
            items = json.load(reply)["items"]
    except urllib.error.HTTPError as error:
        with error:
            raise Unable(f"{api}: HTTP status {error.code}: {_detail(error)}") from error
    except NO_ANSWER as error:
        raise no_answer(api, error) from error
    return json.dumps(items, indent=2) if output == "json" else _table(items)


def _detail(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["detail"])
    except (ValueError, KeyError, TypeError):
        return error.reason


def _table(items: Sequence[Mapping[str, Any]]) -> str:
    if not items:
        return "no job has run yet: no ingest worker was here"
    rows = [["job", "state", "every", "last success", "took", "lag"]]
    rows += [
        [
            item["name"],
            item["state"],
            _span(item["every_s"]),
            _second(item["succeeded_at"]),
            _span(item["duration_s"]),
            _span(item["lag_s"]),
        ]
        for item in items
    ]
    texts = ["progress", *(item["progress"] for item in items)]
    lines = [
        f"{line}  {text}".rstrip()
        for line, text in zip(aligned(rows).splitlines(), texts, strict=True)
    ]
    lines += [f"{item['name']}: {item['error']}" for item in items if item["error"]]
    return "\n".join(lines)


def _second(instant: str | None) -> str:
    """An RFC 3339 instant to the second."""
    return "never" if instant is None else re.sub(r"\.\d+", "", instant)


def _span(seconds: float | None) -> str:
    """To the second, below one to the millisecond; "-" where it is not known."""
    if seconds is None:
        return "-"
    return format_duration(timedelta(seconds=round(seconds, 0 if seconds >= 1 else 3)))


async def run(database_url: str, name: str) -> str:
    """Ask for a run of one job. Raises Invalid for a name that is none, Unable without database."""
    async with operators_pool(database_url) as pool:
        known = [row["name"] for row in await pool.fetch("select name from jobs order by name")]
        if name not in known:
            raise Invalid(f"--run: there is no job {name!r}; there are: {', '.join(known)}")
        await pool.execute("update jobs set requested_at = now() where name = $1", name)
    return f"{name}: will run as soon as it can; see vervet jobs"
