"""`vervet query`: an expression asked of an api, shown as a table, JSON or CSV."""

import csv
import http.client
import io
import json
import math
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from schemas.durations import parse_duration
from schemas.errors import Invalid
from services.clock import rfc3339
from services.runtime import Unable

TIMEOUT_S = 60.0
SPARKS = "▁▂▃▄▅▆▇█"
SPARK_WIDTH = 40
GAP = " "

REFUSED = (400, 422)
"""Statuses of what is wrong with the expression; all others are about the api."""

Output = Literal["table", "json", "csv"]


def answer(api: str, expression: str, span: str | None, step: str | None, output: Output) -> str:
    """The text to print; what the api remarks stands below a table, else on stderr.

    Raises Invalid for what the api refuses, Unable where none answers.
    """
    form = _form(expression, span, step)
    body = _asked(api, f"/api/v1/query{'' if span is None else '_range'}", form, "data")
    result, remarks = body["data"], _remarks(body)
    if output == "table":
        return "\n".join([_table(result), *remarks])
    sys.stderr.writelines(f"{one}\n" for one in remarks)
    return json.dumps(result, indent=2) if output == "json" else _csv(result)


def _remarks(body: Mapping[str, Any]) -> list[str]:
    """What a reader of the result should know, such as that it is approximate."""
    return [
        f"{kind}: {one.removeprefix(f'PromQL {kind}: ')}"
        for kind, name in (("warning", "warnings"), ("info", "infos"))
        for one in body.get(name, ())
    ]


def explanation(api: str, expression: str, span: str | None, step: str | None) -> dict[str, Any]:
    """What the expression reads and costs, as `/v1/explain` tells it. Raises as `answer` does."""
    return _asked(api, "/v1/explain", _form(expression, span, step), "selectors")


def _form(expression: str, span: str | None, step: str | None) -> dict[str, str]:
    """The parameters of an instant query or, with a span, of one over it up to now."""
    form = {"query": expression}
    if span is not None:
        seconds = _seconds("--range", span)
        if seconds <= 0:
            raise Invalid("--range: expected more than 0s")
        now = time.time()
        given = f"{max(1, round(seconds / 240))}s" if step is None else step
        if _seconds("--step", given) <= 0:
            raise Invalid("--step: expected more than 0s")
        form |= {"start": str(now - seconds), "end": str(now), "step": given}
    elif step is not None:
        raise Invalid("--step: only with --range")
    return form


def _asked(api: str, path: str, form: Mapping[str, str], key: str) -> dict[str, Any]:
    """The answer, which has this key."""
    data = urllib.parse.urlencode(form).encode()
    try:
        with urllib.request.urlopen(f"{api_url(api)}{path}", data, TIMEOUT_S) as reply:
            body: dict[str, Any] = json.load(reply)
    except urllib.error.HTTPError as error:
        with error:
            refusal = _refusal(error)
        if error.code in REFUSED:
            raise Invalid(pointed(form["query"], refusal)) from error
        raise Unable(f"{api}: HTTP status {error.code}: {refusal}") from error
    except NO_ANSWER as error:
        raise no_answer(api, error) from error
    if not isinstance(body, dict) or key not in body:
        raise Unable(f"{api} answers, but not as this api does")
    return body


def _seconds(flag: str, text: str) -> float:
    try:
        return parse_duration(text).total_seconds()
    except ValueError as error:
        raise Invalid(f"{flag}: {error}") from error


NO_ANSWER = (OSError, ValueError, http.client.HTTPException)
"""What urllib and json raise where nobody answers, or who answers is not who was meant."""


def cause(error: Exception) -> str:
    """Of one of NO_ANSWER, in plain words."""
    inner = getattr(error, "reason", error)  # urllib puts it into an error of its own
    return str(getattr(inner, "strerror", None) or inner)


def no_answer(api: str, error: Exception) -> Unable:
    """What a person is told then."""
    return Unable(f"no api answers at {api}: {cause(error)}")


def api_url(api: str) -> str:
    """The base URL of an api given as host:port or as a URL."""
    return (api if "://" in api else f"http://{api}").rstrip("/")


def _refusal(error: urllib.error.HTTPError) -> str:
    """What the api says, in Prometheus' envelope or in a problem document."""
    try:
        body = json.load(error)
        said = body.get("error") or body["detail"]
    except (ValueError, KeyError, TypeError, AttributeError):
        said = error.reason
    return str(said)


_PLACE = re.compile(r"(?:invalid parameter \"query\": )?((\d+):(\d+): parse error: .*)", re.DOTALL)


def pointed(expression: str, refusal: str) -> str:
    """The refusal; where it names a place, with that line of the expression and a mark below it."""
    found = _PLACE.match(refusal)
    lines = expression.split("\n")
    if not found or int(found[2]) > len(lines):
        return refusal
    line, column = lines[int(found[2]) - 1], int(found[3])
    # What stands before the mark keeps its tabs, so that the mark stands where it should.
    before = "".join("\t" if char == "\t" else " " for char in line[: column - 1])
    return f"{found[1]}\n  {line}\n  {before.ljust(column - 1)}^"


def series_text(metric: Mapping[str, str]) -> str:
    """`name{label="value"}`, labels sorted."""
    labels = ",".join(
        f"{name}={json.dumps(value, ensure_ascii=False)}"
        for name, value in sorted(metric.items())
        if name != "__name__"
    )
    return f"{metric.get('__name__', '')}{{{labels}}}" if labels else metric.get("__name__", "{}")


def _table(result: Mapping[str, Any]) -> str:
    kind, items = result["resultType"], result["result"]
    if kind in ("scalar", "string"):
        return str(items[1])
    if not items:
        return "no result"
    if kind == "vector":
        return aligned([[series_text(item["metric"]), item["value"][1]] for item in items])
    rows = [["series", "", "last", "min", "max"]]
    for item in items:
        values = [float(value) for _, value in item["values"]]
        numbers = (values[-1], min(values), max(values))
        shown = [f"{number:.6g}" for number in numbers]
        rows.append([series_text(item["metric"]), sparkline(values), *shown])
    return aligned(rows)


def sparkline(values: Sequence[float]) -> str:
    """The course of values in at most SPARK_WIDTH characters; what is no number is a gap."""
    groups = min(len(values), SPARK_WIDTH)
    means = []
    for group in range(groups):
        part = values[group * len(values) // groups : (group + 1) * len(values) // groups]
        numbers = [value for value in part if math.isfinite(value)]
        means.append(sum(numbers) / len(numbers) if numbers else math.nan)
    known = [mean for mean in means if math.isfinite(mean)]
    if not known:
        return GAP * groups
    low, high = min(known), max(known)
    scale = (len(SPARKS) - 1) / (high - low) if high > low else 0.0
    return "".join(
        SPARKS[round((mean - low) * scale)] if math.isfinite(mean) else GAP for mean in means
    )


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of as many cells each as lines of text, the first column to the left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        first, *rest = row
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _csv(result: Mapping[str, Any]) -> str:
    """A row per sample: series, time, value."""
    items = result["result"]
    if result["resultType"] in ("scalar", "string"):
        samples = [("", items)]
    else:
        samples = [
            (series_text(item["metric"]), sample)
            for item in items
            for sample in item.get("values", [item.get("value")])
        ]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["series", "time", "value"])
    for name, (at, value) in samples:
        writer.writerow([name, rfc3339(round(at * 1_000_000)), value])
    return text.getvalue().rstrip("\n")
