"""The embedded PostgreSQL, started for real: every test has a server of its own."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest

import services.embedded
from services.embedded import EmbeddedError, embedded_postgres, install, server_pids
from services.embedded_files import Account, prepare_directory, shipped_versions

ROOT = Path(__file__).parents[2]
AS_ROOT = pytest.mark.skipif(os.getuid() != 0, reason="only root runs the server as another user")

# A Vervet to be killed: says that it is up, then stays.
CHILD = """
import asyncio, os, sys
from pathlib import Path
import asyncpg
from services.embedded import embedded_postgres
async def main():
    async with embedded_postgres(Path(sys.argv[1]), port=None) as url:
        connection = await asyncpg.connect(url)
        await connection.execute("CREATE TABLE IF NOT EXISTS noted (by int)")
        await connection.execute("INSERT INTO noted VALUES ($1)", os.getuid())
        print("up", flush=True)
        if sys.argv[2] == "stay":
            await asyncio.Event().wait()
asyncio.run(main())
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A new directory that other users may pass through; pytest's own are closed."""
    directory = Path(tempfile.mkdtemp(prefix="vervet-test-"))
    directory.chmod(0o711)
    yield directory
    shutil.rmtree(directory)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def eventually(condition: Callable[[], bool], within_s: float = 15) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.02)


async def note(url: str) -> int:
    """Add a row and return how many there are."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("CREATE TABLE IF NOT EXISTS noted (by int)")
        await connection.execute("INSERT INTO noted VALUES (0)")
        return int(await connection.fetchval("SELECT count(*) FROM noted"))
    finally:
        await connection.close()


def start_child(directory: Path) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(directory), "stay"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert "up\n" in child.stdout  # reads until that line
    return child


def start_as(uid: int, *command: str) -> subprocess.Popen[bytes]:
    user = uid if uid != os.getuid() else None
    return subprocess.Popen(command, user=user, cwd="/", stderr=subprocess.DEVNULL)


def end_child(child: subprocess.Popen[str]) -> None:
    child.kill()
    child.wait()
    assert child.stdout is not None
    child.stdout.close()


async def test_a_second_start_finds_its_data(place: Path) -> None:
    async with embedded_postgres(place / "pg", port=None) as url:
        assert await note(url) == 1
    assert server_pids(place / "pg/data") == []
    async with embedded_postgres(place / "pg", port=None) as url:
        assert await note(url) == 2


async def test_writes_are_durable_and_the_role_has_no_special_rights(place: Path) -> None:
    async with embedded_postgres(place, port=None) as url:
        connection = await asyncpg.connect(url)
        for name in ("fsync", "full_page_writes", "synchronous_commit", "data_checksums"):
            assert await connection.fetchval("SELECT current_setting($1)", name) == "on", name
        assert await connection.fetchval("SHOW listen_addresses") == ""
        assert not await connection.fetchval(
            "SELECT rolsuper OR rolcreatedb OR rolcreaterole FROM pg_roles"
            " WHERE rolname = current_user"
        )
        await connection.close()


async def test_no_directory_that_was_there_changes_its_mode_or_owner(place: Path) -> None:
    installations = list(shipped_versions().values())
    watched = {place, *place.parents}
    for installation in installations:
        watched |= {installation, *installation.parents, installation / "bin"}

    def look() -> dict[Path, tuple[int, int, int]]:
        states = {path: path.stat() for path in watched}
        return {path: (state.st_mode, state.st_uid, state.st_gid) for path, state in states.items()}

    before = look()
    async with embedded_postgres(place / "state" / "pg", port=free_port()) as url:
        await note(url)
    assert look() == before


async def test_whoever_kills_us_ends_the_server_and_the_next_start_has_the_data(
    place: Path,
) -> None:
    child = await asyncio.to_thread(start_child, place)
    assert server_pids(place / "data") != []
    end_child(child)
    await eventually(lambda: server_pids(place / "data") == [])
    async with embedded_postgres(place, port=None) as url:
        assert await note(url) == 2


async def test_a_start_right_after_a_kill_waits_for_the_old_server_to_end(place: Path) -> None:
    child = await asyncio.to_thread(start_child, place)
    end_child(child)
    async with embedded_postgres(place, port=None) as url:
        assert await note(url) == 2


async def test_everything_killed_at_once_is_recovered_from(place: Path) -> None:
    child = await asyncio.to_thread(start_child, place)
    child.send_signal(signal.SIGSTOP)  # it shall not see its server die
    for pid in server_pids(place / "data"):
        os.kill(pid, signal.SIGKILL)
    end_child(child)
    assert (place / "data/postmaster.pid").exists()
    async with embedded_postgres(place, port=None) as url:
        assert await note(url) == 2


async def test_a_left_over_pid_that_is_somebody_elses_now_does_no_harm(place: Path) -> None:
    async with embedded_postgres(place, port=None) as url:
        await note(url)
    owner = (place / "data").stat()
    other = start_as(owner.st_uid, "sleep", "600")
    try:
        (place / "data/postmaster.pid").write_text(f"{other.pid}\n{place}/data\n")
        os.chown(place / "data/postmaster.pid", owner.st_uid, owner.st_gid)
        async with embedded_postgres(place, port=None) as url:
            assert await note(url) == 2
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


async def test_an_orphaned_server_on_the_data_is_stopped_before_the_next_start(
    place: Path,
) -> None:
    async with embedded_postgres(place, port=None) as url:
        await note(url)
    account, directory = prepare_directory(place)
    orphan = start_as(account.uid, *install(directory, account, None).command())
    await eventually(lambda: (place / "run/.s.PGSQL.5432").exists())
    async with embedded_postgres(place, port=None) as url:
        assert orphan.wait(timeout=1) == 0
        assert await note(url) == 2


async def test_two_at_once_are_refused_and_the_first_one_runs_on(place: Path) -> None:
    async with embedded_postgres(place, port=None) as url:
        with pytest.raises(EmbeddedError, match=f"in use by process {os.getpid()}"):
            async with embedded_postgres(place, port=None):
                pass
        assert await note(url) == 1


async def test_it_stops_within_three_seconds_with_connections_at_work(place: Path) -> None:
    async with embedded_postgres(place, port=None) as url:
        busy = [await asyncpg.connect(url) for _ in range(5)]
        work = [asyncio.create_task(each.execute("SELECT pg_sleep(60)")) for each in busy]
        await asyncio.sleep(0)
        began = time.monotonic()
    assert time.monotonic() - began < 3
    outcomes = await asyncio.gather(*work, return_exceptions=True)
    assert all(isinstance(outcome, Exception) for outcome in outcomes)
    for each in busy:
        each.terminate()


async def test_a_server_that_dies_is_started_again_under_the_same_url(place: Path) -> None:
    async with embedded_postgres(place, port=None) as url:
        await note(url)
        first = int((place / "data/postmaster.pid").read_text().split()[0])
        os.kill(first, signal.SIGKILL)

        async def again() -> int:
            while True:
                try:
                    return await note(url)
                except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                    await asyncio.sleep(0.05)

        async with asyncio.timeout(20):
            assert await again() == 2
        assert first not in server_pids(place / "data")


async def test_an_error_of_the_caller_passes_unchanged_and_the_server_stops(place: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        async with embedded_postgres(place, port=None):
            raise ZeroDivisionError
    assert server_pids(place / "data") == []


async def test_cancelled_in_the_middle_of_a_start_it_leaves_no_server(place: Path) -> None:
    async def run() -> None:
        async with embedded_postgres(place, port=None):
            await asyncio.Event().wait()

    task = asyncio.create_task(run())
    await eventually(lambda: server_pids(place / "data") != [])
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert server_pids(place / "data") == []


async def test_with_a_port_the_password_and_only_it_opens_the_database(place: Path) -> None:
    port = free_port()

    async def by_tcp(password: str) -> int:
        connection = await asyncpg.connect(
            host="127.0.0.1", port=port, user="vervet", database="vervet", password=password
        )
        try:
            return int(await connection.fetchval("SELECT count(*) FROM noted"))
        finally:
            await connection.close()

    async with embedded_postgres(place, port=port) as url:
        assert await note(url) == 1
        assert await by_tcp((place / "password").read_text().strip()) == 1
        with pytest.raises(asyncpg.InvalidPasswordError):
            await by_tcp("a guess")


async def test_a_port_in_use_is_named(place: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(EmbeddedError, match=f"127.0.0.1:{port}: Address already in use"):
            async with embedded_postgres(place, port=port):
                pass


async def test_data_of_another_major_version_are_refused_untouched(place: Path) -> None:
    async with embedded_postgres(place, port=None) as url:
        await note(url)
    (place / "data/PG_VERSION").write_text("13\n")
    with pytest.raises(EmbeddedError, match="written by PostgreSQL 13"):
        async with embedded_postgres(place, port=None):
            pass


async def test_a_broken_first_attempt_is_not_taken_for_data(place: Path) -> None:
    (place / "data.new").mkdir()
    (place / "data.new/PG_VERSION").write_text("18\n")
    async with embedded_postgres(place, port=None) as url:
        assert await note(url) == 1


async def test_what_the_server_says_when_it_cannot_start_is_in_the_error(place: Path) -> None:
    async with embedded_postgres(place, port=None) as url:
        await note(url)
    (place / "data/global/pg_control").rename(place / "aside")
    with pytest.raises(EmbeddedError, match="could not find the database system"):
        async with embedded_postgres(place, port=None):
            pass


async def test_a_path_too_long_for_a_socket_works(place: Path) -> None:
    deep = place / ("long-" * 24)
    async with embedded_postgres(deep, port=None) as url:
        assert await note(url) == 1
        assert str(deep) not in url
        (sockets,) = parse_qs(urlsplit(url).query)["host"]
        assert os.stat(sockets).st_mode & 0o777 == 0o700
    with pytest.raises(FileNotFoundError):
        os.stat(sockets)


@AS_ROOT
async def test_root_is_told_about_a_directory_that_the_servers_user_cannot_enter(
    place: Path,
) -> None:
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(EmbeddedError, match=f"may not enter {closed}, .*VERVET_HOME"):
        async with embedded_postgres(closed / "state" / "pg", port=None):
            pass
    assert list(closed.iterdir()) == []


@AS_ROOT
async def test_root_does_not_use_another_users_directory(place: Path) -> None:
    theirs = place / "theirs"
    theirs.mkdir()
    os.chown(theirs, 65534, 65534)
    with pytest.raises(EmbeddedError, match="belongs to user nobody, and you are root"):
        async with embedded_postgres(theirs, port=None):
            pass


@AS_ROOT
async def test_binaries_that_the_servers_user_cannot_reach_are_copied(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    major, installation = max(shipped_versions().items())
    closed = place / "closed"
    packages = installation.parent.parent
    libraries = f"{installation.parent.name}.libs"
    shutil.copytree(installation, closed / installation.parent.name / installation.name)
    shutil.copytree(packages / libraries, closed / libraries)
    closed.chmod(0o700)
    out_of_reach = {major: closed / installation.parent.name / installation.name}
    monkeypatch.setattr(services.embedded, "shipped_versions", lambda: out_of_reach)
    old = os.umask(0o077)
    try:
        for runs in (1, 2):
            async with embedded_postgres(place / "pg", port=None) as url:
                assert await note(url) == runs
    finally:
        os.umask(old)
    assert closed.stat().st_mode & 0o777 == 0o700
    assert len(list((place / "pg/binaries").iterdir())) == 1


@AS_ROOT
async def test_an_ordinary_user_runs_it_under_their_own_name(place: Path) -> None:
    interpreter = python_of_everybody()
    home = place / "home"
    home.mkdir()
    os.chown(home, 65534, 65534)
    for runs in (1, 2):
        done = await asyncio.to_thread(
            as_nobody, interpreter, "-c", CHILD, str(home / "pg"), "leave"
        )
        assert (done.returncode, done.stdout[-3:]) == (0, "up\n"), (runs, done.stderr)
    assert (home / "pg").stat().st_mode & 0o777 == 0o700
    assert (home / "pg/data").stat().st_uid == 65534


def as_nobody(interpreter: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    packages = Path(asyncpg.__file__).parents[1]
    return subprocess.run(
        [interpreter, *arguments],
        user=65534,
        group=65534,
        extra_groups=[],
        cwd="/",
        env={"PYTHONPATH": f"{ROOT}:{packages}", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def python_of_everybody() -> str:
    """An interpreter that an ordinary user reaches, together with this tree and its packages."""
    for candidate in (sys.executable, "/usr/bin/python3"):
        try:
            done = as_nobody(candidate, "-c", "import asyncpg.protocol, services.embedded")
        except OSError:
            continue
        if done.returncode == 0:
            return candidate
    pytest.skip("an ordinary user reaches no Python with this tree's packages")


def test_the_account_runs_commands_as_itself() -> None:
    me = Account("me", os.getuid(), os.getgid())
    assert me.run("id", "-u").stdout.strip() == str(os.getuid())
