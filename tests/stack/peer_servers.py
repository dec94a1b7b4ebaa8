"""Servers by others, of Debian's packages, that keep samples beside ours: to compare with.

Each runs on a free loopback port, on a data folder of its own, below the keeper that ends
everything when the run does. None of them is tuned but for what its function says.
"""

import contextlib
import os
import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from tests.stack.choice import Unavailable
from tests.stack.process import await_condition, await_end, free_port, is_alive, signal_tree, tail
from tests.stack.session import Stack

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0
PROBE_TIMEOUT_S = 5.0
INFLUX_DATABASE = "samples"


@dataclass
class PeerServer:
    """A server that serves. folder: all that it keeps on disk; it is removed with the block.

    url: its root. write_url: where it takes samples, by remote write or, InfluxDB, by lines.
    """

    name: str
    stack: Stack
    url: str
    write_path: str
    ready_path: str
    folder: Path
    argv: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    process: psutil.Process | None = None

    @property
    def write_url(self) -> str:
        return self.url + self.write_path

    @property
    def data(self) -> Path:
        """Its data alone, without our log and configuration."""
        return self.folder / "data"

    @property
    def pid(self) -> int:
        if self.process is None:
            raise Unavailable(f"{self.name} was not started")
        return self.process.pid

    def start(self) -> None:
        """Start it (again, on the same port and data) and return once it serves."""
        environment = {**os.environ, **self.environment}
        self.process = self.stack.keeper.spawn(list(self.argv), environment, self._log)
        if not await_condition(self._ready_or_ended, START_TIMEOUT_S) or not self._ready():
            raise Unavailable(f"{self.name} doesn't serve; its log ends:\n{tail(self._log)}")

    def stop(self) -> None:
        """End it in order, which writes what it holds in memory; returns when it has ended."""
        if self.process is None or not is_alive(self.process):
            return
        if not await_end(signal_tree(self.process, signal.SIGTERM), STOP_TIMEOUT_S):
            signal_tree(self.process, signal.SIGKILL)
            raise TimeoutError(f"{self.name} didn't stop in {STOP_TIMEOUT_S:g} s")

    @property
    def _log(self) -> Path:
        return self.folder / "log"

    def _ready_or_ended(self) -> bool:
        return self.process is None or not is_alive(self.process) or self._ready()

    def _ready(self) -> bool:
        try:
            answer = httpx.get(self.url + self.ready_path, timeout=PROBE_TIMEOUT_S, trust_env=False)
        except httpx.TransportError:
            return False
        return answer.is_success


@contextlib.contextmanager
def prometheus_server(
    stack: Stack,
    options: Sequence[str] = (),
    *,
    retention: str = "10y",
    out_of_order: str | None = None,
    configuration: str = "",
) -> Iterator[PeerServer]:
    """Prometheus that takes remote write. options: further flags, as `--query.timeout=1m`.

    configuration: YAML at the top level, such as scrape_configs. out_of_order: the window in which
    late samples are taken, as `1h`; by default it takes none, as it comes.
    """
    window = f"storage: {{tsdb: {{out_of_order_time_window: {out_of_order}}}}}\n"
    with _folder() as folder:
        settings = folder / "prometheus.yml"
        settings.write_text(configuration + (window if out_of_order else ""))
        port = free_port()
        argv = (
            str(stack.peer("prometheus")),
            f"--config.file={settings}",
            f"--web.listen-address=127.0.0.1:{port}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--storage.tsdb.retention.time={retention}",
            "--web.enable-remote-write-receiver",
            "--web.enable-admin-api",
            "--log.level=warn",
            *options,
        )
        yield from _served(
            PeerServer(
                "prometheus", stack, f"http://127.0.0.1:{port}", "/api/v1/write", "/-/ready",
                folder, argv,
            )
        )  # fmt: skip


@contextlib.contextmanager
def victoria_metrics_server(
    stack: Stack, options: Sequence[str] = (), *, retention: str = "10y"
) -> Iterator[PeerServer]:
    """VictoriaMetrics, single node. It scrapes itself only where an option says so."""
    with _folder() as folder:
        port = free_port()
        argv = (
            str(stack.peer("victoria-metrics")),
            f"-httpListenAddr=127.0.0.1:{port}",
            f"-storageDataPath={folder / 'data'}",
            f"-retentionPeriod={retention}",
            "-loggerLevel=WARN",
            *options,
        )
        yield from _served(
            PeerServer(
                "victoria-metrics", stack, f"http://127.0.0.1:{port}", "/api/v1/write", "/health",
                folder, argv,
            )
        )  # fmt: skip


@contextlib.contextmanager
def influxdb_server(stack: Stack, settings: Mapping[str, str] = {}) -> Iterator[PeerServer]:
    """InfluxDB 1.x with an empty database; write_url takes lines with instants in milliseconds.

    settings: further ones as variables, such as INFLUXDB_DATA_INDEX_VERSION. Its own statistics and
    its log of requests are off, its bounds on series too: they would only slow it down.
    """
    with _folder() as folder:
        port, data = free_port(), folder / "data"
        environment = {
            "INFLUXDB_BIND_ADDRESS": f"127.0.0.1:{free_port()}",
            "INFLUXDB_META_DIR": str(data / "meta"),
            "INFLUXDB_DATA_DIR": str(data / "data"),
            "INFLUXDB_DATA_WAL_DIR": str(data / "wal"),
            "INFLUXDB_DATA_MAX_SERIES_PER_DATABASE": "0",
            "INFLUXDB_DATA_MAX_VALUES_PER_TAG": "0",
            "INFLUXDB_HTTP_BIND_ADDRESS": f"127.0.0.1:{port}",
            "INFLUXDB_HTTP_LOG_ENABLED": "false",
            "INFLUXDB_MONITOR_STORE_ENABLED": "false",
            "INFLUXDB_LOGGING_LEVEL": "warn",
            **settings,
        }
        argv = (str(stack.peer("influxd")), "run", "-config", "/dev/null")
        write = f"/write?db={INFLUX_DATABASE}&precision=ms"
        server = PeerServer(
            "influxdb", stack, f"http://127.0.0.1:{port}", write, "/ping", folder, argv, environment
        )
        for served in _served(server):
            order = {"q": f"create database {INFLUX_DATABASE}"}
            httpx.post(f"{server.url}/query", data=order, trust_env=False).raise_for_status()
            yield served


def _served(server: PeerServer) -> Iterator[PeerServer]:
    """The server, started; stopped at the end of the caller's block."""
    try:
        server.start()
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="vervet-peer-") as folder:
        yield Path(folder)
