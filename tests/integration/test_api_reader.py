"""The api on a database role that can only read: all of it works, and nothing can be written."""

import re
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from schemas.topology import topology
from services import jobs, retention
from services.bus_memory import memory_bus
from services.clock import now_us
from services.database import open_pool
from services.export import export, request
from tests.api_rig import LOAD, MINUTE_US, answers, serving, store
from tests.builders import sample_message
from tests.processes import eventually
from tests.stack.database import Database

GUIDE = Path(__file__).parents[2] / "docs/guides/database-roles.md"
READ = [
    *("query?query=node_load1", "query_range?query=node_load1&start=0&end=60&step=30"),
    *("series?match[]=node_load1", "labels", "label/instance/values", "metadata"),
    *("rules", "alerts", "targets", "targets/metadata", "scrape_pools"),
    *("status/tsdb", "status/runtimeinfo", "status/config", "status/flags"),
]
OWN = ["agents", "transitions", "inbox", "deliveries", "pipeline", "jobs", "explain?query=up"]


def statements(block: str, reader: str, password: str, owner: str) -> list[str]:
    """One block of those that the guide gives, for these names."""
    for example, name in (
        ("vervet_reader", reader),
        ("role vervet ", f"role {owner} "),
        ("'a long password'", f"'{password}'"),
    ):
        block = block.replace(example, name)
    return [one.strip() for one in block.split(";") if one.strip()]


@pytest.fixture
async def reader_url(database_url: str, database_server: Database) -> AsyncIterator[str]:
    """The same database for a role that was made as the guide says, before anything is stored."""
    parts = urlsplit(database_url)
    reader, password = f"reader_{secrets.token_hex(4)}", secrets.token_hex(8)
    of_superuser, of_owner = (
        statements(block, reader, password, str(parts.username))
        for block in re.findall(r"```sql\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    )
    for one in of_superuser:
        database_server.sql(one)
    async with open_pool(database_url) as pool:
        for one in of_owner:
            await pool.execute(one)
    yield urlunsplit(parts._replace(netloc=f"{reader}:{password}@{parts.hostname}:{parts.port}"))
    async with open_pool(database_url) as pool:
        await pool.execute(f"revoke all on all tables in schema public from {reader}")
        await pool.execute(f"revoke usage on schema public from {reader}")
        await pool.execute(
            "alter default privileges in schema public revoke select on tables from " + reader
        )
    database_server.sql(f"drop role {reader}")


async def test_the_api_works_for_a_role_that_can_only_read(
    database_url: str, reader_url: str
) -> None:
    rows = [[float(n), 30.0 * n] for n in range(11)]
    # Up to now: federation gives what is there when it is asked.
    start_us = now_us() - 10 * MINUTE_US
    message = sample_message(*rows, at_us=start_us, step_us=MINUTE_US, series=LOAD)
    await store(database_url, message)
    async with memory_bus() as bus:
        await bus.declare(topology(1))
        async with serving(bus, reader_url) as client:
            await eventually(lambda: answers(client, "/-/ready"))
            for path in [f"/api/v1/{one}" for one in READ] + [f"/v1/{one}" for one in OWN]:
                answer = await client.get(path)
                assert answer.status_code == 200, (path, answer.text)
            federated = await client.get("/federate?match[]=node_load1")
            assert 'node_load1{instance="host-1",job="node"} 10 ' in federated.text


async def test_a_role_that_can_only_read_exports(
    database_url: str, reader_url: str, tmp_path: Path
) -> None:
    await store(database_url, sample_message([1.0, 2.0], series=LOAD))
    file = tmp_path / "samples.txt"
    asked = request("node_load1", "2000-01-01", "3000-01-01", "openmetrics", file)
    await export(asked, reader_url)
    assert re.match('node_load1{.*instance="host-1".*} 1.0 ', file.read_text())


async def test_a_role_that_can_change_retention_and_ask_for_jobs_needs_no_more(
    database_url: str, reader_url: str
) -> None:
    async with open_pool(database_url) as pool:
        reader = urlsplit(reader_url).username
        await pool.execute(f"grant update on retention, jobs to {reader}")
        await pool.execute("insert into jobs (name, every_s, owner) values ('seal', 300, 'x')")
    writing = reader_url + "?options=-c%20default_transaction_read_only%3Doff"
    assert "30d" in await retention.answer(writing, {"raw": "30d"}, None)
    assert await jobs.run(writing, "seal")


async def test_a_role_that_can_only_read_writes_nothing(reader_url: str) -> None:
    async with open_pool(reader_url) as pool:
        for statement in (
            "insert into agents select * from agents",
            "delete from frames",
            "update alerts set state = 'firing'",
            "create table mine (x integer)",
            "truncate series",
        ):
            async with pool.acquire() as connection:
                await connection.execute("set default_transaction_read_only = off")
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await connection.execute(statement)


async def test_the_api_reads_in_transactions_that_cannot_write(database_url: str) -> None:
    async with open_pool(database_url, read_only=True) as pool:
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            await pool.execute("delete from alerts")
