"""What metrics are: told by who sends their samples, as JSON on `vervet.events`."""

import hashlib
from typing import Literal, get_args

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from schemas.bodies import Instant, Text, decode_body
from schemas.layouts import MAX_NAME_CHARS

METADATA_JSON = "application/vnd.vervet.metadata+json"

MAX_HELP_CHARS = 4096
"""Of what a metric is about."""

MetricType = Literal[
    "unknown", "counter", "gauge", "histogram", "gaugehistogram", "summary", "info", "stateset"
]
METRIC_TYPES = get_args(MetricType)
"""Prometheus' types of metrics, in the order of its protobuf (prompb: MetricMetadata)."""


class MetricMetadata(BaseModel):
    """What one metric is. `metric` names a family: a histogram's without `_bucket`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    metric: Text = Field(min_length=1, max_length=MAX_NAME_CHARS)
    type: MetricType = "unknown"
    help: Text = Field("", max_length=MAX_HELP_CHARS)
    unit: Text = Field("", max_length=MAX_NAME_CHARS)

    @property
    def hash(self) -> bytes:
        """Identity: 16 bytes over all of it."""
        told = msgspec.msgpack.encode([self.metric, self.type, self.help, self.unit])
        return hashlib.blake2b(told, digest_size=16).digest()


class MetadataTold(BaseModel):
    """A sender of samples told what metrics are. It does not say of which sources."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    at: Instant
    metrics: tuple[MetricMetadata, ...]

    @property
    def routing_key(self) -> str:
        return "metrics.none.metadata"


def encode_metadata(told: MetadataTold) -> bytes:
    """The JSON body."""
    return told.model_dump_json().encode()


def decode_metadata(body: bytes) -> MetadataTold:
    """What a JSON body tells. Raises Invalid with the reason."""
    return decode_body(MetadataTold, body, "metadata")
