"""The bus over TLS: amqps://, with a proxy of our own that ends it before the broker."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trustme

from schemas.topology import INGEST_QUEUE, INTAKE, topology
from services.bus import Bus, Message, Unavailable
from services.bus_rabbit import rabbit_bus

BODY = bytes(range(256)) * 2000
"""More than a frame and a TLS record hold."""


@contextlib.asynccontextmanager
async def secured(broker_url: str, authority: trustme.CA, name: str) -> AsyncIterator[str]:
    """The URL of a TLS port before the broker, whose certificate is for `name`."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name).configure_cert(context)
    parts = urlsplit(broker_url)
    writers: set[asyncio.StreamWriter] = set()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(parts.hostname, parts.port)
        writers.update((writer, back))
        await asyncio.gather(forward(reader, back), forward(there, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    try:
        login = f"{parts.username}:{parts.password}@127.0.0.1:{port}"
        yield parts._replace(scheme="amqps", netloc=login).geturl()
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()


async def test_messages_pass_over_tls(broker_url: str, tmp_path: Path) -> None:
    authority = trustme.CA()
    file = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(file)
    async with (
        secured(broker_url, authority, "127.0.0.1") as url,
        rabbit_bus(f"{url}?cafile={file}", name="test") as bus,
    ):
        async with asyncio.timeout(30):
            await declare(bus)
            async with bus.consume(INGEST_QUEUE, prefetch=10) as consumer:
                sent = [Message(BODY, "text/plain", str(n), {"instance": "a"}) for n in range(20)]
                await asyncio.gather(*(bus.publish(INTAKE, "job.a", one) for one in sent))
                for one in sent:
                    delivery = await consumer.receive()
                    assert delivery.message == one
                    await consumer.ack([delivery])
            assert await bus.depth(INGEST_QUEUE) == 0


async def declare(bus: Bus) -> None:
    """Declare what is needed, as soon as the broker is connected."""
    while True:
        try:
            return await bus.declare(topology(1))
        except Unavailable:
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("name", ["127.0.0.1", "elsewhere.example"])
async def test_a_certificate_that_is_not_trusted_is_refused_by_name(
    broker_url: str, tmp_path: Path, name: str
) -> None:
    known, other = trustme.CA(), trustme.CA()
    file = tmp_path / "authority.pem"
    known.cert_pem.write_to_path(file)
    issuer = known if name == "elsewhere.example" else other
    async with (
        secured(broker_url, issuer, name) as url,
        rabbit_bus(f"{url}?cafile={file}", name="test") as bus,
    ):
        with pytest.raises(Unavailable):
            await bus.declare(topology(1))
        for _ in range(500):
            if "certificate is not trusted" in (bus.state() or ""):
                return
            await asyncio.sleep(0.02)
        pytest.fail(f"the state is {bus.state()}")
