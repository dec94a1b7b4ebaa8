"""What every process does around its work: readiness, waiting for the broker, signals, /metrics.

A service is `async def serve(settings, context)`: it runs until `context.stopping` is set, then
drains and returns. `run` is the process around it; the all-in-one is another.
"""

import asyncio
import os
import random
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import metadata
from ipaddress import ip_address
from typing import cast
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import structlog
from prometheus_client import Gauge, make_wsgi_app

from schemas.topology import Topology
from services.bus import Bus, TopologyMissing, Unavailable

log = structlog.get_logger("vervet.runtime")


def version() -> str:
    """The installed version of this program."""
    return metadata.version("vervet")


DRAIN_S = 4.0
"""What a service may take to finish after it was told to stop; then it is cancelled."""

MAX_BACKOFF_S = 15.0

READY = Gauge("vervet_ready", "1 while the process does its work, 0 while it waits for something")


class Health:
    """What the process waits for, by name. Ready means: nothing, here and in every part."""

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {"start": "starting"}
        self._parts: dict[str, Health] = {}

    def part(self, name: str) -> "Health":
        """The health of one service in a process of several."""
        self._reasons.pop("start", None)
        self._parts[name] = Health()
        return self._parts[name]

    def waiting(self, name: str, why: str) -> bool:
        """Note that `name` is waited for. True when that is news, so that it is logged once."""
        news = self._reasons.get(name) != why
        self._reasons[name] = why
        return news

    def ready(self, name: str) -> None:
        """`name` is there again. The first call ends the start as well."""
        self._reasons.pop("start", None)
        self._reasons.pop(name, None)

    def reasons(self) -> dict[str, str]:
        """What is waited for and why, parts as "part: name"."""
        found = dict(self._reasons)
        for part, health in self._parts.items():
            found |= {f"{part}: {name}": why for name, why in health.reasons().items()}
        return found

    def is_ready(self) -> bool:
        return not self.reasons()


class Unable(Exception):
    """The process cannot do its work here, for a reason that a person can mend: the text."""


class Stopping(Exception):
    """The process was told to stop while a service was waiting for something."""


@dataclass
class Context:
    """What a service gets besides its settings."""

    bus: Bus
    health: Health = field(default_factory=Health)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    async def pause(self, seconds: float) -> None:
        """Sleep. Raises Stopping as soon as the process is told to stop."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.stopping.wait()
                raise Stopping


def backoff_s(attempt: int, *, most_s: float = MAX_BACKOFF_S) -> float:
    """Full jitter: a random span up to 0.2 s doubled `attempt` times, at most `most_s`."""
    return random.uniform(0, min(most_s, 0.2 * 2 ** min(attempt, 16)))


async def wait_for_topology(context: Context, topology: Topology) -> None:
    """Returns once the broker holds what this service needs; says in `health` what is missing."""
    attempt = 0
    while True:
        try:
            await context.bus.check(topology)
            break
        except (TopologyMissing, Unavailable) as error:
            if context.health.waiting("broker", str(error)):
                log.warning("waiting for the broker", reason=str(error))
            await context.pause(backoff_s(attempt))
            attempt += 1
    context.health.ready("broker")


async def unless_stopping(waiting: Awaitable[None]) -> None:
    """Wait beside work that must end in order: being told to stop just ends the wait."""
    with suppress(Stopping):
        await waiting


async def until_stopped(context: Context, work: Awaitable[None]) -> None:
    """Run `work`, which watches `context.stopping` itself, and cancel it when it overstays."""
    task = asyncio.ensure_future(work)
    stopping = asyncio.ensure_future(context.stopping.wait())
    try:
        await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            await asyncio.wait({task}, timeout=DRAIN_S)
        if not task.done():
            log.warning("cancelled work that did not drain in time", seconds=DRAIN_S)
            task.cancel()
            await asyncio.wait({task})
    finally:
        stopping.cancel()
        task.cancel()
    if not task.cancelled():
        try:
            task.result()
        except* Stopping:
            log.info("stopped while waiting")


def stop_on_signals(stopping: asyncio.Event) -> None:
    """SIGTERM and Ctrl-C set `stopping`; a second one ends the process at once."""
    loop = asyncio.get_running_loop()

    def ask() -> None:
        if stopping.is_set():
            raise SystemExit(130)
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ask)


def split_listen(listen: str) -> tuple[str, int]:
    """Host and port of "host:port" or "[v6]:port"."""
    host, _, port = listen.rpartition(":")
    return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there. Other names than localhost count as
    reachable."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class CannotListen(Unable):
    """The address is taken, or not ours to take."""

    def __init__(self, listen: str, error: OSError) -> None:
        reason = os.strerror(error.errno) if error.errno else str(error)
        super().__init__(f"cannot listen on {listen}: {reason}; choose another with --listen")


def bind(listen: str) -> socket.socket:
    """A listening socket, for servers that take one. Raises CannotListen."""
    host, port = split_listen(listen)
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
    except OSError as error:
        raise CannotListen(listen, error) from error


StartResponse = Callable[[str, list[tuple[str, str]]], object]


def health_response(health: Health) -> tuple[str, str]:
    """Status line and text of /-/ready."""
    if health.is_ready():
        return "200 OK", "ready\n"
    lines = "".join(f"waiting for {name}: {why}\n" for name, why in health.reasons().items())
    return "503 Service Unavailable", lines


@contextmanager
def serve_health(listen: str, health: Health) -> Iterator[int]:
    """/metrics, /-/healthy and /-/ready in a thread of their own; yields the port."""
    metrics = make_wsgi_app()

    def app(environ: dict[str, str], start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            return cast(Iterable[bytes], metrics(environ, start_response))
        status, text = "404 Not Found", "not found\n"
        if path == "/-/healthy":
            status, text = "200 OK", "healthy\n"
        elif path == "/-/ready":
            status, text = health_response(health)
        start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
        return [text.encode()]

    host, port = split_listen(listen)
    try:
        server = make_server(host, port, app, server_class=_Server, handler_class=_Quiet)
    except OSError as error:
        raise CannotListen(listen, error) from error
    thread = threading.Thread(target=server.serve_forever, name="health", daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=2)


class _Server(WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    timeout = 5

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Probes come every few seconds; they are not worth a line."""
