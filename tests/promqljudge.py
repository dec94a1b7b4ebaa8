"""Prometheus itself as the judge: the same samples, the same questions, and when answers agree.

Asked may be a 2.x as well as a 3.x, which differ: where a window begins (closed, and open), so no
sample stands on the edge of one in what tests/promqlgrammar.py makes, if instants end in 3 or 8
seconds; whether a comparison may drop one of two matches before they are counted; and whether
label_join may make two series the same.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np

from engine.promql import (
    NAME,
    Block,
    Columns,
    Matrix,
    QueryError,
    Result,
    Scalar,
    Select,
    Unanswered,
    Vector,
    matching_columns,
    parse,
)
from schemas.values import ABSENT, STALE
from tests.stack import remote_write

START_S = 1_599_998_400
"""A multiple of an hour."""

FIRST_S, STEP_S = START_S + 1, 10
STEPS = 60
SECOND_US = 1_000_000
RELATIVE = 1e-9
ABSOLUTE = 1e-9
"""What rounding leaves of values that should be 0; those that go in are between 1e-3 and 1e6,
but for `bytes`, of which only tests/promqlqueries.py makes use."""

COUNTERS_BEGIN = (1e6, 3e4, 1e3)
"""At first, and after each reset."""

HOSTS, DISKS, BOUNDS = "ab", "123", ("0.1", "1", "10", "+Inf")

Labels = Mapping[str, str]
Sampled = tuple[Labels, Sequence[float]]
"""A series with its value at every step."""

Key = frozenset[tuple[str, str]]


@dataclass(frozen=True)
class Question:
    """An expression at an instant, or, with a step, over time; in seconds after START_S."""

    text: str
    at_s: float
    end_s: float | None = None
    step_s: float = 0

    def parameters(self) -> tuple[str, dict[str, str]]:
        """The endpoint and its parameters."""
        if self.end_s is None:
            return "query", {"query": self.text, "time": str(START_S + self.at_s)}
        bounds = {"start": START_S + self.at_s, "end": START_S + self.end_s, "step": self.step_s}
        return "query_range", {"query": self.text} | {k: str(v) for k, v in bounds.items()}


@dataclass(frozen=True)
class Answer:
    """kind: of the result, or the type of the error. points: (instant, value) of each series."""

    kind: str
    points: Mapping[Key, Sequence[tuple[float, float]]]
    message: str = ""


def samples(seed: int) -> list[Sampled]:
    """Series; ABSENT and STALE among them.

    Counters begin so high, and begin anew so much lower, that extrapolation to zero, which was
    changed in Prometheus 3, plays no part. No two gauges are equal.
    """
    rng = random.Random(seed)
    series: list[Sampled] = []

    def add(name: str, host: str, values: Sequence[float], **labels: str) -> None:
        known = {NAME: name, "host": host, "instance": f"host-{host}", "job": "node", **labels}
        series.append((known, [_with_holes(rng, one) for one in values]))

    for host in HOSTS:
        for disk in DISKS:
            for name in ("counter", "gauge", "other"):
                if rng.random() > 0.1:
                    add(name, host, _walk(rng, name, 0.001 * len(series)), disk=disk)
        add("cpus", host, [4.0 if host == "a" else 8.0] * STEPS)
        totals, counts = [1000.0] * len(BOUNDS), []
        for _ in range(STEPS):
            grown = [rng.randrange(5) for _ in BOUNDS]
            totals = [total + sum(grown[: n + 1]) for n, total in enumerate(totals)]
            counts.append(totals)
        for bound, values in zip(BOUNDS, zip(*counts, strict=True), strict=True):
            add("h_bucket", host, values, le=bound)
    for host in HOSTS:
        add("bytes", host, [1e9 + rng.random() * 1e6 for _ in range(STEPS)])
    return series


def _walk(rng: random.Random, name: str, apart: float) -> list[float]:
    value, resets, values = COUNTERS_BEGIN[0], 0, []
    for _ in range(STEPS):
        if name == "counter":
            value += rng.choice([0, 1, 7.5])
            if rng.random() < 0.05 and resets < len(COUNTERS_BEGIN) - 1:
                resets += 1
                value = COUNTERS_BEGIN[resets]
        else:
            value = rng.choice([-3, -1.5, 0, 0.25, 1, 2, 1e3]) + (apart if name == "gauge" else 0)
        values.append(value)
    return values


def _with_holes(rng: random.Random, value: float) -> float:
    kind = rng.random()
    return ABSENT if kind < 0.06 else STALE if kind < 0.08 else value


def write(url: str, series: Sequence[Sampled]) -> None:
    """The samples by remote write."""
    request = remote_write.write_request(
        (
            labels,
            [
                (value, (FIRST_S + row * STEP_S) * 1000)
                for row, value in enumerate(values)
                if value is not ABSENT
            ],
        )
        for labels, values in series
    )
    answer = remote_write.post(url, request)
    assert answer.is_success, answer.text


class Memory:
    """The samples as blocks: the engine's store. first_s: when the first were taken."""

    def __init__(self, series: Sequence[Sampled], first_s: int = FIRST_S) -> None:
        self.columns = Columns([labels for labels, _ in series])
        self.at = (first_s + STEP_S * np.arange(STEPS)) * SECOND_US
        self.values = np.array([values for _, values in series]).T

    def __getitem__(self, select: Select) -> list[Block]:
        places = matching_columns(select.matchers, self.columns)
        rows = (self.at > select.start_us) & (self.at <= select.end_us)
        cells = self.values[np.ix_(rows, np.array(places, dtype=np.intp))]
        if len(places) % 2:  # as history comes: column by column
            cells = np.asfortranarray(cells)
        return [Block(self.columns.take(places), self.at[rows], cells)] if places else []


def answered(question: Question, store: Memory) -> Answer:
    """What the engine answers."""
    at_us = round((START_S + question.at_s) * SECOND_US)
    try:
        query = parse(question.text)
        if question.end_s is None:
            return _answer(query.instant(at_us, store), at_us)
        end_us = round((START_S + question.end_s) * SECOND_US)
        step_us = round(question.step_s * SECOND_US)
        return _answer(query.range(at_us, end_us, step_us, store), at_us)
    except Unanswered as error:
        return Answer("execution", {}, str(error))
    except QueryError as error:
        return Answer("bad_data", {}, str(error))


def _answer(result: Result, at_us: int) -> Answer:
    at_s = at_us / SECOND_US
    match result:
        case str():
            return Answer("string", {})
        case Scalar():
            return Answer("scalar", {frozenset(): [(at_s, result.value)]})
        case Vector():
            values = zip(result.labels, result.values.tolist(), strict=True)
            return Answer("vector", {_key(one): [(at_s, value)] for one, value in values})
        case Matrix():
            return Answer(
                "matrix",
                {
                    _key(labels): list(zip((at / SECOND_US).tolist(), values.tolist(), strict=True))
                    for labels, at, values in result.series()
                },
            )


def _key(labels: Labels) -> Key:
    return frozenset(labels.items())


def asked(client: httpx.Client, question: Question) -> Answer:
    """What a server answers over Prometheus' HTTP API."""
    path, parameters = question.parameters()
    return read(client.post(f"/api/v1/{path}", data=parameters).json())


def read(body: Any) -> Answer:
    """An answer out of its JSON."""
    if body["status"] == "error":
        return Answer(body["errorType"], {}, body["error"])
    kind, result = body["data"]["resultType"], body["data"]["result"]
    if kind in ("scalar", "string"):
        points = {} if kind == "string" else {frozenset[tuple[str, str]](): [_point(result)]}
        return Answer(kind, points)
    return Answer(
        kind,
        {
            _key(one["metric"]): [_point(p) for p in one.get("values") or [one["value"]]]
            for one in result
        },
    )


def _point(pair: Sequence[Any]) -> tuple[float, float]:
    return float(pair[0]), float(pair[1])


def difference(ours: Answer, theirs: Answer, text: str = "") -> str:
    """What is different about our answer; "" where both say the same. text: what was asked."""
    if "label_join" in text and "same labelset" in ours.message:
        return ""  # Prometheus 2.53 does not notice
    if "multiple matches for labels" in ours.message:
        return ""  # Prometheus 3 counts them before a comparison filters, Prometheus 2 after it
    if "same labelset" in theirs.message:
        return ""  # names are removed at the end here: until then the series are told apart
    if ours.kind != theirs.kind:
        return f"{ours.kind} {ours.message}; expected {theirs.kind} {theirs.message}"
    if ours.points.keys() != theirs.points.keys():
        more, less = ours.points.keys() - theirs.points, theirs.points.keys() - ours.points
        return f"series too many: {list(map(sorted, more))}; missing: {list(map(sorted, less))}"
    for key, points in ours.points.items():
        expected = theirs.points[key]
        if [at for at, _ in points] != [at for at, _ in expected]:
            return f"{sorted(key)}: instants {points}; expected {expected}"
        for (at, found), (_, wanted) in zip(points, expected, strict=True):
            if not near(found, wanted):
                return f"{sorted(key)} at {at}: {found!r}; expected {wanted!r}"
    return ""


def near(found: float, wanted: float) -> bool:
    """Whether two values are the same but for rounding."""
    if math.isnan(found) or math.isnan(wanted):
        return math.isnan(found) and math.isnan(wanted)
    return math.isclose(found, wanted, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
