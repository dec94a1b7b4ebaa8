"""The agent's settings: /etc/vervet/agent.toml where it exists, or --config; environment; flags."""

import os
import socket
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model, field_validator, model_validator

from schemas.durations import Duration
from schemas.errors import Invalid
from schemas.layouts import check_labels
from schemas.samples import check_source
from services.agent.collectors import Interval, Options, load
from services.settings import Listen, ServiceSettings

LEAST_SPOOL_BYTES = 4 * 1024**2
"""Room for a few of the largest messages."""

MAX_INSTANCE_BYTES = 200
"""The message's id holds it, and AMQP gives an id 255 bytes."""


def _collector_tables() -> type[BaseModel]:
    """A table for every collector that is installed, each with that collector's own options."""
    tables: dict[str, Any] = {
        name: (found.options, Field(default_factory=found.options))
        for name, found in load().items()
    }
    config = ConfigDict(frozen=True, extra="forbid")
    return create_model("CollectorTables", __config__=config, **tables)


CollectorTables = _collector_tables()


class AgentSettings(ServiceSettings):
    """`vervet agent`."""

    listen: Listen = Field(
        "127.0.0.1:8421",
        description="host:port of /metrics, /-/healthy and /-/ready",
    )
    instance: str = Field(
        default_factory=socket.gethostname,
        description="label `instance` of everything that this agent reads; the host's name",
    )
    job: str = Field("node", description="label `job`; `node` is what dashboards for hosts expect")
    labels: dict[str, str] = Field({}, description="more labels for everything, as name=value,…")
    interval: Interval = Field(
        timedelta(seconds=5),
        description="time between readings; at 5s an agent costs well under 1 % of a core",
    )
    collectors: CollectorTables = Field(default_factory=CollectorTables)  # type: ignore[valid-type]
    rootfs: Path = Field(
        Path("/"), description="where the host's root is mounted: /host in a container"
    )
    format: Literal["msgpack", "json"] = Field(
        "msgpack", description="msgpack is small; json is for those who read messages themselves"
    )
    spool_directory: Path | None = Field(
        None, description="where messages wait; the default is `spool` in the state directory"
    )
    spool_max_bytes: int = Field(
        256 * 1024**2,
        ge=LEAST_SPOOL_BYTES,
        description="disk that the spool takes at most; 256 MiB last a host about two days",
    )
    spool_max_age: Duration = Field(
        timedelta(days=7), description="a message that waits longer is dropped and counted"
    )

    @field_validator("instance")
    @classmethod
    def _fits_an_id(cls, instance: str) -> str:
        if len(instance.encode()) > MAX_INSTANCE_BYTES:
            raise ValueError(f"expected at most {MAX_INSTANCE_BYTES} bytes")
        return instance

    @field_validator("labels")
    @classmethod
    def _are_labels(cls, labels: dict[str, str]) -> dict[str, str]:
        if own := {"job", "instance"} & labels.keys():
            raise ValueError(f"{own.pop()} has a setting of its own")
        _checked(check_labels, labels, "labels")
        return labels

    @model_validator(mode="after")
    def _fit_together(self) -> "AgentSettings":
        _checked(check_source, self.source)
        for name in ("job", "instance"):
            if not self.source[name]:
                raise ValueError(f"source: {name} is missing")
        if not any(options.enabled for options in self.options().values()):
            raise ValueError("collectors: none is enabled")
        return self

    @property
    def source(self) -> dict[str, str]:
        """The labels that all series of this agent share."""
        return {"job": self.job, "instance": self.instance, **self.labels}

    def options(self) -> dict[str, Options]:
        """The table of each collector, by name."""
        return {name: getattr(self.collectors, name) for name in CollectorTables.model_fields}

    def spool(self) -> Path:
        """The spool's directory."""
        return self.spool_directory or state_directory() / "spool"


def _checked(check: Any, *arguments: Any) -> None:
    try:
        check(*arguments)
    except Invalid as error:
        raise ValueError(str(error)) from error


def state_directory() -> Path:
    """Where this process may keep state: $VERVET_HOME, systemd's StateDirectory=, or the platform's
    place (the XDG base directory specification for an ordinary user)."""
    for variable in ("VERVET_HOME", "STATE_DIRECTORY"):
        if chosen := os.environ.get(variable):
            return Path(chosen)
    if os.geteuid() == 0:
        return Path("/var/lib/vervet")
    if (state := Path(os.environ.get("XDG_STATE_HOME", ""))).is_absolute():
        return state / "vervet"
    return Path.home() / ".local" / "state" / "vervet"
