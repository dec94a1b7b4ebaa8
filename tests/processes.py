"""Processes of the product, as a user runs them: started, watched, killed."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

SOON_S = 30.0


@dataclass
class Running:
    """A started `vervet` process and its log."""

    process: subprocess.Popen[bytes]
    log: Path
    address: str

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    async def ended(self) -> int:
        """Its exit status, once it ends by itself."""
        await eventually(lambda: self.process.poll() is not None, self.text)
        return self.process.wait()

    def get(self, path: str) -> tuple[int, str]:
        """Status and text of a page; 0 while nothing listens."""
        try:
            with urllib.request.urlopen(f"http://{self.address}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    async def until_ready(self) -> None:
        await eventually(lambda: self.get("/-/ready")[0] == 200, self.text)

    async def until_waiting_for(self, text: str) -> None:
        await eventually(lambda: text in self.get("/-/ready")[1], self.text)


@asynccontextmanager
async def vervet(*arguments: str, log: Path, **environ: str) -> AsyncIterator[Running]:
    """`vervet …` with VERVET_ variables given in lower case; ended with SIGTERM at the end."""
    address = f"127.0.0.1:{free_port()}"
    settings = {f"VERVET_{name.upper()}": value for name, value in environ.items()}
    plain = {key: value for key, value in os.environ.items() if not key.startswith("VERVET_")}
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: ASYNC220 (quick)
            [sys.executable, "-m", "services.cli", *arguments],
            env={**plain, "VERVET_LISTEN": address, **settings},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    running = Running(process, log, address)
    try:
        yield running
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                await asyncio.to_thread(process.wait, 10)
            except subprocess.TimeoutExpired:
                running.kill()


def free_port() -> int:
    """A loopback port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def eventually(
    holds: Callable[[], bool | Awaitable[bool]],
    why: Callable[[], str] = lambda: "",
    within_s: float = SOON_S,
) -> None:
    """Returns as soon as the condition holds; fails with `why()` when it does not in time."""
    deadline = asyncio.get_running_loop().time() + within_s
    while True:
        outcome = await asyncio.to_thread(holds)
        if not isinstance(outcome, bool):
            outcome = await outcome
        if outcome:
            return
        assert asyncio.get_running_loop().time() < deadline, f"not in {within_s} s; {why()}"
        await asyncio.sleep(0.05)
