"""Readiness, stopping, the meaning of database errors, and secrets in logs."""

import asyncio
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable

import asyncpg
import pytest
import structlog

from schemas.topology import Topology
from services import runtime
from services.bus import Unavailable
from services.bus_memory import memory_bus
from services.database import Verdict, address, describe, verdict
from services.runtime import Context, Health, backoff_s, serve_health, until_stopped
from services.telemetry import configure_logging, mask_secrets


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_a_process_is_ready_when_nothing_is_waited_for() -> None:
    health = Health()
    assert not health.is_ready()
    assert health.waiting("database", "connection refused")
    assert not health.waiting("database", "connection refused")
    part = health.part("ingest")
    health.ready("database")
    assert health.reasons() == {"ingest: start": "starting"}
    part.ready("broker")
    assert health.is_ready()


def test_readiness_says_what_is_waited_for() -> None:
    health = Health()
    with serve_health("127.0.0.1:0", health) as port:
        health.waiting("broker", "connection refused")
        status, text = get(port, "/-/ready")
        assert status == 503
        assert "waiting for broker: connection refused\n" in text
        health.ready("broker")
        assert get(port, "/-/ready") == (200, "ready\n")
        assert get(port, "/-/healthy") == (200, "healthy\n")
        assert get(port, "/absent")[0] == 404
        assert "python_info" in get(port, "/metrics")[1]


async def stop_soon(context: Context, work: Awaitable[None]) -> None:
    asyncio.get_running_loop().call_soon(context.stopping.set)
    await until_stopped(context, work)


async def test_work_that_overstays_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "DRAIN_S", 0.05)
    cancelled = asyncio.Event()

    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with memory_bus() as bus:
        await stop_soon(Context(bus), stubborn())
    assert cancelled.is_set()


async def test_an_error_of_the_work_is_raised() -> None:
    async def broken() -> None:
        raise ValueError("broken")

    async with memory_bus() as bus:
        with pytest.raises(ValueError, match="broken"):
            await until_stopped(Context(bus), broken())


async def test_waiting_ends_at_once_when_told_to_stop() -> None:
    class AwayBus:
        async def check(self, topology: Topology) -> None:
            raise Unavailable("connection refused")

    context = Context(AwayBus())  # type: ignore[arg-type]
    began = time.monotonic()
    await stop_soon(context, runtime.wait_for_topology(context, Topology()))
    assert time.monotonic() - began < 2
    assert context.health.reasons()["broker"] == "connection refused"


def test_back_off_is_bounded() -> None:
    assert all(0 <= backoff_s(attempt) <= runtime.MAX_BACKOFF_S for attempt in range(2000))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (asyncpg.InterfaceError("closed"), Verdict.RETRY),
        (asyncpg.ConnectionDoesNotExistError("gone"), Verdict.RETRY),
        (ConnectionRefusedError(), Verdict.RETRY),
        (TimeoutError(), Verdict.RETRY),
        (asyncpg.ReadOnlySQLTransactionError("standby"), Verdict.RETRY),
        (asyncpg.SerializationError("again"), Verdict.RETRY),
        (asyncpg.DeadlockDetectedError("again"), Verdict.RETRY),
        (asyncpg.DiskFullError("full"), Verdict.RETRY),
        (asyncpg.TooManyConnectionsError("full"), Verdict.RETRY),
        (asyncpg.LockNotAvailableError("locked"), Verdict.RETRY),
        (asyncpg.AdminShutdownError("restart"), Verdict.RETRY),
        (asyncpg.CannotConnectNowError("starting"), Verdict.RETRY),
        (asyncpg.NumericValueOutOfRangeError("bad"), Verdict.POISON),
        (asyncpg.UntranslatableCharacterError("bad"), Verdict.POISON),
        (asyncpg.CheckViolationError("bad"), Verdict.POISON),
        (asyncpg.UndefinedTableError("no"), Verdict.FATAL),
        (asyncpg.InvalidPasswordError("no"), Verdict.FATAL),
        (ValueError("a defect"), Verdict.FATAL),
    ],
)
def test_the_table_of_database_errors(error: Exception, expected: Verdict) -> None:
    assert verdict(error) is expected


def test_secrets_are_masked() -> None:
    assert mask_secrets("at amqp://user:pa%2Fss@host:5672/v") == "at amqp://user:***@host:5672/v"
    assert address("postgresql://u:secret@db.example:6432/vervet") == (
        "postgresql db.example:6432/vervet"
    )
    assert describe(TimeoutError()) == "TimeoutError"


def test_a_traceback_shows_no_variables(capsys: pytest.CaptureFixture[str]) -> None:
    """They hold secrets, and to print them takes seconds."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        configure_logging("warning", "text")
        secret = "-".join(("pass", "word"))
        try:
            raise ValueError(len(secret))
        except ValueError as error:
            structlog.get_logger("test").error("a request failed", exc_info=error)
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        structlog.reset_defaults()
    said = capsys.readouterr().err
    assert "ValueError: 9" in said
    assert "pass-word" not in said
