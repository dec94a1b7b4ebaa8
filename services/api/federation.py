"""`/federate`: the newest samples of selected series in Prometheus' text format."""

from collections.abc import Sequence
from itertools import groupby

import numpy as np
from fastapi import APIRouter, Request, Response

from engine.promql import NAME, Block
from engine.promql.blocks import Labels
from engine.promql.formatting import format_value
from engine.promql.ordering import in_order
from engine.promql.windows import instants_of_newest, newest
from services import frames
from services.api.evaluating import Check, bounded, limits_of
from services.api.metadata import Catalogue, catalogue, family_of
from services.api.parameters import Parameters
from services.api.selectors import selectors_of
from services.api.settings import ApiSettings
from services.api.state import Shared
from services.clock import now_us

router = APIRouter(include_in_schema=False)

TEXT_FORMAT = "text/plain; version=0.0.4; charset=utf-8"

SINGLE = frozenset({"counter", "gauge"})
"""Types of families whose series have one name, as the text format has them."""

OF_SEVERAL = {"histogram": "le", "summary": "quantile"}
"""Types of families whose series have several names, and the label whose numbers are in order."""


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
        known = await catalogue(now.connection, names)
        text = await state.turns.compute(lambda _: exposition(samples, known))
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
    return in_order(found, key=lambda sample: (sample[0][NAME], sorted(sample[0].items())))


def exposition(samples: Sequence[Sample], known: Catalogue) -> bytes:
    """Samples as text: those of a family together, after its type."""
    families = {name: _family(name, known) for name in {labels[NAME] for labels, _, _ in samples}}
    keys = [_place(labels, families[labels[NAME]]) for labels, _, _ in samples]
    lines: list[str] = []
    order = sorted(range(len(samples)), key=keys.__getitem__)
    for (family, kind), places in groupby(order, lambda n: families[samples[n][0][NAME]]):
        lines.append(f"# TYPE {family} {kind}")
        for labels, at_ms, value in (samples[place] for place in places):
            lines.append(f"{labels[NAME]}{_braces(labels)} {format_value(value)} {at_ms}")
    return "".join(f"{line}\n" for line in lines).encode()


Family = tuple[str, str]
"""A family's name and type, as the text format has them."""


def _family(metric: str, known: Catalogue) -> Family:
    """What a series of this name is declared as: alone, or as one of a family's."""
    family, told = family_of(metric, known) or (metric, None)
    if told is None:
        return metric, "untyped"
    if told.type in OF_SEVERAL:
        return family, told.type
    return metric, told.type if told.type in SINGLE and _is_one(metric, family) else "untyped"


def _is_one(metric: str, family: str) -> bool:
    """Whether its series have but this name: in OpenMetrics, a family's lacks the `_total`."""
    return metric in (family, f"{family}_total")


def _place(labels: Labels, family: Family) -> tuple[str, str, list[tuple[str, str]], float]:
    """Where a series stands: buckets and quantiles of the same labels follow one another."""
    own = OF_SEVERAL.get(family[1])
    others = sorted(pair for pair in labels.items() if pair[0] not in (NAME, own))
    return family[0], labels[NAME], others, _number(labels.get(own or "", ""))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def _braces(labels: Labels) -> str:
    pairs = ",".join(
        f'{key}="{_escaped(value)}"' for key, value in sorted(labels.items()) if key != NAME
    )
    return f"{{{pairs}}}" if pairs else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
