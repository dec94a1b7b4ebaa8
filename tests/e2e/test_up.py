"""`vervet up` as a newcomer meets it: one command, this host's data, kept over every way to end."""

import asyncio
import json
import shutil
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from services.query import answer
from tests.processes import Running, eventually, vervet

FAST = {"interval": "1s"}


@pytest.fixture
def home() -> Iterator[Path]:
    """A state directory that another user can reach: as root, PostgreSQL runs as one."""
    made = Path(tempfile.mkdtemp(prefix="vervet-", dir="/var/tmp"))
    made.chmod(0o755)
    yield made / "state"
    shutil.rmtree(made)


@asynccontextmanager
async def up(home: Path, **environ: str) -> AsyncIterator[Running]:
    log = home.parent / "log"
    async with vervet("up", log=log, home=str(home), **FAST, **environ) as running:
        await eventually(lambda: running.get("/-/ready")[0] == 200, running.text, within_s=60)
        yield running


def query(running: Running, expression: str) -> list[Any]:
    status, text = running.get(f"/api/v1/query?query={quote(expression)}")
    assert status == 200, text
    result: list[Any] = json.loads(text)["data"]["result"]
    return result


def value(running: Running, expression: str) -> float | None:
    result = query(running, expression)
    return float(result[0]["value"][1]) if result else None


def items(running: Running, path: str) -> list[Any]:
    found: list[Any] = json.loads(running.get(path)[1])["items"]
    return found


async def test_one_command_shows_this_hosts_data(home: Path) -> None:
    async with up(home) as running:
        await eventually(lambda: value(running, "node_load1") is not None, running.text)
        total = value(running, "node_memory_MemTotal_bytes")
        assert total == _mem_total()
        (agent,) = items(running, "/v1/agents")
        assert agent["state"] == "up"
        age = datetime.now(UTC) - datetime.fromisoformat(agent["last_sample_at"])
        assert age < timedelta(seconds=15)
        assert "Vervet: http://" in running.text()
        assert answer(running.address, "node_load1", "10m", "5s", "table").startswith("series")
        rules = json.loads(running.get("/api/v1/rules")[1])["data"]["groups"]
        assert {rule["health"] for group in rules for rule in group["rules"]} == {"ok"}


def _mem_total() -> float:
    line = Path("/proc/meminfo").read_text().splitlines()[0]
    return float(line.split()[1]) * 1024


async def test_ctrl_c_ends_it_in_time_with_a_stream_open(home: Path) -> None:
    async with up(home) as running, httpx.AsyncClient(timeout=20) as client:
        url = f"http://{running.address}/v1/stream"
        async with client.stream("GET", url) as response:
            assert await anext(response.aiter_lines())
            began = time.monotonic()
            running.process.send_signal(2)
            await asyncio.to_thread(running.process.wait, 20)
            assert time.monotonic() - began < 5, running.text()
    assert running.process.returncode == 0


async def test_a_second_start_finds_its_data(home: Path) -> None:
    async with up(home) as first:
        await eventually(lambda: value(first, "node_load1") is not None, first.text)
        (before,) = items(first, "/v1/agents")
    async with up(home) as second:
        assert value(second, "node_load1") is not None
        await eventually(lambda: _goes_on(second, before), second.text)


def _goes_on(running: Running, before: dict[str, Any]) -> bool:
    (after,) = items(running, "/v1/agents")
    assert after["epoch"] == before["epoch"]
    assert after["first_seq"] == before["first_seq"]
    return bool(after["messages"] > before["messages"])


async def test_kill_9_loses_nothing_that_was_spooled(home: Path) -> None:
    for _ in range(3):
        async with up(home) as running:
            await eventually(lambda: value(running, "node_load1") is not None, running.text)
            running.kill()
    async with up(home) as running:
        await eventually(lambda: _agent_is_up(running), running.text)
        await eventually(lambda: items(running, "/v1/agents")[0]["missing"] == 0, running.text)
        await eventually(lambda: _is_proven(running), lambda: running.get("/v1/pipeline")[1])


def _is_proven(running: Running) -> bool:
    proof = json.loads(running.get("/v1/pipeline")[1])
    assert proof["dropped"] == 0
    return bool(proof["generated"] == proof["stored"] > 0)


def _agent_is_up(running: Running) -> bool:
    agents = items(running, "/v1/agents")
    return bool(agents) and agents[0]["state"] == "up"


async def test_two_at_once_on_one_directory_are_refused(home: Path) -> None:
    async with up(home):
        log = home.parent / "second"
        async with vervet("up", log=log, home=str(home), **FAST) as second:
            assert await second.ended() == 69
            assert "Traceback" not in second.text()
            assert str(home) in second.text()


async def test_a_port_in_use_is_told_and_one_service_is_named(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        log = home.parent / "log"
        async with vervet("up", log=log, home=str(home), **FAST, listen=address) as running:
            assert await running.ended() == 69
    said = running.text()
    assert f"cannot listen on {address}: Address already in use; choose another" in said
    assert said.count("a service ended") == 1
    assert "Traceback" not in said


async def test_real_servers_replace_the_embedded_ones(
    home: Path, broker_url: str, database_url: str
) -> None:
    servers = {"broker_url": broker_url, "database_url": database_url}
    async with up(home, **servers) as running:
        await eventually(lambda: value(running, "node_load1") is not None, running.text)
    assert not (home / "postgres").exists()


@pytest.mark.parametrize(
    ("setting", "text", "told"),
    [
        (
            "rules",
            "groups:\n  - nmae: x\n",
            ":2:5: groups[0].nmae: unknown key 'nmae'; did you mean",
        ),
        ("routing_file", "route: {receiver: nobody}\n", "receivers: missing; it is required"),
    ],
)
async def test_a_bad_document_ends_it_before_anything_starts(
    home: Path, setting: str, text: str, told: str
) -> None:
    document = home.parent / "document.yml"
    document.write_text(text)
    log = home.parent / "log"
    async with vervet("up", log=log, home=str(home), **{setting: str(document)}) as running:
        assert await running.ended() == 2
    said = running.text()
    assert f"{document}:" in said
    assert told in said
    assert "Traceback" not in said
    assert not home.exists()
