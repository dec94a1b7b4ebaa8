"""Settings of the notifier. It works without any: everything then goes to the inbox."""

from datetime import timedelta
from pathlib import Path

from pydantic import Field

from schemas.durations import Duration
from services.settings import DatabaseSettings, Listen


class NotifierSettings(DatabaseSettings):
    """How notifications are routed and sent."""

    listen: Listen = Field(
        "127.0.0.1:8424",
        description="host:port of /metrics, /-/healthy and /-/ready",
    )
    routing_file: Path | None = Field(
        None,
        description="routing document in Alertmanager's format; without one, everything goes to "
        "the inbox",
    )
    external_url: str = Field(
        "http://127.0.0.1:8420",
        pattern=r"^https?://\S+$",
        description="address of the page as receivers reach it: links in notifications begin so",
    )
    sends_per_channel: int = Field(
        4,
        ge=1,
        le=100,
        description="notifications under way at once per channel of a receiver; a slow one holds "
        "up no other",
    )
    give_up_after: Duration = Field(
        timedelta(days=3),
        description="age at which a notification that no attempt could deliver is given up",
    )
    ledger_retention: Duration = Field(
        timedelta(days=30), description="how long sent and failed deliveries are kept"
    )
    inbox_retention: Duration = Field(
        timedelta(days=90), description="how long notifications stay in the inbox"
    )
