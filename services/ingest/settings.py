"""Settings of an ingest worker."""

from datetime import timedelta

from pydantic import Field

from schemas.durations import Duration
from services.settings import DatabaseSettings, Listen


class IngestSettings(DatabaseSettings):
    """`vervet ingest`."""

    listen: Listen = Field(
        "127.0.0.1:8422",
        description="host:port of /metrics, /-/healthy and /-/ready",
    )
    batch_samples: int = Field(
        200_000,
        ge=1,
        description="samples in one transaction at most; above this a larger batch saves nothing",
    )
    batch_rows: int = Field(
        20_000,
        ge=1,
        description="rows in one transaction at most, each a frame at an instant: narrow frames "
        "cost by the row",
    )
    batch_bytes: int = Field(
        32 * 1024**2,
        ge=1,
        description="bytes of messages in one transaction at most; two batches are held at once",
    )
    batch_age: Duration = Field(
        timedelta(milliseconds=250),
        description="how long the first message of a batch waits for more",
    )
    prefetch: int = Field(
        1000,
        ge=1,
        le=65_535,
        description="messages taken from the broker before the oldest is settled; bounds memory",
    )
    max_ahead: Duration = Field(
        timedelta(days=1),
        description="samples further in the future than this are refused: a wrong clock",
    )
    max_age: Duration = Field(
        timedelta(days=366), description="samples older than this are refused: a wrong clock"
    )
