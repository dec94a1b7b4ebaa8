"""Processes of servers: started through the keeper, signalled as a whole tree."""

import contextlib
import json
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import psutil

from tests.stack.choice import Unavailable

Say = Callable[[str], None]
POLL_S = 0.05
LOG_LINES = 25


class Process(Protocol):
    """A server that this run started and may therefore kill, freeze and start again."""

    def start(self) -> None:
        """Launch it, on the same data and ports each time; doesn't wait until it serves."""
        ...

    def stop(self) -> None:
        """End it in its own orderly way, and return when it has ended."""
        ...

    def kill(self) -> None:
        """SIGKILL, and return when nothing of it is left."""
        ...

    def freeze(self) -> None: ...
    def thaw(self) -> None: ...
    def is_running(self) -> bool: ...
    def pid(self) -> int:
        """The running server's first process, below which all of its others are found."""
        ...

    def run(self, *argv: str) -> str:
        """Run a command where the server runs, as its user; returns what it printed."""
        ...

    def log_tail(self) -> str: ...
    def close(self) -> None:
        """Kill it and remove its data."""
        ...


class Keeper:
    """The keeper process of one run (see keeper.py)."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int:
        """The keeper's own pid, below which every started process is found."""
        if self._process is None:
            raise Unavailable("nothing has been started")
        return self._process.pid

    def spawn(self, argv: Sequence[str], env: Mapping[str, str], log: Path) -> psutil.Process:
        """Start a process in a session of its own, so that Ctrl-C at the terminal spares it."""
        return psutil.Process(self._ask({"spawn": [*argv], "env": {**env}, "log": str(log)})["pid"])

    def at_end(self, *argv: str) -> None:
        """Have a command run when this run has ended, even by SIGKILL."""
        self._ask({"at_end": argv})

    def close(self) -> None:
        """End everything that was started; returns when it has ended. Calling it twice is fine."""
        if self._process is None:
            return
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.wait()
        self._process = None

    def _ask(self, request: object) -> dict[str, int]:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("keeper.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise Unavailable("the keeper of the servers for tests has died; see its traceback")
        reply: dict[str, int] = json.loads(answer)
        return reply


def signal_tree(root: psutil.Process, number: signal.Signals) -> list[psutil.Process]:
    """Send a signal to a process and all below it; returns them, parents first."""
    with contextlib.suppress(psutil.NoSuchProcess):
        tree = [root, *root.children(recursive=True)]
        for process in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        return tree
    return []


def await_end(processes: Sequence[psutil.Process], timeout_s: float) -> bool:
    """Wait until all have ended (a zombie has); False when time runs out."""
    return await_condition(lambda: not any(map(is_alive, processes)), timeout_s)


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def await_condition(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Poll until the condition holds; False when time runs out."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def tail(log: Path) -> str:
    """Return the last lines of a log, for an error's message."""
    try:
        text = log.read_text(errors="replace")
    except FileNotFoundError:
        return "(no log)"
    return "\n".join(text.splitlines()[-LOG_LINES:])


def free_port() -> int:
    """Return a free loopback port below the ephemeral range.

    An ephemeral port, as bind(0) gives it, won't do for a server that tests restart: while it is
    down, any outgoing connection may take its port, and a client that retries on it connects to
    itself sooner or later.
    """
    first_ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for _ in range(1000):
        port = random.randrange(10_000, max(first_ephemeral, 10_100))
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise Unavailable(f"no free port between 10000 and {first_ephemeral}")
