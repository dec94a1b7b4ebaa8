"""The api process: answers from the start, also while the database is away, and says so."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from datetime import timedelta

import uvicorn

from schemas.topology import ALERTS, SAMPLES, Exchange, Topology
from services.api.app import create_app
from services.api.evaluating import Turns
from services.api.garbage import collect_in_pauses
from services.api.intake import Bounds, Intake
from services.api.settings import ApiSettings
from services.api.state import State
from services.api.stream import Hub
from services.database import ERRORS, Pool, open_pool, wait_for_schema
from services.frames import PLANS, Reader
from services.runtime import Context, Health, bind, unless_stopping, wait_for_topology

NEEDS = Topology(exchanges=(Exchange(SAMPLES, "topic"), Exchange(ALERTS, "topic")))

GRACE_S = 2
"""Open requests get this long after the stop; streams end at once by themselves."""


class _Server(uvicorn.Server):
    """uvicorn, told to stop by us: signals belong to the process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(settings: ApiSettings, context: Context, whole: Health | None = None) -> None:
    """Serve HTTP until told to stop. `whole` is the readiness to show, where it is more than ours.

    Raises CannotListen.
    """
    with bind(settings.listen) as listener:
        await _serve(listener, settings, context, whole)


async def _serve(
    listener: socket.socket, settings: ApiSettings, context: Context, whole: Health | None
) -> None:
    url = settings.database
    hub = Hub(context.bus)
    async with (
        open_pool(
            url, size=settings.database_pool_size, read_only=True, settings=_session(settings)
        ) as pool,
        asyncio.TaskGroup() as group,
        contextlib.AsyncExitStack() as stack,
    ):
        turns = stack.enter_context(
            contextlib.closing(Turns(settings.query_concurrency, settings.query_queue))
        )
        intake = Intake(context.bus, pool, _bounds(settings)) if settings.takes_writes else None
        state = State(settings, pool, Reader(pool), hub, whole or context.health, turns, intake)
        server = _Server(_configuration(settings, state))
        tasks = [
            group.create_task(
                unless_stopping(wait_for_topology(context, NEEDS)), name="api topology"
            ),
            group.create_task(
                unless_stopping(_await_database(state.reader, pool, url, context)),
                name="api database",
            ),
            group.create_task(hub.run(), name="api streams"),
            group.create_task(collect_in_pauses(turns.are_free), name="api garbage"),
        ]
        serving = group.create_task(server.serve([listener]), name="api http")
        await context.stopping.wait()
        hub.close()
        server.should_exit = True
        await serving
        for task in tasks:
            task.cancel()


async def _await_database(reader: Reader, pool: Pool, url: str, context: Context) -> None:
    """Returns once the database can be asked, and its first answer won't be late."""
    await wait_for_schema(pool, url, context)
    with contextlib.suppress(*ERRORS):  # who asks next is told
        async with reader.snapshot(alone=True) as snapshot:
            await snapshot.prepare()


def _session(settings: ApiSettings) -> dict[str, str]:
    """What the server is told for the connections of the api."""
    timeout_ms = settings.query_timeout // timedelta(milliseconds=1)
    return {**PLANS, "statement_timeout": f"{max(timeout_ms, 1)}ms"}


def _bounds(settings: ApiSettings) -> Bounds:
    return Bounds(
        settings.remote_write_requests,
        settings.remote_write_max_bytes,
        settings.max_age,
        settings.max_ahead,
    )


def _configuration(settings: ApiSettings, state: State) -> uvicorn.Config:
    return uvicorn.Config(
        create_app(state, settings.page_directory),
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_S,
        timeout_keep_alive=int(timedelta(seconds=15).total_seconds()),
    )
