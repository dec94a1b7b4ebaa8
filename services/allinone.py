"""All five services in one process, on the memory bus and an embedded PostgreSQL: `vervet up`.

The same code as the separate processes. VERVET_BROKER_URL and VERVET_DATABASE_URL replace the
embedded parts by real servers.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import structlog
from pydantic import Field, SecretStr

import services.agent.service
import services.api.service
import services.evaluator.service
import services.ingest.service
import services.notifier.service
from services.agent.settings import AgentSettings
from services.api.settings import ApiSettings
from services.bus import Bus
from services.embedded import embedded_postgres, state_directory
from services.evaluator.rules import load_rule_set
from services.evaluator.settings import EvaluatorSettings
from services.ingest.settings import IngestSettings
from services.migrate import MigrateSettings, prepare
from services.notifier.routing import load_routing
from services.notifier.settings import NotifierSettings
from services.runtime import READY, Context, Health, stop_on_signals, until_stopped
from services.settings import DatabaseSettings, Settings, load

log = structlog.get_logger("vervet.up")


class UpSettings(DatabaseSettings):
    """What `vervet up` itself takes; the services in it read their own VERVET_ variables."""

    home: Path | None = Field(
        None,
        description="directory of the database and the spool; the default is the platform's state "
        "directory",
    )


PARTS: dict[str, tuple[type[Settings], Any]] = {
    "ingest": (IngestSettings, services.ingest.service.serve),
    "evaluator": (EvaluatorSettings, services.evaluator.service.serve),
    "notifier": (NotifierSettings, services.notifier.service.serve),
    "api": (ApiSettings, services.api.service.serve),
    "agent": (AgentSettings, services.agent.service.serve),
}
"""Who consumes starts before who publishes: the agent is last, and the first to stop."""


async def serve_all(settings: UpSettings, environ: Mapping[str, str] = os.environ) -> None:
    """Run everything until a signal. Raises what ends a service; then all of them end."""
    home = settings.home or state_directory(environ, os.geteuid())
    own = settings_of_parts(settings, home, environ)
    health = Health()
    stopping, agent_gone = asyncio.Event(), asyncio.Event()
    stop_on_signals(stopping)
    READY.set_function(lambda: float(health.is_ready()))
    async with AsyncExitStack() as stack:
        if settings.database_url is None:
            database_url = await stack.enter_async_context(
                embedded_postgres(home / "postgres", port=None)
            )
        else:
            database_url = settings.database
        bus = await stack.enter_async_context(_bus(settings))
        partitions = load(MigrateSettings, environ=environ).partitions
        await prepare(database_url, bus, partitions=partitions)
        async with asyncio.TaskGroup() as group:
            for name, (_, serve) in PARTS.items():
                told = stopping if name == "agent" else agent_gone
                context = Context(bus, health.part(name), told)
                work = serve(_with_database(own[name], database_url), context)
                task = group.create_task(until_stopped(context, work), name=name)
                task.add_done_callback(partial(_follow, name, stopping, agent_gone))
            print(f"\n  Vervet: http://{settings.listen}\n", flush=True)  # noqa: T201
    log.info("stopped")


def settings_of_parts(
    settings: UpSettings, home: Path, environ: Mapping[str, str]
) -> dict[str, Settings]:
    """Every service's own settings and the documents that they name, before anything is started.

    Raises DocumentError.
    """
    flags = {"listen": settings.listen, "spool_directory": str(home / "spool")}
    if not {"VERVET_EXTERNAL_URL", "VERVET_EXTERNAL_URL_FILE"} & environ.keys():
        host, port = settings.listen.rsplit(":", 1)
        flags["external_url"] = f"http://{host or '127.0.0.1'}:{port}"
    own: dict[str, Settings] = {
        name: load(
            model,
            environ=environ,
            flags={key: flags[key] for key in flags if key in model.model_fields},
        )
        for name, (model, _) in PARTS.items()
    }
    evaluator, notifier = own["evaluator"], own["notifier"]
    assert isinstance(evaluator, EvaluatorSettings)
    assert isinstance(notifier, NotifierSettings)
    load_rule_set(evaluator.rules, builtin=evaluator.builtin_rules)
    load_routing(notifier.routing_file)
    return own


def _with_database(settings: Settings, url: str) -> Settings:
    if "database_url" not in type(settings).model_fields:
        return settings
    return settings.model_copy(update={"database_url": SecretStr(url)})


def _follow(
    ended: str, stopping: asyncio.Event, agent_gone: asyncio.Event, _: asyncio.Task[None]
) -> None:
    """One service ended, so all do: the agent first, while the others still take its last words."""
    if not stopping.is_set():
        log.error("a service ended", service=ended)
    stopping.set()
    if ended == "agent":
        agent_gone.set()


@asynccontextmanager
async def _bus(settings: UpSettings) -> AsyncIterator[Bus]:
    if settings.broker_url is None:
        from services.bus_memory import memory_bus

        async with memory_bus() as bus:
            yield bus
    else:
        from services.bus_rabbit import rabbit_bus

        async with rabbit_bus(settings.broker_url.get_secret_value(), name="vervet up") as bus:
            yield bus
