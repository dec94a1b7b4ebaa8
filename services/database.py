"""PostgreSQL: the pool, the migrations, and what an error means for the caller.

The rule of the error table: an unknown outcome is retried (everything we write is idempotent), bad
data is isolated, and anything else is a defect or a wrong setting that a person must mend.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import asyncpg
import structlog
from prometheus_client import Counter

from schemas.migrations import migrations
from services.runtime import Context, Health, backoff_s

log = structlog.get_logger("vervet.database")

CONNECT_TIMEOUT_S = 10.0
COMMAND_TIMEOUT_S = 60.0
"""Bound on one statement as the client sees it; after it the outcome is unknown."""

RETRIES = Counter("vervet_database_retries_total", "Transactions tried again after an error")

T = TypeVar("T")

MIGRATION_LOCK = 0x5645_5256_4554
"""Advisory lock key that serialises migrations: the bytes of VERVET."""

if TYPE_CHECKING:  # the stubs' classes are generic, the library's own are not
    Pool = asyncpg.Pool[asyncpg.Record]
    Connection = (
        asyncpg.Connection[asyncpg.Record] | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]
    )
else:
    Pool = asyncpg.Pool
    Connection = asyncpg.Connection


ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
"""Everything that a database call raises; a cut connection shows up as any of them (`verdict`)."""


class SchemaMissing(Exception):
    """The database holds no schema, or not the one of this version; the text says what to do."""


class Verdict(Enum):
    """What an error asks of the caller."""

    RETRY = "retry"
    POISON = "poison"
    FATAL = "fatal"


_RETRY_CLASSES = ("08", "53", "57P")
_RETRY_STATES = {"25006", "40001", "40P01", "55P03"}


def verdict(error: BaseException) -> Verdict:
    """RETRY: the data may be fine, try again. POISON: this data never fits. FATAL: all else."""
    if isinstance(error, asyncpg.PostgresError):
        state = error.sqlstate or ""
        if state in _RETRY_STATES or state.startswith(_RETRY_CLASSES):
            return Verdict.RETRY
        if state.startswith("22") or state == "23514":
            return Verdict.POISON
        return Verdict.FATAL
    transient = (
        asyncpg.InterfaceError,
        asyncpg.InternalClientError,
        OSError,
        TimeoutError,
    )
    return Verdict.RETRY if isinstance(error, transient) else Verdict.FATAL


class Poisoned(Exception):
    """The database will never take this data; the text is its reason."""


async def until_done(work: Callable[[], Awaitable[T]], health: Health) -> T:
    """The result of `work` on the database, however long it is away; it may be done twice.

    Raises Poisoned, and what a person must mend; exceptions that are not the database's pass.
    """
    attempt = 0
    while True:
        try:
            result = await work()
            break
        except ERRORS as error:
            meaning = verdict(error)
            if meaning is Verdict.POISON:
                raise Poisoned(describe(error)) from error
            if meaning is Verdict.FATAL:
                raise
            RETRIES.inc()
            if health.waiting("database", describe(error)):
                log.warning("trying again", reason=describe(error))
        await asyncio.sleep(backoff_s(attempt))
        attempt += 1
    health.ready("database")
    return result


@asynccontextmanager
async def open_pool(
    url: str, *, size: int = 4, read_only: bool = False, settings: Mapping[str, str] | None = None
) -> AsyncIterator[Pool]:
    """A pool of at most `size` connections, with jsonb as Python values.

    `settings` are the server's, by name, for these connections.
    """
    given = {"application_name": "vervet", "jit": "off", "timezone": "UTC"}
    if read_only:
        given |= {"default_transaction_read_only": "on", "statement_timeout": "30s"}
    given |= settings or {}
    pool = await asyncpg.create_pool(
        url,
        min_size=0,
        max_size=size,
        timeout=CONNECT_TIMEOUT_S,
        command_timeout=COMMAND_TIMEOUT_S,
        max_inactive_connection_lifetime=300.0,
        server_settings=given,
        init=_init_connection,
        reset=_leave_as_is if read_only else None,
    )
    try:
        yield pool
    finally:
        try:
            async with asyncio.timeout(2):
                await pool.close()
        except TimeoutError:
            pool.terminate()


async def _init_connection(connection: Connection) -> None:
    await connection.set_type_codec(
        "jsonb", encoder=_compact_json, decoder=json.loads, schema="pg_catalog"
    )


async def _leave_as_is(connection: Connection) -> None:
    """Who only reads leaves nothing behind in a session: a round trip less for each use of it."""


def _compact_json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


@asynccontextmanager
async def ready_pool(
    url: str, context: Context, *, size: int = 4, read_only: bool = False
) -> AsyncIterator[Pool]:
    """A pool whose server answers and whose schema is ours: waits for both, saying what for."""
    async with open_pool(url, size=size, read_only=read_only) as pool:
        await wait_for_schema(pool, url, context)
        yield pool


async def wait_for_schema(pool: Pool, url: str, context: Context) -> None:
    """Returns once the server answers and holds this version's schema.

    A refused password or an unknown database is waited for too, slowly, since a person may mend it
    while we run.
    """
    attempt = 0
    while True:
        try:
            await check_schema(pool)
            break
        except (SchemaMissing, *ERRORS) as error:
            reason = f"{address(url)}: {describe(error)}"
            if context.health.waiting("database", reason):
                log.warning("waiting for the database", reason=reason)
        await context.pause(backoff_s(attempt))
        attempt += 1
    context.health.ready("database")


def describe(error: BaseException) -> str:
    """An error in one line, with a name where it has no text of its own."""
    text = " ".join(str(error).split())
    return text or type(error).__name__


def address(url: str) -> str:
    """Where a URL points, without its user and password: fit to be shown."""
    parts = urlsplit(url)
    host = parts.hostname or "local socket"
    return f"postgresql {host}:{parts.port or 5432}{parts.path}"


async def check_schema(pool: Pool) -> None:
    """Raises SchemaMissing unless exactly this version's migrations are applied."""
    wanted = {migration.number: migration.checksum for migration in migrations()}
    if await pool.fetchval("select to_regclass('migrations')") is None:
        raise SchemaMissing("the database has no schema yet; run: vervet migrate")
    applied = {r["number"]: r["checksum"] for r in await pool.fetch("select * from migrations")}
    _refuse_other_versions(applied, wanted)
    missing = sorted(wanted.keys() - applied.keys())
    if missing:
        raise SchemaMissing(f"migration {missing[0]} is not applied; run: vervet migrate")


def _refuse_other_versions(applied: dict[int, str], wanted: dict[int, str]) -> None:
    newer = sorted(applied.keys() - wanted.keys())
    if newer:
        raise SchemaMissing(
            f"the database is of a newer version (migration {newer[-1]}); upgrade this program"
        )
    for number, checksum in applied.items():
        if wanted[number] != checksum:
            raise SchemaMissing(f"migration {number} differs from the one that was applied")


async def migrate(url: str) -> list[str]:
    """Apply what is missing, in order, each in one transaction; names of what was applied.

    Safe to run at once from several places: an advisory lock lets one at a time through. Raises
    SchemaMissing when the database is newer or an applied migration was edited.
    """
    connection: Connection = await asyncpg.connect(
        url, timeout=CONNECT_TIMEOUT_S, server_settings={"timezone": "UTC"}
    )
    done = []
    try:
        await connection.execute("select pg_advisory_lock($1)", MIGRATION_LOCK)
        await connection.execute(
            """create table if not exists migrations (
                   number integer primary key, name text not null, checksum text not null,
                   applied_at timestamptz not null default now())"""
        )
        rows = await connection.fetch("select number, checksum from migrations")
        applied = {row["number"]: row["checksum"] for row in rows}
        wanted = migrations()
        _refuse_other_versions(applied, {m.number: m.checksum for m in wanted})
        for migration in wanted:
            if migration.number in applied:
                continue
            async with connection.transaction():
                await connection.execute(migration.sql)
                await connection.execute(
                    "insert into migrations (number, name, checksum) values ($1, $2, $3)",
                    migration.number,
                    migration.name,
                    migration.checksum,
                )
            done.append(migration.name)
    finally:
        await connection.close()
    return done
