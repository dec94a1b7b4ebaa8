"""Settings of the api."""

from datetime import timedelta
from pathlib import Path

from pydantic import Field

from schemas.durations import Duration
from services.settings import DatabaseSettings


class ApiSettings(DatabaseSettings):
    """`vervet api`."""

    listen: str = Field(
        "127.0.0.1:8420",
        pattern=r"^\S*:\d{1,5}$",
        description="host:port of the api, the page, /metrics, /-/healthy and /-/ready",
    )
    lookback: Duration = Field(
        timedelta(minutes=5),
        description="how far back an instant selector looks for a series' newest sample",
    )
    query_timeout: Duration = Field(
        timedelta(seconds=30), description="longest time that one query may take"
    )
    query_concurrency: int = Field(
        4, ge=1, description="queries evaluated at once; others wait their turn"
    )
    max_points: int = Field(
        11_000, ge=1, description="points per series of a range query, as in Prometheus"
    )
    page_directory: Path | None = Field(
        None, description="directory of the built page; the default is the one that is installed"
    )
