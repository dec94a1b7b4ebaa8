"""Settings of an evaluator."""

from datetime import timedelta
from pathlib import Path

from pydantic import Field

from schemas.durations import Duration
from schemas.topology import DEFAULT_PARTITIONS
from services.settings import DatabaseSettings, Listen


class EvaluatorSettings(DatabaseSettings):
    """`vervet evaluator`."""

    listen: Listen = Field(
        "127.0.0.1:8423",
        description="host:port of /metrics, /-/healthy and /-/ready",
    )
    rules: list[Path] = Field([], description="rule files in Prometheus' format")
    builtin_rules: bool = Field(
        True, description="evaluate the rules for hosts that come with this program"
    )
    partitions: int = Field(
        DEFAULT_PARTITIONS,
        ge=1,
        le=1024,
        description="evaluator partitions; the same everywhere as at `vervet migrate`",
    )
    prefetch: int = Field(
        200,
        ge=1,
        le=65_535,
        description="messages of a partition taken before the oldest is settled; bounds memory",
    )
    batch_messages: int = Field(
        50,
        ge=1,
        description="messages in one transaction at most: 50 take about 20 ms to evaluate",
    )
    evaluate_ahead: Duration = Field(
        timedelta(minutes=10),
        description="samples further in the future than this are not evaluated: a wrong clock, "
        "after which all honest samples would count as late",
    )
