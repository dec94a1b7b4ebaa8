"""Servers that are absent at the start: every process waits, says for what, and ends when told."""

import time
from pathlib import Path

import pytest

from tests.processes import eventually, free_port, vervet


@pytest.mark.parametrize("name", ["agent", "ingest", "evaluator", "notifier", "api"])
async def test_without_servers_a_process_waits_and_says_for_what(name: str, tmp_path: Path) -> None:
    absent = {"broker_url": f"amqp://u:secret@127.0.0.1:{free_port()}/v"}
    if name == "agent":
        absent["spool_directory"] = str(tmp_path / "spool")
    else:
        absent["database_url"] = f"postgresql://u:secret@127.0.0.1:{free_port()}/d"
    async with vervet(name, log=tmp_path / "log", **absent) as process:
        await process.until_waiting_for("waiting for broker: ")
        status, why = process.get("/-/ready")
        assert status == 503
        assert "127.0.0.1:" in why
        assert "secret" not in why
        assert process.get("/-/healthy")[0] == 200
        assert "vervet_ready 0.0" in process.get("/metrics")[1]
        began = time.monotonic()
        process.process.terminate()
        await eventually(lambda: process.process.poll() is not None, process.text)
    assert process.process.returncode == 0
    assert time.monotonic() - began < 10
    assert "secret" not in process.text()
    assert "Traceback" not in process.text()


async def test_migrate_says_what_it_waits_for(tmp_path: Path) -> None:
    absent = {
        "broker_url": f"amqp://u:secret@127.0.0.1:{free_port()}/v",
        "database_url": f"postgresql://u:secret@127.0.0.1:{free_port()}/d",
    }
    async with vervet("migrate", log=tmp_path / "log", **absent) as process:
        await eventually(lambda: "waiting" in process.text(), process.text)
        assert "secret" not in process.text()
