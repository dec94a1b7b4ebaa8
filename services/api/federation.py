"""`/federate`: the newest samples of selected series in Prometheus' text format."""

from collections.abc import Sequence
from itertools import groupby

import numpy as np
from fastapi import APIRouter, Request, Response

from engine.promql import NAME, Block
from engine.promql.blocks import Labels
from engine.promql.formatting import format_value
from engine.promql.windows import instants_of_newest, newest
from services import frames
from services.api.evaluating import Check, bounded, limits_of
from services.api.parameters import Parameters
from services.api.selectors import selectors_of
from services.api.settings import ApiSettings
from services.api.state import Shared
from services.clock import now_us

router = APIRouter(include_in_schema=False)

TEXT_FORMAT = "text/plain; version=0.0.4; charset=utf-8"

TYPES = "select distinct on (metric) metric, type from shapes where metric = any($1)"

TEXT_TYPES = frozenset({"counter", "gauge"})
"""Types that the text format has for a single series; what is of another type is untyped."""


@router.get("/federate")
async def federate(request: Request, state: Shared) -> Response:
    """The newest sample of each series that matches any of match[], with its own instant."""
    given = await Parameters.of(request)
    settings, at_us = state.settings, now_us()
    since_us = at_us - round(settings.lookback.total_seconds() * 1_000_000)
    most = frames.Limits(settings.query_max_series, settings.query_max_samples)
    blocks: list[Block] = []
    async with bounded(settings), state.turns.turn(), state.reader.snapshot(most) as now:
        for matchers in selectors_of(given):
            blocks += await now.read(matchers, since_us, at_us)
        samples = await state.turns.compute(
            lambda check: newest_samples(blocks, at_us, settings, check)
        )
        names = sorted({labels[NAME] for labels, _, _ in samples})
        types = {row["metric"]: row["type"] for row in await now.connection.fetch(TYPES, names)}
        text = await state.turns.compute(lambda _: exposition(samples, types))
    return Response(text, media_type=TEXT_FORMAT)


Sample = tuple[Labels, int, float]
"""A series, the instant in ms, and the value."""


def newest_samples(
    blocks: Sequence[Block], at_us: int, settings: ApiSettings, check: Check
) -> list[Sample]:
    """The newest sample of every series that has one, neither too old nor stale, by name."""
    steps = np.array([at_us], dtype=np.int64)
    lookback_us = round(settings.lookback.total_seconds() * 1_000_000)
    limits = limits_of(settings, check)
    values = newest(blocks, steps, lookback_us, limits)
    instants = instants_of_newest(blocks, steps, lookback_us, limits)
    found = [
        (values.columns[column], round(instants.values[0, column] * 1000), float(value))
        for column, value in enumerate(values.values[0])
        if values.present[0, column]
    ]
    return sorted(found, key=lambda sample: (sample[0][NAME], sorted(sample[0].items())))


def exposition(samples: Sequence[Sample], types: dict[str, str]) -> bytes:
    """Samples, sorted, as text; each metric with its type."""
    lines: list[str] = []
    for name, group in groupby(samples, key=lambda sample: sample[0][NAME]):
        kind = types.get(name, "")
        lines.append(f"# TYPE {name} {kind if kind in TEXT_TYPES else 'untyped'}")
        lines += (
            f"{name}{_braces(labels)} {format_value(value)} {at_ms}"
            for labels, at_ms, value in group
        )
    return "".join(f"{line}\n" for line in lines).encode()


def _braces(labels: Labels) -> str:
    pairs = ",".join(
        f'{key}="{_escaped(value)}"' for key, value in sorted(labels.items()) if key != NAME
    )
    return f"{{{pairs}}}" if pairs else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
