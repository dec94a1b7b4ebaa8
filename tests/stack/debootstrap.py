"""Makes a Debian tree by debootstrap, from the mirror that apt uses."""

import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from signal import SIGKILL

import psutil

from tests.stack import choice
from tests.stack.choice import Unavailable
from tests.stack.process import POLL_S, Keeper, Say, await_end, is_alive, signal_tree, tail

BUILD_TIMEOUT_S = 1800  # a minute or two where the mirror is near
APT_TIMEOUT_S = 600
PROGRESS_S = 10
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# The build's end is told by a file, since the process is the keeper's child and not ours. In a
# mount namespace where that is allowed, so that an interrupted debootstrap leaves no mount behind.
_SCRIPT = """
building=$0
if unshare --mount true 2>/dev/null; then set -- unshare --mount "$@"; fi
"$@" && rm -rf "$building/var/cache/apt/archives" && touch "$building.complete"
"""


def build(suite: str, packages: Sequence[str], folder: Path, keeper: Keeper, say: Say) -> None:
    """Make the tree under another name and rename it at the end. Raises Unavailable.

    The caller holds the lock of the folder, so other builds found are leftovers.
    """
    for leftover in folder.parent.glob(f"{folder.name}.building-*"):
        subprocess.run(["rm", "-rf", "--one-file-system", str(leftover)], check=True)
    building = folder.with_name(f"{folder.name}.building-{secrets.token_hex(4)}")
    say(f"making a Debian tree with {', '.join(packages)} in {folder}: some minutes, only once")
    _ensure_installed(say)
    source = _debian_mirror()
    log = folder.with_suffix(".log")
    log.write_text("")
    include = f"--include={','.join(packages)}"
    command = ["debootstrap", "--variant=minbase", include, suite, str(building), source]
    child = keeper.spawn(["sh", "-c", _SCRIPT, str(building), *command], _environment(), log)
    try:
        _follow(child, log, say)
    finally:
        await_end(signal_tree(child, SIGKILL), timeout_s=10)
    complete = Path(f"{building}.complete")
    if not complete.exists():
        raise Unavailable(f"debootstrap of {suite} from {source} failed; {log} ends:\n{tail(log)}")
    complete.unlink()
    building.rename(folder)
    say("the tree is ready")


def _follow(child: psutil.Process, log: Path, say: Say) -> None:
    """Return when the child has ended; tells its last line from time to time."""
    started = told = time.monotonic()
    while is_alive(child):
        now = time.monotonic()
        if now - started > BUILD_TIMEOUT_S:
            raise Unavailable(f"debootstrap takes longer than {BUILD_TIMEOUT_S} s; see {log}")
        if now - told > PROGRESS_S:
            told = now
            say(f"  {now - started:.0f} s, {tail(log).splitlines()[-1].removeprefix('I: ')}")
        time.sleep(POLL_S)


def _ensure_installed(say: Say) -> None:
    if shutil.which("debootstrap", path=PATH):
        return
    say("installing debootstrap by apt-get")
    # A bare machine has no package lists; one in use has lists that may be old.
    if _apt("apt-get", "install", "-y", "--no-install-recommends", "debootstrap").returncode != 0:
        _apt("apt-get", "update")
        done = _apt("apt-get", "install", "-y", "--no-install-recommends", "debootstrap")
        if done.returncode != 0:
            raise Unavailable(f"debootstrap can't be installed: {done.stderr.strip()}")


def _debian_mirror() -> str:
    """Return the mirror that apt is configured with; reads the package lists anew if need be."""
    listing = ("apt-get", "indextargets", "--format", "$(REPO_URI)|$(ORIGIN)|$(RELEASE)")
    for _ in range(2):
        found = choice.mirror(_apt(*listing, "Created-By: Packages").stdout)
        if found is not None:
            return found
        _apt("apt-get", "update")
    raise Unavailable("apt's configuration names no mirror of Debian")


def _apt(*argv: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            [argv[0], "-q", "-o", "DPkg::Lock::Timeout=120", *argv[1:]]
            if argv[0] == "apt-get"
            else argv,
            env=os.environ | {"DEBIAN_FRONTEND": "noninteractive", "LANG": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=APT_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{' '.join(argv)}: {error}") from error


def _environment() -> dict[str, str]:
    """debootstrap takes a proxy from the environment alone; apt's own setting is handed to it."""
    environment = {"PATH": PATH, "LANG": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    for scheme in ("http", "https"):
        setting = _apt("apt-config", "--format=%v%n", "dump", f"Acquire::{scheme}::Proxy").stdout
        proxy = setting.strip() or os.environ.get(f"{scheme}_proxy", "")
        if proxy and proxy != "DIRECT":
            environment[f"{scheme}_proxy"] = proxy
    return environment
