"""RabbitMQ and PostgreSQL run in a Debian tree, as its own users, on loopback ports."""

import secrets
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.stack.choice import Unavailable
from tests.stack.process import Keeper, await_end, free_port, is_alive, signal_tree, tail
from tests.stack.settings import (
    PLAIN_SETTINGS,
    PLUGINS,
    ROLE,
    SERVER_SETTINGS,
    TIMESCALE_SETTINGS,
    postgres_options,
)
from tests.stack.trees import Tree

COMMAND_TIMEOUT_S = 60
STOP_TIMEOUT_S = 60
KILL_TIMEOUT_S = 20

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_LOOPBACK_DISTRIBUTION = "-kernel inet_dist_use_interface {127,0,0,1}"


@dataclass
class TreeProcess:
    """A server in a tree, with a data folder there (implements Process).

    argv is its command; stop_signal is what ends it in order.
    """

    tree: Tree
    keeper: Keeper
    user: str
    folder: Path
    environment: Mapping[str, str]
    argv: tuple[str, ...]
    stop_signal: signal.Signals
    companions: list[psutil.Process] = field(default_factory=list)
    _process: psutil.Process | None = None

    def start(self) -> None:
        if self.is_running():
            return
        command = self.tree.server_command(self.user, *self.argv)
        self._process = self.keeper.spawn(command, self.environment, self._log)

    def stop(self) -> None:
        if self._process is None:
            return
        processes = signal_tree(self._process, signal.SIGCONT)
        # The command's own shell would end without waiting for the server: tell the server itself.
        target = next((p for p in processes if _name(p) == "beam.smp"), self._process)
        if is_alive(target):
            target.send_signal(self.stop_signal)
        if not await_end(processes, STOP_TIMEOUT_S):
            raise TimeoutError(
                f"{self.argv[0]} didn't stop in {STOP_TIMEOUT_S} s:\n{self.log_tail()}"
            )

    def kill(self) -> None:
        if self._process is None:
            return
        processes = signal_tree(self._process, signal.SIGKILL)
        if not await_end(processes, KILL_TIMEOUT_S):
            raise TimeoutError(f"{self.argv[0]} is alive {KILL_TIMEOUT_S} s after SIGKILL")

    def freeze(self) -> None:
        if self._process is not None:
            signal_tree(self._process, signal.SIGSTOP)

    def thaw(self) -> None:
        if self._process is not None:
            signal_tree(self._process, signal.SIGCONT)

    def is_running(self) -> bool:
        return self._process is not None and is_alive(self._process)

    def pid(self) -> int:
        if self._process is None:
            raise Unavailable(f"{self.argv[0]} was not started")
        return self._process.pid

    def run(self, *argv: str) -> str:
        return run_in(self.tree, self.user, self.environment, *argv)

    def log_tail(self) -> str:
        return tail(self._log)

    def close(self) -> None:
        self.kill()
        for companion in self.companions:
            await_end(signal_tree(companion, signal.SIGKILL), KILL_TIMEOUT_S)
        _remove(self.tree.outside(self.folder))

    @property
    def _log(self) -> Path:
        return self.tree.outside(self.folder / "log")


def run_in(tree: Tree, user: str, environment: Mapping[str, str], *argv: str) -> str:
    """Run a short command in the tree; returns its output. Raises RuntimeError."""
    done = subprocess.run(
        tree.command(user, *argv),
        env={**environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()
        raise RuntimeError(f"{' '.join(argv)}: exit status {done.returncode}: {said}")
    return done.stdout


@dataclass(frozen=True)
class BrokerPorts:
    """epmd and the distribution port listen on every interface unless they are told otherwise."""

    amqp: int
    management: int
    distribution: int
    epmd: int


def broker_process(tree: Tree, keeper: Keeper, ports: BrokerPorts, password: str) -> TreeProcess:
    """Prepare a RabbitMQ node with its own epmd; it isn't started yet."""
    user = "rabbitmq"
    folder = _fresh_folder(tree, keeper, user)
    tree.give(folder / "rabbitmq.conf", user, _broker_configuration(ports, password))
    tree.give(folder / "enabled_plugins", user, f"{PLUGINS}\n")
    tree.give(folder / ".erlang.cookie", user, secrets.token_hex(16))
    environment = {
        # Before /usr/sbin, whose scripts want to be root.
        "PATH": f"/usr/lib/rabbitmq/bin:{_PATH}",
        "LANG": "C.UTF-8",
        "HOME": str(folder),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_EPMD_PORT": str(ports.epmd),
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
        "RABBITMQ_CONF_ENV_FILE": "/dev/null",
        "RABBITMQ_CTL_ERL_ARGS": _LOOPBACK_DISTRIBUTION,
        "RABBITMQ_DIST_PORT": str(ports.distribution),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
        "RABBITMQ_LOGS": "-",
        "RABBITMQ_LOG_BASE": str(folder),
        "RABBITMQ_MNESIA_BASE": str(folder / "data"),
        "RABBITMQ_NODENAME": f"{folder.name}@localhost",
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": _LOOPBACK_DISTRIBUTION,
    }
    # In the foreground and before the node, which would start one that outlives it.
    epmd = keeper.spawn(
        tree.server_command(user, "epmd", "-address", "127.0.0.1", "-port", str(ports.epmd)),
        environment,
        tree.outside(folder / "epmd.log"),
    )
    argv = ("rabbitmq-server",)
    return TreeProcess(
        tree, keeper, user, folder, environment, argv, signal.SIGTERM, companions=[epmd]
    )


def _broker_configuration(ports: BrokerPorts, password: str) -> str:
    # The memory in use as Erlang counts it, because /proc can't be mounted everywhere.
    return f"""
listeners.tcp.1 = 127.0.0.1:{ports.amqp}
management.tcp.ip = 127.0.0.1
management.tcp.port = {ports.management}
default_user = {ROLE}
default_pass = {password}
vm_memory_calculation_strategy = allocated
"""


def broker_ports() -> BrokerPorts:
    """Choose free ports."""
    return BrokerPorts(free_port(), free_port(), free_port(), free_port())


def database_process(
    tree: Tree,
    keeper: Keeper,
    port: int,
    password: str,
    *,
    timescale: bool,
    settings: Mapping[str, str],
) -> TreeProcess:
    """Prepare a PostgreSQL server on a fresh data folder; it isn't started yet.

    timescale: preload TimescaleDB, where the tree has it. settings: over those of all servers.
    """
    user = "postgres"
    binaries = _postgres_binaries(tree)
    folder = _fresh_folder(tree, keeper, user)
    tree.give(folder / "password", user, password)
    environment = {"PATH": f"{binaries}:{_PATH}", "LANG": "C.UTF-8", "HOME": str(folder)}
    data = str(folder / "data")
    run_in(
        tree,
        user,
        environment,
        *("initdb", "--pgdata", data, "--username", "postgres", "--encoding", "UTF8"),
        *("--locale", "C.UTF-8", "--auth", "scram-sha-256", "--no-sync"),
        *("--pwfile", str(folder / "password")),
    )
    preload = timescale and _has_timescale(tree)
    common = SERVER_SETTINGS | (TIMESCALE_SETTINGS if preload else PLAIN_SETTINGS)
    own = {"port": str(port), "listen_addresses": "127.0.0.1", "unix_socket_directories": ""}
    argv = (f"{binaries}/postgres", "-D", data, *postgres_options({**common, **settings, **own}))
    return TreeProcess(tree, keeper, user, folder, environment, argv, signal.SIGINT)


def _has_timescale(tree: Tree) -> bool:
    return any(tree.outside(Path("/usr/lib/postgresql")).glob("*/lib/timescaledb.so"))


def _postgres_binaries(tree: Tree) -> Path:
    for outside in tree.outside(Path("/usr/lib/postgresql")).glob("*/bin"):
        return Path("/") / outside.relative_to(tree.root)
    raise Unavailable(f"{tree.root} has no PostgreSQL: remove it, it will be made again")


def _fresh_folder(tree: Tree, keeper: Keeper, user: str) -> Path:
    folder = tree.make_folder(user)
    keeper.at_end("rm", "-rf", "--one-file-system", str(tree.outside(folder)))
    return folder


def _remove(folder: Path) -> None:
    subprocess.run(["rm", "-rf", "--one-file-system", str(folder)], check=True)


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""
