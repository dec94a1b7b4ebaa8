"""RabbitMQ and PostgreSQL as Docker containers, of the images that compose.yaml names."""

import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.stack.choice import Server, Unavailable
from tests.stack.process import LOG_LINES, Keeper, Say
from tests.stack.settings import (
    PLAIN_SETTINGS,
    PLUGINS,
    ROLE,
    SERVER_SETTINGS,
    TIMESCALE_SETTINGS,
    postgres_options,
)

ENGINE_TIMEOUT_S = 10
COMMAND_TIMEOUT_S = 120
# A registry that can be reached answers at once; one that can't may keep the client for minutes.
REGISTRY_TIMEOUT_S = 20
PULL_TIMEOUT_S = 600

COMPOSE_FILE = Path(__file__).parents[2] / "compose.yaml"
IMAGES: dict[Server, re.Pattern[str]] = {
    "broker": re.compile(r"^\s*image:\s*[\"']?(\S*rabbitmq[^\s\"']*)", re.MULTILINE),
    "database": re.compile(r"^\s*image:\s*[\"']?(\S*timescale[^\s\"']*)", re.MULTILINE),
}


def engine_refusal() -> str | None:
    """Ask the engine; returns why it can't be used, None when it answers."""
    if shutil.which("docker") is None:
        return "there is no docker command"
    try:
        done = _docker("info", "--format", "{{.ServerVersion}}", timeout_s=ENGINE_TIMEOUT_S)
    except Unavailable as error:
        return str(error)
    if done.returncode != 0 or not done.stdout.strip():
        # The request that failed, which follows, repeats the socket's address three times.
        said = (done.stderr.strip() or "no engine").splitlines()[-1].partition(': Get "')[0]
        return f"`docker info` failed: {said}"
    return None


def image(server: Server) -> str:
    """Return the image that compose.yaml names for a server, so that tests run what is shipped."""
    try:
        found = IMAGES[server].search(COMPOSE_FILE.read_text())
    except FileNotFoundError as error:
        raise Unavailable(f"there is no {COMPOSE_FILE}") from error
    if found is None:
        raise Unavailable(f"{COMPOSE_FILE} names no image for the {server}")
    return found[1]


def ensure_image(name: str, say: Say) -> None:
    """Pull an image that isn't there, from a registry that answers. Raises Unavailable."""
    if _docker("image", "inspect", name).returncode == 0:
        return
    try:
        asked = _docker("manifest", "inspect", name, timeout_s=REGISTRY_TIMEOUT_S)
    except Unavailable as error:
        raise Unavailable(f"the image {name} isn't here and its registry is silent") from error
    if asked.returncode != 0:
        said = asked.stderr.strip().splitlines()[-1:]
        raise Unavailable(f"the image {name} isn't here and can't be had: {' '.join(said)}")
    say(f"pulling {name}")
    pulled = _docker("pull", "--quiet", name, timeout_s=PULL_TIMEOUT_S)
    if pulled.returncode != 0:
        raise Unavailable(f"docker pull {name}: {pulled.stderr.strip()}")


_REMOVE = """
if docker container inspect "$0" >/dev/null 2>&1; then docker rm --force --volumes "$0"; fi
"""


@dataclass
class ContainerProcess:
    """A server in a container (implements Process).

    stop_command: what ends it in order from within; by default the engine's own stop does.
    """

    name: str
    stop_command: tuple[str, ...] = ()

    def start(self) -> None:
        _check("start", self.name)

    def stop(self) -> None:
        if self.stop_command:
            # The command itself may end with the container: what counts is that this ended.
            _docker("exec", self.name, *self.stop_command)
            _check("wait", self.name)
        else:
            _check("stop", "--time", "60", self.name)

    def kill(self) -> None:
        if self.is_running():
            _check("kill", "--signal", "KILL", self.name)
            _check("wait", self.name)

    def freeze(self) -> None:
        _check("pause", self.name)

    def thaw(self) -> None:
        if self._state() == "paused":
            _check("unpause", self.name)

    def is_running(self) -> bool:
        return self._state() in ("running", "paused")

    def pid(self) -> int:
        return int(_docker("inspect", "--format", "{{.State.Pid}}", self.name).stdout)

    def run(self, *argv: str) -> str:
        done = _docker("exec", self.name, *argv)
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip()
            raise RuntimeError(f"{' '.join(argv)}: exit status {done.returncode}: {said}")
        return done.stdout

    def log_tail(self) -> str:
        done = _docker("logs", "--tail", str(LOG_LINES), self.name)
        return done.stdout + done.stderr

    def close(self) -> None:
        _check("rm", "--force", "--volumes", self.name)

    def _state(self) -> str:
        return _docker("inspect", "--format", "{{.State.Status}}", self.name).stdout.strip()


def broker_container(
    image_name: str, keeper: Keeper, amqp_port: int, management_port: int, password: str
) -> ContainerProcess:
    """Create a RabbitMQ container with the plugins of the product; it isn't started yet."""
    # An image without the management suffix has no plugin on; the official one reads this file.
    enable = f"echo '{PLUGINS}' > /etc/rabbitmq/enabled_plugins"
    script = f"{enable}; exec docker-entrypoint.sh rabbitmq-server"
    container = _create(
        keeper,
        ("--publish", f"127.0.0.1:{amqp_port}:5672"),
        ("--publish", f"127.0.0.1:{management_port}:15672"),
        ("--env", f"RABBITMQ_DEFAULT_USER={ROLE}", "--env", f"RABBITMQ_DEFAULT_PASS={password}"),
        ("--entrypoint", "sh", image_name, "-c", script),
    )
    # A shell or su between the container's first process and the node doesn't pass on SIGTERM.
    container.stop_command = ("rabbitmqctl", "--quiet", "shutdown")
    return container


def database_container(
    image_name: str,
    keeper: Keeper,
    port: int,
    password: str,
    *,
    timescale: bool,
    settings: Mapping[str, str],
) -> ContainerProcess:
    """Create a PostgreSQL container; it isn't started yet.

    timescale: preload TimescaleDB. settings: over those of all servers.
    """
    common = SERVER_SETTINGS | (TIMESCALE_SETTINGS if timescale else PLAIN_SETTINGS)
    return _create(
        keeper,
        ("--publish", f"127.0.0.1:{port}:5432", "--env", f"POSTGRES_PASSWORD={password}"),
        # The image's own scripts there tune it to the machine and make the extension in every
        # database, which fails where it isn't preloaded.
        ("--tmpfs", "/docker-entrypoint-initdb.d", "--shm-size", "256m"),
        (image_name, "postgres", *postgres_options({**common, **settings})),
    )


def _create(keeper: Keeper, *options: tuple[str, ...]) -> ContainerProcess:
    name = f"vervet-test-{os.getpid()}-{secrets.token_hex(4)}"
    keeper.at_end("sh", "-c", _REMOVE, name)
    _check("create", "--name", name, *(word for group in options for word in group))
    return ContainerProcess(name)


def _check(*argv: str) -> None:
    done = _docker(*argv)
    if done.returncode != 0:
        raise Unavailable(f"docker {argv[0]}: {done.stderr.strip()}")


def _docker(*argv: str, timeout_s: float = COMMAND_TIMEOUT_S) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            ["docker", *argv],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"docker {argv[0]}: no answer in {timeout_s:g} s") from error
