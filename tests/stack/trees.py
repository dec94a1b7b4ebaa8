"""Debian trees under the cache folder: made once by debootstrap, servers are run in them by chroot.

The machine itself is left alone: what is installed is debootstrap, when it's absent.
"""

import contextlib
import fcntl
import hashlib
import os
import platform
import secrets
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.stack import choice, debootstrap
from tests.stack.choice import Unavailable
from tests.stack.process import Keeper, Say, await_condition

PACKAGES: dict[str, tuple[str, ...]] = {
    "trixie": ("rabbitmq-server", "postgresql-17", "postgresql-17-timescaledb"),
    "bookworm": ("rabbitmq-server", "postgresql-15"),
}
SUITES: dict[choice.Kind, str] = {"debian13": "trixie", "debian12": "bookworm"}

LOCK_TIMEOUT_S = debootstrap.BUILD_TIMEOUT_S + 60

# In a mount namespace of its own, so that no mount is ever left behind on the machine.
_IN_NAMESPACE = """
root=$1 user=$2; shift 2
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
exec chroot --userspec="$user" "$root" "$@"
"""


@dataclass(frozen=True)
class Tree:
    """A Debian tree that is ready.

    can_mount: /proc can be mounted in it. In some containers it can't; the servers run there too,
    RabbitMQ without knowing the machine's memory and disk.
    """

    root: Path
    can_mount: bool

    def command(self, user: str, *argv: str) -> list[str]:
        """Return the command line that runs a short command in the tree as one of its users."""
        return ["chroot", f"--userspec={user}:{user}", str(self.root), *argv]

    def server_command(self, user: str, *argv: str) -> list[str]:
        """The same for a server."""
        if not self.can_mount:
            return self.command(user, *argv)
        unshare = ["unshare", "--mount", "--propagation", "private", "sh", "-ceu", _IN_NAMESPACE]
        return [*unshare, "sh", str(self.root), f"{user}:{user}", *argv]

    def make_folder(self, user: str) -> Path:
        """Make a fresh folder that belongs to a user of the tree; returns its path inside."""
        inside = Path("/tmp") / f"vervet-{secrets.token_hex(6)}"
        outside = self.outside(inside)
        outside.mkdir(mode=0o700)
        os.chown(outside, *self._ids(user))
        return inside

    def give(self, inside: Path, user: str, text: str) -> None:
        """Write a file in the tree that only the user can read."""
        outside = self.outside(inside)
        outside.touch(mode=0o600)
        outside.write_text(text)
        os.chown(outside, *self._ids(user))

    def outside(self, inside: Path) -> Path:
        return self.root / inside.relative_to("/")

    def _ids(self, user: str) -> tuple[int, int]:
        for line in (self.root / "etc/passwd").read_text().splitlines():
            name, _, uid, gid, *_ = line.split(":")
            if name == user:
                return int(uid), int(gid)
        raise Unavailable(f"{self.root} has no user {user}: remove it, it will be made again")


def cache_folder(environ: Mapping[str, str]) -> Path:
    base = environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "vervet" / "trees"


def tree_folder(kind: choice.Kind, environ: Mapping[str, str]) -> Path:
    """Where a tree belongs; the name changes with what is to be in it."""
    suite = SUITES[kind]
    contents = hashlib.sha256(" ".join(PACKAGES[suite]).encode()).hexdigest()[:8]
    return cache_folder(environ) / f"{suite}-{platform.machine()}-{contents}"


def ready(environ: Mapping[str, str]) -> frozenset[str]:
    """The kinds of tree that are made already."""
    return frozenset(kind for kind in SUITES if tree_folder(kind, environ).is_dir())


def ensure(kind: choice.Kind, environ: Mapping[str, str], keeper: Keeper, say: Say) -> Tree:
    """Return the tree, made first where it's absent; safe with other runs doing the same.

    Raises Unavailable. An interrupted build leaves a folder that the next build removes.
    """
    folder = tree_folder(kind, environ)
    if not folder.is_dir():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Unavailable(f"no tree can be made in {folder.parent}: {error}") from error
        with _lock(folder.with_suffix(".lock"), say):
            if not folder.is_dir():
                debootstrap.build(SUITES[kind], PACKAGES[SUITES[kind]], folder, keeper, say)
    return Tree(folder, can_mount=_can_mount(folder))


def _can_mount(root: Path) -> bool:
    probe = ["unshare", "--mount", "--propagation", "private", "sh", "-ceu", _IN_NAMESPACE]
    command = [*probe, "sh", str(root), "root:root", "true"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@contextlib.contextmanager
def _lock(path: Path, say: Say) -> Iterator[None]:
    """Hold the file's lock; it ends with the process that holds it, so it can't be left behind."""
    with path.open("w") as file:
        if not _try_lock(file.fileno()):
            say("another run is making the tree; waiting for it")
            if not await_condition(lambda: _try_lock(file.fileno()), LOCK_TIMEOUT_S):
                raise Unavailable(f"{path} is held by another run for {LOCK_TIMEOUT_S} s")
        yield


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
