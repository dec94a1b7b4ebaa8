"""deploy/compose/front.py: what stands before the api's replicas."""

import asyncio
import importlib.util
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from types import ModuleType

import pytest

FRONT = Path(__file__).parents[2] / "deploy" / "compose" / "front.py"


@pytest.fixture(scope="module")
def front() -> ModuleType:
    spec = importlib.util.spec_from_file_location("front", FRONT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def free_port() -> int:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@asynccontextmanager
async def replica(name: str, address: str, port: int) -> AsyncIterator[None]:
    """A server that answers the request it reads with its name and that request."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(name.encode() + b" " + await reader.readline())
        writer.close()

    async with await asyncio.start_server(answer, address, port):
        yield


async def ask(port: int) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"hello\n")
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    return answer.decode()


@asynccontextmanager
async def running(port: int, host: str, upstream_port: int) -> AsyncIterator[None]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(FRONT), str(port), host, str(upstream_port), env=dict(os.environ)
    )
    try:
        async with asyncio.timeout(10):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    break
                except ConnectionRefusedError:
                    await asyncio.sleep(0.02)
        yield
    finally:
        process.terminate()
        await process.wait()


async def test_a_connection_reaches_the_replica_and_its_answer_comes_back() -> None:
    port, upstream_port = free_port(), free_port()
    async with (
        replica("one", "127.0.0.1", upstream_port),
        running(port, "127.0.0.1", upstream_port),
    ):
        assert await ask(port) == "one hello\n"


async def test_a_connection_is_closed_when_no_replica_answers() -> None:
    port = free_port()
    async with running(port, "127.0.0.1", free_port()):
        assert await ask(port) == ""


async def test_a_replica_that_does_not_answer_is_passed_over(
    front: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()

    async def two_addresses(*_: object, **__: object) -> list[object]:
        return [(0, 0, 0, "", ("127.0.0.2", 0)), (0, 0, 0, "", ("127.0.0.3", 0))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", two_addresses)
    monkeypatch.setattr(front.random, "shuffle", lambda addresses: None)
    async with replica("three", "127.0.0.3", port):
        reader, writer = await front.connect("api", port)
        writer.write(b"hello\n")
        assert await reader.read() == b"three hello\n"
        writer.close()
