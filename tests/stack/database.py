"""PostgreSQL as tests see it: a database each, cloned from a migrated template, and its faults."""

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from urllib.parse import quote, unquote, urlsplit

import asyncpg

from tests.stack.choice import Unavailable
from tests.stack.process import Process, await_condition

START_TIMEOUT_S = 60
CONNECT_TIMEOUT_S = 10
CLONE_TIMEOUT_S = 30
Migrate = Callable[[str], Awaitable[object]]
Result = TypeVar("Result")


class Database:
    """A PostgreSQL server. Given by URL it has no process, and what needs one raises Unavailable.

    url: the role that tests use, on a database that always exists.
    admin_url: the same as a superuser; for a server given by URL, the same.
    """

    def __init__(self, url: str, admin_url: str, process: Process | None) -> None:
        self.url = url
        self.admin_url = admin_url
        self._process = process
        self._template: str | None = None
        self._strategy: str | None = None

    def __repr__(self) -> str:
        parts = urlsplit(self.url)
        return f"Database({parts.hostname}:{parts.port})"

    # Faults. All of them block: from async tests, call them by asyncio.to_thread.

    def start(self) -> None:
        """Start it (again) and return once it serves."""
        self._own().start()
        self.await_ready()

    def stop(self) -> None:
        """Stop it in order (a fast shutdown)."""
        self._own().stop()

    def kill(self) -> None:
        """SIGKILL to all of its processes; what was committed must survive."""
        self._own().kill()

    def freeze(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        self._own().freeze()

    def thaw(self) -> None:
        self._own().thaw()

    def pid(self) -> int:
        """The postmaster."""
        return self._own().pid()

    def is_running(self) -> bool:
        return self._own().is_running()

    def close(self) -> None:
        """End a server that was started; leave no template in one that was given by URL."""
        if self._process is not None:
            self._process.close()
        elif self._template is not None:
            self._drop(self._template)

    def run(self, *argv: str) -> str:
        """Run one of PostgreSQL's own programs where the server runs; returns what it printed."""
        return self._own().run(*argv)

    def url_inside(self, name: str) -> str:
        """The superuser's URL of a database, as programs see it where the server runs."""
        parts = urlsplit(with_database(self.admin_url, name))
        port = self.sql("SHOW port")[0][0]
        host = f"{parts.netloc.rpartition('@')[0]}@127.0.0.1:{port}"
        return parts._replace(netloc=host).geturl()

    # SQL.

    def sql(self, statement: str, *, database: str | None = None) -> list[asyncpg.Record]:
        """Run one statement as the superuser; returns its rows."""
        url = self.admin_url if database is None else with_database(self.admin_url, database)
        return apart(_fetch(url, statement))

    def version(self) -> str:
        version: str = self.sql("SHOW server_version")[0][0]
        return version

    def has_timescale(self) -> bool:
        """Whether TimescaleDB is preloaded, which is when the migrations use it."""
        setting = "SELECT current_setting('timescaledb.disable_load', true) IS NOT NULL"
        return bool(self.sql(setting)[0][0])

    def ensure_role(self, name: str, password: str) -> None:
        """Make the ordinary role that owns the tests' databases: the product needs no superuser."""
        self.sql(f"CREATE ROLE {name} LOGIN CREATEDB PASSWORD '{password}'")

    @contextlib.contextmanager
    def empty_database(self) -> Iterator[str]:
        """Make an empty database, yield its URL, drop it with all connections to it."""
        # template0: an image's template1 may have the extension already.
        name = self.make_database("template0")
        try:
            yield with_database(self.url, name)
        finally:
            self._drop(name)

    @contextlib.contextmanager
    def migrated_database(self, migrate: Migrate) -> Iterator[str]:
        """The same, as a clone of a template that was migrated once."""
        if self._template is None:
            self._template = self._make_template(migrate)
        name = self.make_database(self._template)
        try:
            yield with_database(self.url, name)
        finally:
            self._drop(name)

    def make_database(self, template: str, name: str | None = None) -> str:
        name = name or f"test_{secrets.token_hex(6)}"
        # Copying files takes half the time of writing the copy to the log.
        if self._strategy is None:
            has_choice = int(self.version().split(".")[0]) >= 15
            self._strategy = "STRATEGY file_copy" if has_choice else ""
        order = (
            f'CREATE DATABASE "{name}" TEMPLATE "{template}" OWNER "{self._role}" {self._strategy}'
        )

        def created() -> bool:
            # TimescaleDB's scheduler hangs up when a clone of its database is ordered, and comes
            # back: now and then it's there in the moment that counts.
            with contextlib.suppress(asyncpg.ObjectInUseError):
                self.sql(order)
                return True
            return False

        if not await_condition(created, CLONE_TIMEOUT_S):
            raise TimeoutError(f"{template} can't be cloned: others stay connected to it")
        return name

    def recreate(self, name: str) -> None:
        """Make a database anew under the same name, empty."""
        self._drop(name)
        self.make_database("template0", name)

    def _make_template(self, migrate: Migrate) -> str:
        name = self.make_database("template0", f"template_{secrets.token_hex(6)}")
        apart(_await(migrate(with_database(self.url, name))))
        if self.sql("SHOW is_superuser")[0][0] == "on":
            # Only a superuser can keep TimescaleDB's scheduler out for good; a clone takes half
            # the time then.
            self.sql(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
            others = f"pg_stat_activity WHERE datname = '{name}'"
            self.sql(f"SELECT pg_terminate_backend(pid) FROM {others}")
        return name

    def _drop(self, name: str) -> None:
        # A test may leave its server dead; its databases die with it.
        if self._process is None or self._process.is_running():
            self.sql(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    @property
    def _role(self) -> str:
        return unquote(urlsplit(self.url).username or "")

    def await_ready(self) -> None:
        """Return once it accepts connections. Raises Unavailable with the log's end."""
        if not await_condition(self._answers_or_ended, START_TIMEOUT_S) or not self._answers():
            log = "" if self._process is None else f"; its log ends:\n{self._process.log_tail()}"
            raise Unavailable(f"PostgreSQL doesn't serve {self!r}{log}")

    def _answers_or_ended(self) -> bool:
        ended = self._process is not None and not self._process.is_running()
        return ended or self._answers()

    def _answers(self) -> bool:
        try:
            self.sql("SELECT 1")
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return False
        return True

    def _own(self) -> Process:
        if self._process is None:
            raise Unavailable("the database was given by URL: it can't be stopped or killed")
        return self._process


def with_database(url: str, name: str) -> str:
    """Return the URL with another database's name."""
    return urlsplit(url)._replace(path="/" + quote(name, safe="")).geturl()


def apart(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine in a thread and on a loop of its own.

    So fixtures and tests may call it, sync or async, whatever loop is set.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="database for tests") as pool:
        return pool.submit(asyncio.run, work).result()


async def _fetch(url: str, statement: str) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(url, timeout=CONNECT_TIMEOUT_S)
    try:
        rows: list[asyncpg.Record] = await connection.fetch(statement)
        return rows
    finally:
        await connection.close()


async def _await(work: Awaitable[Result]) -> Result:
    return await work
