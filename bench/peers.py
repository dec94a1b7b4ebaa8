"""The peers at work, measured as ours is (pipeline.py): the same samples, as requests over HTTP.

Each is as it comes. What its server is told to do before the clock stops, and when it calls samples
safe, is said in docs/measurements.md.
"""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass

import httpx

from bench.figures import Failed
from bench.hosts import Load
from bench.pipeline import Run, talking
from bench.processes import await_idle, cpu_of_all_s, peaks_mib
from tests.stack.choice import Unavailable
from tests.stack.peer_servers import (
    PeerServer,
    influxdb_server,
    prometheus_server,
    victoria_metrics_server,
)
from tests.stack.process import Say
from tests.stack.session import Stack

IDLE_TIMEOUT_S = 20.0
HTTP_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Kind:
    """A peer: how it is started, what it is sent, and how many samples it says it has stored."""

    serve: Callable[[Stack], AbstractContextManager[PeerServer]]
    program: str
    form: str
    stored: Callable[[PeerServer], int]
    flush_path: str | None = None


def prometheus_stored(server: PeerServer) -> int:
    return _metric(server, "prometheus_tsdb_head_samples_appended_total")


def victoria_metrics_stored(server: PeerServer) -> int:
    return _metric(server, 'vm_rows_inserted_total{type="promremotewrite"}')


def influxdb_stored(server: PeerServer) -> int:
    variables = json.loads(get(f"{server.url}/debug/vars"))
    return int(variables["write"]["values"]["pointReq"])


PEERS: Mapping[str, Kind] = {
    "prometheus": Kind(prometheus_server, "prometheus", "remote-write", prometheus_stored),
    "victoria-metrics": Kind(
        victoria_metrics_server,
        "victoria-metrics",
        "remote-write",
        victoria_metrics_stored,
        "/internal/force_flush",
    ),
    "influxdb": Kind(influxdb_server, "influxd", "lines", influxdb_stored),
}


@dataclass
class Peer:
    """One peer's server and its publisher."""

    system: str
    load: Load
    kind: Kind
    server: PeerServer
    publisher: subprocess.Popen[str]
    published: int = 0

    async def run(self, messages: int) -> Run:
        """Send, wait until the server rests, verify that it has all. Raises Failed.

        The work that goes on behind the answers, as merging does, is in the processor's time; the
        wall clock stops with the last answer.
        """
        roots = {"publisher": [self.publisher.pid], "server": [self.server.pid]}
        async with peaks_mib(roots) as peaks:
            before = cpu_of_all_s(roots)
            await asyncio.to_thread(self._tell, str(messages), "made")
            began = time.monotonic()
            await asyncio.to_thread(self._tell, "go", "published")
            wall_s = time.monotonic() - began
            if self.kind.flush_path:
                await asyncio.to_thread(get, self.server.url + self.kind.flush_path)
            await await_idle(self.server.pid, IDLE_TIMEOUT_S)
            after = cpu_of_all_s(roots)
        self.published += messages
        self._verify()
        used = {name: after[name] - before[name] for name in roots}
        return Run(messages * self.load.samples, messages, wall_s, used, peaks)

    def _tell(self, line: str, expected: str) -> None:
        assert self.publisher.stdin is not None
        assert self.publisher.stdout is not None
        self.publisher.stdin.write(f"{line}\n")
        self.publisher.stdin.flush()
        if self.publisher.stdout.readline() != f"{expected}\n":
            status = self.publisher.wait()
            raise Failed(f"the publisher for {self.system} ended with status {status}")

    def _verify(self) -> None:
        generated, stored = self.published * self.load.samples, self.kind.stored(self.server)
        if stored != generated:
            raise Failed(f"{generated} samples were generated, {self.system} stored {stored}")


def had(stack: Stack, system: str, say: Say) -> bool:
    """Whether a peer can be had here; where it can't, ours is measured without it."""
    try:
        stack.peer(PEERS[system].program)
    except Unavailable as error:
        say(f"{system} is left out: {error}")
        return False
    return True


@asynccontextmanager
async def peer(stack: Stack, system: str, load: Load) -> AsyncIterator[Peer]:
    """A peer with an empty store; it ends with the block."""
    kind = PEERS[system]
    with kind.serve(stack) as server:
        about = map(str, (load.samples, load.hosts, load.first_ms))
        command = [sys.executable, "-m", "bench.requester", kind.form, server.write_url, *about]
        with talking(command) as publisher:
            yield Peer(system, load, kind, server, publisher)


def _metric(server: PeerServer, name: str) -> int:
    """The sum of a metric's samples, or of those with the labels that the name ends with."""
    lines = get(f"{server.url}/metrics").splitlines()
    own = (line.rpartition(" ") for line in lines if line.startswith(name))
    return round(sum(float(value) for key, _, value in own if key.partition("{")[0] in name))


def get(url: str) -> str:
    """What a server answers to a GET. Raises httpx.HTTPError."""
    return httpx.get(url, timeout=HTTP_TIMEOUT_S, trust_env=False).raise_for_status().text


def answers(url: str) -> bool:
    """Whether a GET is answered with success."""
    try:
        return httpx.get(url, timeout=HTTP_TIMEOUT_S, trust_env=False).is_success
    except httpx.TransportError:
        return False
