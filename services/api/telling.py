"""Metadata that remote write carries, passed on as events: the api itself writes nothing.

A Prometheus sends all of it every minute; what it told already is known by its bytes.
"""

import secrets
import time
from collections.abc import Iterable, Iterator

from prometheus_client import Counter
from pydantic import ValidationError

from schemas.errors import Invalid
from schemas.layouts import Series, check_series
from schemas.metadata import (
    MAX_HELP_CHARS,
    METADATA_JSON,
    MetadataTold,
    MetricMetadata,
    encode_metadata,
)
from schemas.topology import EVENTS
from services.api.remote_write import Malformed, parse_metadata
from services.bus import Bus, Message
from services.clock import instant, now_us

REFUSED = Counter("vervet_write_metadata_refused_total", "Metadata of remote write refused")

AGAIN_S = 3600.0
"""How long after metadata was passed on it is passed on again, so that it counts as current."""

MAX_TOLD = 100_000
"""Metadata that a process knows; beyond that it passes all on anew."""

AT_ONCE = 500
"""Metadata that is checked while nothing else is done: a few milliseconds."""

MESSAGE_CHARS = 32 * 1024
"""Of metadata in an event; JSON takes up to six bytes for each."""


class Telling:
    """Passes metadata on."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._told_s: dict[bytes, float] = {}

    async def tell(self, encoded: Iterable[bytes]) -> None:
        """Publish what was not told lately. Raises BusError: to be sent again."""
        now_s = time.monotonic()
        news = [one for one in dict.fromkeys(encoded) if self._is_news(one, now_s)]
        for begin in range(0, len(news), AT_ONCE):
            some = news[begin : begin + AT_ONCE]
            for metrics in _portions(_acceptable(some)):
                told = MetadataTold(at=instant(now_us()), metrics=metrics)
                message = Message(encode_metadata(told), METADATA_JSON, secrets.token_hex(16))
                await self._bus.publish(EVENTS, told.routing_key, message)
            if len(self._told_s) + len(some) > MAX_TOLD:
                self._told_s.clear()
            self._told_s.update(dict.fromkeys(some, now_s))

    def _is_news(self, encoded: bytes, now_s: float) -> bool:
        told_s = self._told_s.get(encoded)
        return told_s is None or now_s - told_s >= AGAIN_S


def _acceptable(encoded: Iterable[bytes]) -> Iterator[MetricMetadata]:
    """What can be kept; what can't is counted: it is no sample, so nothing is answered to it."""
    for one in encoded:
        try:
            kind, metric, about, unit = parse_metadata(one)
            check_series(Series(metric), "metadata")
            yield MetricMetadata.model_validate(
                {"metric": metric, "type": kind, "help": about[:MAX_HELP_CHARS], "unit": unit}
            )
        except (Malformed, Invalid, ValidationError):
            REFUSED.inc()


def _portions(metrics: Iterable[MetricMetadata]) -> Iterator[tuple[MetricMetadata, ...]]:
    portion: list[MetricMetadata] = []
    size = 0
    for one in metrics:
        if size > MESSAGE_CHARS:
            yield tuple(portion)
            portion, size = [], 0
        portion.append(one)
        size += len(one.metric) + len(one.help) + len(one.unit) + 60
    if portion:
        yield tuple(portion)
