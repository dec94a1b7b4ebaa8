"""The servers for tests are what they claim to be: these run on whichever stack was chosen."""

import asyncio
import contextlib
from collections.abc import Collection
from urllib.parse import urlsplit

import aio_pika
import asyncpg
import psutil
import pytest
from aio_pika.abc import ExchangeType
from pamqp.common import FieldTable

from tests.stack.broker import Broker
from tests.stack.database import Database
from tests.stack.process import await_condition
from tests.stack.session import Stack

QUORUM: FieldTable = {"x-queue-type": "quorum"}
EVALUATE_SLOWLY = ("eval", "timer:sleep(2000).")


def listening_addresses(ports: Collection[int | None] = ()) -> set[tuple[str, int]]:
    """Every (address, port) on which the run's processes listen, or anybody on one of the ports."""
    below = {process.pid for process in psutil.Process().children(recursive=True)}
    return {
        (socket.laddr.ip, socket.laddr.port)
        for socket in psutil.net_connections("inet")
        if socket.laddr and socket.status == "LISTEN"
        if socket.pid in below or socket.laddr.port in ports
    }


async def publish_persistently(url: str, queue_name: str, body: bytes) -> None:
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel(publisher_confirms=True)
        await channel.declare_queue(queue_name, durable=True, arguments=QUORUM)
        message = aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        await channel.default_exchange.publish(message, queue_name)


async def take(url: str, queue_name: str) -> bytes:
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(queue_name, durable=True, arguments=QUORUM)
        message = await queue.get(timeout=20)
        await message.ack()
        return message.body


def test_the_broker_is_one_that_the_product_supports(broker_server: Broker) -> None:
    major, minor, *_ = broker_server.version().split(".")
    assert (int(major), int(minor)) >= (3, 10)


async def test_a_consistent_hash_exchange_can_be_declared(broker_url: str) -> None:
    async with await aio_pika.connect(broker_url) as connection:
        channel = await connection.channel()
        exchange = await channel.declare_exchange("spread", ExchangeType.X_CONSISTENT_HASH)
        queue = await channel.declare_queue("part", durable=True, arguments=QUORUM)
        await queue.bind(exchange, routing_key="1")
        await exchange.publish(aio_pika.Message(b"sample"), "instance-1")
        message = await queue.get(timeout=10)
        assert message.body == b"sample"


async def test_a_virtual_host_knows_nothing_of_another(
    broker_server: Broker, broker_url: str
) -> None:
    await publish_persistently(broker_url, "samples", b"mine")
    with broker_server.virtual_host() as other_url:
        assert urlsplit(other_url).path != urlsplit(broker_url).path
        async with await aio_pika.connect(other_url) as connection:
            channel = await connection.channel()
            with pytest.raises(aio_pika.exceptions.ChannelNotFoundEntity):
                await channel.declare_queue("samples", passive=True)


def test_a_virtual_host_is_gone_after_its_test(broker_server: Broker) -> None:
    with broker_server.virtual_host() as url:
        name = urlsplit(url).path.lstrip("/")
        assert name in {host["name"] for host in broker_server.api("GET", "vhosts")}
    assert name not in {host["name"] for host in broker_server.api("GET", "vhosts")}


async def test_a_killed_broker_keeps_what_it_confirmed(own_broker: Broker) -> None:
    await publish_persistently(own_broker.url, "samples", b"confirmed")
    await asyncio.to_thread(own_broker.kill)
    with pytest.raises((OSError, aio_pika.exceptions.AMQPConnectionError)):
        await aio_pika.connect(own_broker.url, timeout=5)
    await asyncio.to_thread(own_broker.start)
    assert await take(own_broker.url, "samples") == b"confirmed"


async def test_a_frozen_broker_answers_nothing_until_it_is_thawed(own_broker: Broker) -> None:
    own_broker.freeze()
    with pytest.raises((TimeoutError, aio_pika.exceptions.AMQPConnectionError)):
        await aio_pika.connect(own_broker.url, timeout=1)
    own_broker.thaw()
    await publish_persistently(own_broker.url, "samples", b"after")


async def test_a_stopped_broker_starts_again_with_its_queues(own_broker: Broker) -> None:
    await publish_persistently(own_broker.url, "samples", b"kept")
    await asyncio.to_thread(own_broker.stop)
    assert not own_broker.is_running()
    await asyncio.to_thread(own_broker.start)
    assert await take(own_broker.url, "samples") == b"kept"


async def test_an_alarm_can_be_raised_on_a_broker_of_ones_own(own_broker: Broker) -> None:
    await asyncio.to_thread(own_broker.management, "set_vm_memory_high_watermark", "0.00001")

    def alarmed() -> bool:
        try:
            own_broker.api("GET", "health/checks/alarms")
        except RuntimeError as error:
            return " 503 " in str(error)
        return False

    assert await asyncio.to_thread(await_condition, alarmed, 20)


async def test_the_broker_after_an_alarm_is_without_it(own_broker: Broker) -> None:
    await publish_persistently(own_broker.url, "samples", b"flows")
    assert own_broker.pristine


async def test_an_empty_database_is_empty(empty_database_url: str) -> None:
    connection = await asyncpg.connect(empty_database_url)
    try:
        extensions = await connection.fetch("SELECT extname FROM pg_extension")
        assert [row["extname"] for row in extensions] == ["plpgsql"]
        tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
        assert await connection.fetchval(tables) == 0
    finally:
        await connection.close()


async def test_an_ordinary_role_can_have_timescale_and_a_hypertable(
    database_server: Database, empty_database_url: str
) -> None:
    if not database_server.has_timescale():
        pytest.skip(f"{database_server!r} has no TimescaleDB")
    connection = await asyncpg.connect(empty_database_url)
    try:
        await connection.execute("CREATE EXTENSION timescaledb")
        await connection.execute("CREATE TABLE t (at timestamptz NOT NULL)")
        await connection.execute("SELECT create_hypertable('t', 'at')")
        await connection.execute("INSERT INTO t VALUES (now())")
        assert await connection.fetchval("SELECT count(*) FROM t") == 1
        assert await connection.fetchval("SHOW is_superuser") == "off"
    finally:
        await connection.close()


async def migrate_for_test(url: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        loaded = "SELECT current_setting('timescaledb.disable_load', true) IS NOT NULL"
        timescale = await connection.fetchval(loaded)
        if timescale:
            await connection.execute("CREATE EXTENSION timescaledb")
        await connection.execute("CREATE TABLE t (at timestamptz NOT NULL)")
        if timescale:
            await connection.execute("SELECT create_hypertable('t', 'at')")
    finally:
        await connection.close()


def database_names(server: Database) -> set[str]:
    return {row["datname"] for row in server.sql("SELECT datname FROM pg_database")}


async def test_clones_of_a_migrated_template_are_independent_and_leave_nothing(
    database_server: Database,
) -> None:
    before = database_names(database_server)
    # Without a process, as a server that is given by URL: it must be left as it was found.
    given = Database(database_server.url, database_server.url, None)
    with contextlib.closing(given):
        for _ in range(5):
            with given.migrated_database(migrate_for_test) as url:
                connection = await asyncpg.connect(url)
                try:
                    assert await connection.fetchval("SELECT count(*) FROM t") == 0
                    await connection.execute("INSERT INTO t VALUES (now())")
                finally:
                    await connection.close()
    assert database_names(database_server) == before


async def test_a_database_is_dropped_though_connections_to_it_are_open(
    database_server: Database,
) -> None:
    with database_server.empty_database() as url:
        connection = await asyncpg.connect(url)
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        await connection.fetch("SELECT 1")
    connection.terminate()
    assert urlsplit(url).path.lstrip("/") not in database_names(database_server)


async def test_a_killed_database_keeps_what_it_committed(own_database: Database) -> None:
    connection = await asyncpg.connect(own_database.url)
    await connection.execute("CREATE TABLE t (n int)")
    await connection.execute("INSERT INTO t VALUES (1)")
    await asyncio.to_thread(own_database.kill)
    with pytest.raises((OSError, asyncpg.InterfaceError, asyncpg.PostgresError)):
        await connection.fetch("SELECT 1")
    connection.terminate()
    await asyncio.to_thread(own_database.start)
    connection = await asyncpg.connect(own_database.url)
    try:
        assert await connection.fetchval("SELECT n FROM t") == 1
    finally:
        await connection.close()


async def test_a_frozen_database_answers_nothing_until_it_is_thawed(
    own_database: Database,
) -> None:
    connection = await asyncpg.connect(own_database.url)
    try:
        own_database.freeze()
        waiting = asyncio.create_task(connection.fetchval("SELECT 1"))
        done, _ = await asyncio.wait({waiting}, timeout=0.5)
        assert not done
        own_database.thaw()
        assert await waiting == 1
    finally:
        await connection.close()


async def test_each_test_with_a_database_of_its_own_finds_it_empty(
    own_database: Database,
) -> None:
    connection = await asyncpg.connect(own_database.url)
    try:
        assert await connection.fetch("SELECT * FROM pg_tables WHERE schemaname = 'public'") == []
    finally:
        await connection.close()


def test_plain_postgresql_has_no_timescale(stack: Stack) -> None:
    assert not stack.plain_database().has_timescale()


def test_every_listener_is_on_loopback(stack: Stack) -> None:
    broker = stack.broker()
    urls = (broker.url, broker.management_url, stack.database().url)
    ports = {urlsplit(url).port for url in urls}
    if "url" in stack.ways.values():
        pytest.skip("the servers were given by URL")
    addresses = listening_addresses(ports)
    assert ports <= {port for _, port in addresses}
    assert {address for address, _ in addresses} <= {"127.0.0.1", "::1"}


async def test_rabbitmqctl_listens_on_loopback_too(stack: Stack, own_broker: Broker) -> None:
    if stack.ways["broker"] == "docker":
        pytest.skip("it listens in the container")
    before = listening_addresses()
    command = asyncio.create_task(asyncio.to_thread(own_broker.management, *EVALUATE_SLOWLY))
    assert await asyncio.to_thread(
        await_condition, lambda: listening_addresses() - before != set(), 20
    )
    assert {address for address, _ in listening_addresses()} <= {"127.0.0.1", "::1"}
    await command


async def hypertables(url: str) -> list[str]:
    connection = await asyncpg.connect(url)
    try:
        if not await connection.fetchval("SELECT to_regclass('frames') IS NOT NULL"):
            pytest.fail("the migrations have not been applied")
        if not await connection.fetchval("SELECT to_regnamespace('_timescaledb_catalog')"):
            return []
        catalog = "SELECT table_name FROM _timescaledb_catalog.hypertable"
        return [row[0] for row in await connection.fetch(catalog)]
    finally:
        await connection.close()


async def test_a_migrated_database_has_hypertables_where_there_is_timescale(
    timescale_database_url: str,
) -> None:
    assert "frames" in await hypertables(timescale_database_url)


async def test_a_migrated_plain_database_has_none(plain_database_url: str) -> None:
    assert await hypertables(plain_database_url) == []
