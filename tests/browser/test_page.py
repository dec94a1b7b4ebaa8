"""The page in Debian's Chromium: against a stand-in api, and served by a running `vervet up`.

The tests themselves are JavaScript (playwright-core and axe are packages of the page), run by
Node's own test runner; here stands what they need.
"""

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import vervet
from tests.stack.choice import Unavailable

ROOT = Path(__file__).parents[2]
WEB = ROOT / "web"
BIN = Path(sys.executable).parent
CHROMIUM = Path("/usr/bin/chromium")
APT = "apt-get -o DPkg::Lock::Timeout=300"
INSTALL_TIMEOUT_S = 600
SUITE_TIMEOUT_S = 420

pytestmark = pytest.mark.browser


@pytest.fixture(scope="session")
def node() -> Path:
    """Node.js of this machine, or the one that `make web` put into the environment."""
    own = BIN / "node"
    found = str(own) if own.exists() else shutil.which("node")
    if found is None or not (WEB / "node_modules/playwright-core").exists():
        raise Unavailable("the page's packages are not installed: make web")
    return Path(found)


@pytest.fixture(scope="session")
def page() -> None:
    """The page is built."""
    if not (ROOT / "services/api/static/index.html").exists():
        raise Unavailable("the page is not built: make web")


@pytest.fixture(scope="session")
def chromium() -> None:
    """Debian's Chromium is there; as root it is installed where it is not."""
    if CHROMIUM.exists():
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise Unavailable("there is no Chromium; on Debian: apt install chromium")
    for command in ("update -qq", "install -qq -y --no-install-recommends chromium"):
        result = subprocess.run(
            f"{APT} {command}",
            shell=True,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            capture_output=True,
            text=True,
            timeout=INSTALL_TIMEOUT_S,
        )
        if result.returncode != 0:
            raise Unavailable(f"Chromium can't be installed: {result.stderr.strip()[-300:]}")


@pytest.fixture
def home() -> Iterator[Path]:
    """A state directory that another user can reach: as root, PostgreSQL runs as one."""
    made = Path(tempfile.mkdtemp(prefix="vervet-", dir="/var/tmp"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


def run(*command: str | Path, **environment: str) -> None:
    """Run a suite of JavaScript tests; what it printed is the failure."""
    result = subprocess.run(
        [str(word) for word in command],
        cwd=ROOT,
        # npm and Node.js' own tools find the same Node.js
        env={**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", **environment},
        capture_output=True,
        text=True,
        timeout=SUITE_TIMEOUT_S,
    )
    print(result.stdout)
    if result.returncode != 0:
        pytest.fail(f"{result.stdout}\n{result.stderr}", pytrace=False)


def test_the_pages_pure_parts_are_right(node: Path) -> None:
    run("npm", "--prefix", WEB, "test", "--silent")


def test_the_page_withstands_hostile_names_faults_and_a_lost_connection(
    node: Path, page: None, chromium: None
) -> None:
    run(node, "--test", "--test-reporter=spec", "tests/browser/page.test.mjs")


async def test_the_page_of_a_running_vervet_shows_this_host_live_within_a_minute(
    node: Path, page: None, chromium: None, home: Path
) -> None:
    started = time.time()
    async with vervet("up", log=home / "log", home=str(home / "state")) as running:
        await running.until_ready()
        await asyncio.to_thread(
            run,
            *(node, "--test", "--test-reporter=spec", "tests/browser/vervet.test.mjs"),
            VERVET_PAGE=f"http://{running.address}/",
            VERVET_STARTED=str(started),
        )
