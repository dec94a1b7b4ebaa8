"""The embedded PostgreSQL of `vervet up`: made on first use, run as our child, stopped with us.

Whoever can enter the socket's directory (the server's user and root) may connect; TCP, when asked
for, listens on 127.0.0.1 with a password. Linux only: it reads /proc and asks for a death signal.
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import asyncpg
import structlog

from services.embedded_files import (
    SUPERUSER,
    Account,
    EmbeddedError,
    choose_version,
    create_data,
    kept_password,
    lock,
    prepare_directory,
    reachable,
    rotate,
    server_environment,
    shipped_versions,
    socket_directory,
    state_directory,
)

__all__ = ["EmbeddedError", "embedded_postgres", "running_url", "state_directory"]

ROLE = DATABASE = "vervet"
DEFAULT_PORT = 5432  # without TCP only part of the socket's name
START_PATIENCE_S = 120.0  # a start after a crash replays up to max_wal_size first
POLL_S = 0.02
WATCH_S = 0.2  # how late the end of the server may be noticed
FIRST_RESTART_DELAY_S = 0.2
LAST_RESTART_DELAY_S = 10.0
HEALTHY_AFTER_S = 60.0  # a server that lived this long is restarted without accumulated delay

# PostgreSQL's answers to signals: INT disconnects clients and writes a checkpoint, QUIT stops at
# once and recovers at the next start, KILL is for a server that answers to neither.
STOP_STEPS = ((signal.SIGINT, 10.0), (signal.SIGQUIT, 6.0), (signal.SIGKILL, 5.0))

# Runs in a new interpreter, then becomes the server. The kernel sends INT to the server when we
# die, however we die. Not a preexec_fn: that forks a process with threads. Root's rights are
# dropped here and not by subprocess, because changing the user forgets the death signal.
LAUNCHER = """
import ctypes, os, signal, sys
parent, uid, gid = map(int, sys.argv[1:4])
if os.getuid() != uid:
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
PR_SET_PDEATHSIG = 1
if ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGINT), 0, 0, 0) != 0:
    sys.exit("prctl(PR_SET_PDEATHSIG) was refused")
if os.getppid() == parent:
    os.execv(sys.argv[4], sys.argv[4:])
"""

log = structlog.get_logger("vervet.embedded")


@asynccontextmanager
async def embedded_postgres(directory: Path, *, port: int | None) -> AsyncIterator[str]:
    """Run PostgreSQL on `directory` and give the URL of its database, over a Unix socket.

    With `port`, the server also listens on 127.0.0.1 there, for role and database `vervet` with
    the password in the file `password`. A server that ends meanwhile is started again under the
    same URL, with a growing delay. Raises EmbeddedError; whatever ends us ends the server.
    """
    account, directory = await asyncio.to_thread(prepare_directory, directory)
    with lock(directory):
        await stop_leftovers(directory / "data")
        server = await asyncio.to_thread(install, directory, account, port)
        try:
            await server.start()
            # Not in a TaskGroup: that would wrap every error of our caller into a group.
            keeper = asyncio.create_task(server.keep_running(), name="embedded postgres")
            try:
                yield server.url(ROLE, DATABASE)
            finally:
                keeper.cancel()
                await asyncio.wait([keeper])
                if not keeper.cancelled():
                    keeper.result()  # a fault in there must not pass in silence
        finally:
            await server.stop()
            with suppress(OSError):  # not empty where the server had to be killed
                server.sockets.rmdir()


def running_url(directory: Path) -> str | None:
    """The URL of the server that runs on this directory; None where none does."""
    try:
        lines = (directory / "data/postmaster.pid").read_text().splitlines()
    except OSError:
        return None
    if len(lines) < 5:  # it is just starting
        return None
    port, sockets = lines[3:5]
    return f"postgresql://{ROLE}@/{DATABASE}?host={quote(sockets)}&port={port}"


def install(directory: Path, account: Account, port: int | None) -> "Server":
    """Everything that must lie in the directory before a start; the data is made on first use."""
    if port is not None:
        refuse_taken_port(port)
    try:
        return lay_out(directory, account, port)
    except (OSError, subprocess.SubprocessError) as error:
        raise EmbeddedError(
            f"The embedded PostgreSQL can't be set up in {directory}: {error}.",
            "Make room or free the way there, or set VERVET_HOME to another directory.",
        ) from error


def lay_out(directory: Path, account: Account, port: int | None) -> "Server":
    """The work of install, without its care for errors."""
    data = directory / "data"
    installation = reachable(choose_version(data, shipped_versions()), directory, account)
    if not data.exists():
        create_data(installation, directory, account)
    access = ["local all all trust"]  # whoever can enter the socket's directory
    password = None
    if port is not None:
        access.append("host all all 127.0.0.1/32 scram-sha-256")
        password = kept_password(directory / "password")
    hba = directory / "pg_hba.conf"
    hba.write_text("\n".join(access) + "\n")
    hba.chmod(0o644)
    rotate(directory / "postgres.log")
    sockets = socket_directory(directory, account, port or DEFAULT_PORT)
    return Server(account, installation / "bin/postgres", data, sockets, port, password)


def refuse_taken_port(port: int) -> None:
    """Raise EmbeddedError where somebody listens on the loopback port already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise EmbeddedError(
                f"The embedded PostgreSQL can't listen on 127.0.0.1:{port}: {error.strerror}.",
                "Choose another port.",
            ) from error


def server_pids(data: Path) -> list[int]:
    """The PostgreSQL processes on this data: they, and they alone, work in that directory."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):  # ended meanwhile, or somebody else's
            process = Path("/proc", name)
            name_of_program = (process / "comm").read_text().strip()
            if name_of_program == "postgres" and os.readlink(process / "cwd") == str(data):
                found.append(int(name))
    return found


async def stop_leftovers(data: Path) -> None:
    """End a server that outlived its Vervet, and forget the pid that it left behind.

    The pid file must go: PostgreSQL refuses to start when its number is in use again, by whatever
    process of the same user. Nothing is lost by it: the lock is ours, no server process is left.
    """
    pid_file = data / "postmaster.pid"
    for number, patience_s in ((signal.SIGINT, 10.0), (signal.SIGQUIT, 10.0)):
        if pids := server_pids(data):
            log.warning("stopping a PostgreSQL that was left over", pids=pids, signal=number.name)
            # INT goes to the server's first process alone, to the others it means other things;
            # they end by themselves once that one is gone. QUIT stops each of them.
            first = pid_file.read_text().split()[:1] if pid_file.exists() else []
            for pid in pids:
                if number == signal.SIGQUIT or str(pid) in first:
                    with suppress(ProcessLookupError):
                        os.kill(pid, number)
            await holds_soon(lambda: not server_pids(data), patience_s)
    if pids := server_pids(data):
        raise EmbeddedError(
            f"A PostgreSQL of an earlier run still works on {data} and does not stop.",
            f"End it: kill -9 {' '.join(map(str, pids))}",
        )
    pid_file.unlink(missing_ok=True)


async def holds_soon(condition: Callable[[], bool], patience_s: float) -> bool:
    """Wait until the condition holds; False when it did not within the time."""
    deadline = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(POLL_S)
    return True


@dataclass
class Server:
    """The server's process, the one now running or the one of the next start."""

    account: Account
    program: Path
    data: Path
    sockets: Path
    port: int | None
    password: str | None
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def log_file(self) -> Path:
        return self.data.with_name("postgres.log")

    def url(self, role: str, database: str) -> str:
        host = quote(str(self.sockets))
        return f"postgresql://{role}@/{database}?host={host}&port={self.port or DEFAULT_PORT}"

    def settings(self) -> dict[str, str]:
        """Given on the command line, where they precede every file in the data directory."""
        return {
            "listen_addresses": "" if self.port is None else "127.0.0.1",
            "port": str(self.port or DEFAULT_PORT),
            "unix_socket_directories": '"{}"'.format(str(self.sockets).replace('"', '""')),
            "unix_socket_permissions": "0700",
            "hba_file": str(self.data.with_name("pg_hba.conf")),
            "password_encryption": "scram-sha-256",
            "max_connections": "60",
            "shared_buffers": "64MB",
            "fsync": "on",
            "full_page_writes": "on",
            "synchronous_commit": "on",
            "wal_level": "minimal",  # nobody replicates from here; needs max_wal_senders = 0
            "max_wal_senders": "0",
            "max_wal_size": "512MB",
            "max_logical_replication_workers": "0",
            "log_checkpoints": "off",
            "log_line_prefix": "%m [%p] ",
            "log_timezone": "UTC",
            "timezone": "UTC",
            "logging_collector": "off",
        }

    def command(self) -> list[str]:
        options = [
            word for name, value in self.settings().items() for word in ("-c", f"{name}={value}")
        ]
        return [str(self.program), "-D", str(self.data), *options]

    async def start(self) -> None:
        """Start the process and return when its database takes connections."""
        await stop_leftovers(self.data)
        # The same as postmaster.pid, for the socket: a number that may be in use again.
        (self.sockets / f".s.PGSQL.{self.port or DEFAULT_PORT}.lock").unlink(missing_ok=True)
        identity = (os.getpid(), self.account.uid, self.account.gid)
        with self.log_file.open("ab") as output:
            told_before = output.tell()
            self.process = subprocess.Popen(  # noqa: ASYNC220 a fork, and PDEATHSIG needs this thread
                [sys.executable, "-I", "-S", "-c", LAUNCHER, *map(str, identity), *self.command()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                env=server_environment(),
                start_new_session=True,  # Ctrl-C is for us; we stop the server last
            )
        try:
            connection = await self.first_connection(told_before)
            try:
                await self.provide_database(connection)
            finally:
                await connection.close()
        except BaseException:
            await self.stop()
            raise

    async def first_connection(self, told_before: int) -> "asyncpg.Connection[asyncpg.Record]":
        """Connect as soon as the server does; EmbeddedError with its own words if it ends first."""
        deadline = time.monotonic() + START_PATIENCE_S
        while self.is_running() and time.monotonic() < deadline:
            try:
                return await asyncpg.connect(self.url(SUPERUSER, SUPERUSER), timeout=10)
            except (
                OSError,
                asyncpg.CannotConnectNowError,
                asyncpg.PostgresConnectionError,
                asyncpg.InterfaceError,
            ):
                await asyncio.sleep(POLL_S)
        with self.log_file.open("rb") as told:
            told.seek(told_before)
            words = told.read(100_000).decode(errors="replace").strip().splitlines()
        raise EmbeddedError(
            f"PostgreSQL did not start on {self.data}: {' / '.join(words[-4:])}",
            f"Its log is {self.log_file}",
        )

    async def provide_database(self, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        """Create what is missing: a role without special rights, and a database that it owns."""
        known = "SELECT 1 FROM pg_roles WHERE rolname = $1"
        if not await connection.fetchval(known, ROLE):
            await connection.execute(f"CREATE ROLE {ROLE} LOGIN")
        known = "SELECT 1 FROM pg_database WHERE datname = $1"
        if not await connection.fetchval(known, DATABASE):
            await connection.execute(f"CREATE DATABASE {DATABASE} OWNER {ROLE}")
        if self.password:  # of token_urlsafe's letters, so it needs no quoting
            await connection.execute(f"ALTER ROLE {ROLE} PASSWORD '{self.password}'")

    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    async def keep_running(self) -> None:
        """Start the server again whenever it ended; never returns."""
        delay_s = FIRST_RESTART_DELAY_S
        while True:
            since = time.monotonic()
            while self.is_running():  # noqa: ASYNC110 the end of a process sets no event
                await asyncio.sleep(WATCH_S)
            if time.monotonic() - since > HEALTHY_AFTER_S:
                delay_s = FIRST_RESTART_DELAY_S
            status = self.process.returncode if self.process else None
            log.error("the embedded PostgreSQL ended", status=status, restart_in_s=delay_s)
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, LAST_RESTART_DELAY_S)
            try:
                await self.start()
            except (EmbeddedError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                log.error("the embedded PostgreSQL could not start again", error=str(error))
            else:
                log.warning("the embedded PostgreSQL runs again")

    async def stop(self) -> None:
        """Stop the process: clients are disconnected, a checkpoint is written."""
        for number, patience_s in STOP_STEPS:
            if not self.is_running():
                return
            assert self.process is not None
            self.process.send_signal(number)
            if await holds_soon(lambda: not self.is_running(), patience_s):
                return
            log.warning("the embedded PostgreSQL is slow to stop", signal=number.name)
