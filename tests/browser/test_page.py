"""The page in Debian's Chromium: against a stand-in api, and served by a running `vervet up`.

The tests themselves are JavaScript (playwright-core and axe are packages of the page), run by
Node's own test runner; here stands what they need.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stack.choice import Unavailable

ROOT = Path(__file__).parents[2]
WEB = ROOT / "web"
BIN = Path(sys.executable).parent
CHROMIUM = Path("/usr/bin/chromium")
APT = "apt-get -o DPkg::Lock::Timeout=300"
INSTALL_TIMEOUT_S = 600
SUITE_TIMEOUT_S = 420
READY_TIMEOUT_S = 60
STOP_TIMEOUT_S = 20

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
def vervet() -> Iterator[str]:
    """The address of an all-in-one of its own, started a moment ago."""
    # Open to pass through: as root, its PostgreSQL runs as another user, and pytest's own
    # directories are closed.
    home = Path(tempfile.mkdtemp(prefix="vervet-test-"))
    home.chmod(0o711)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        listen = f"127.0.0.1:{probe.getsockname()[1]}"
    clean = {name: text for name, text in os.environ.items() if not name.startswith("VERVET_")}
    log = home / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [BIN / "vervet", "up", "--listen", listen],
            env={**clean, "VERVET_HOME": str(home)},
            stdout=output,
            stderr=output,
            cwd=ROOT,
        )
    try:
        _wait_until_ready(process, f"http://{listen}/-/ready", log)
        yield f"http://{listen}/"
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(home, ignore_errors=True)


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    answer = "nothing"
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except urllib.error.HTTPError as error:
            answer = error.read().decode()
            error.close()
        except OSError as error:
            answer = str(error)
        time.sleep(0.2)
    pytest.fail(f"`vervet up` is not ready, it answers {answer}\n{log.read_text()[-3000:]}")


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


def test_the_page_of_a_running_vervet_shows_this_host_live(
    node: Path, page: None, chromium: None, vervet: str
) -> None:
    suite = "tests/browser/vervet.test.mjs"
    run(node, "--test", "--test-reporter=spec", suite, VERVET_PAGE=vervet)
