"""Settings of the api."""

from datetime import timedelta
from pathlib import Path

from pydantic import Field

from schemas.durations import Duration
from services.runtime import is_loopback, split_listen
from services.settings import DatabaseSettings, Listen


class ApiSettings(DatabaseSettings):
    """`vervet api`."""

    listen: Listen = Field(
        "127.0.0.1:8420",
        description="host:port of the api, the page, /metrics, /-/healthy and /-/ready",
    )
    lookback: Duration = Field(
        timedelta(minutes=5),
        description="how far back an instant selector looks for a series' newest sample",
    )
    query_timeout: Duration = Field(
        timedelta(seconds=30),
        gt=timedelta(0),
        le=timedelta(seconds=60),
        description="longest time that one query may take, and one statement in the database",
    )
    query_concurrency: int = Field(
        4, ge=1, le=100, description="queries that are answered at once; others wait their turn"
    )
    query_queue: int = Field(
        64, ge=0, description="queries that may wait for their turn; one more is refused (503)"
    )
    query_max_chars: int = Field(
        16_384, ge=1, le=16_384, description="characters of an expression at most"
    )
    query_max_series: int = Field(
        50_000, ge=1, description="series that one selector may select at most"
    )
    query_max_samples: int = Field(
        50_000_000,
        ge=1,
        description="samples that a query may read at most, and hold at once in one table (8 bytes "
        "each)",
    )
    query_max_answer: int = Field(
        5_000_000, ge=1, description="samples in one answer at most (about 25 bytes of JSON each)"
    )
    max_points: int = Field(
        11_000, ge=1, description="points per series of a range query, as in Prometheus"
    )
    remote_write: bool | None = Field(
        None,
        description="whether POST /api/v1/write takes samples; by default only where `listen` is a "
        "loopback address, since whoever reaches it can write",
    )
    remote_write_requests: int = Field(
        64, ge=1, description="requests that are taken at once; one more is to be sent again (503)"
    )
    remote_write_max_bytes: int = Field(
        32 * 1024**2,
        ge=1024,
        le=256 * 1024**2,
        description="bytes of one request at most, when decompressed",
    )
    max_ahead: Duration = Field(
        timedelta(days=1),
        description="samples further in the future than this are refused; the same as for ingest",
    )
    max_age: Duration = Field(
        timedelta(days=366),
        description="samples older than this are refused; the same as for ingest",
    )
    page_directory: Path | None = Field(
        None, description="directory of the built page; the default is the one that is installed"
    )

    @property
    def takes_writes(self) -> bool:
        """Whether remote write is on."""
        if self.remote_write is not None:
            return self.remote_write
        return is_loopback(split_listen(self.listen)[0])
