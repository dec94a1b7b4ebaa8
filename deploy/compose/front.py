"""The stack's one published port: passes each TCP connection to one of the api's replicas.

A range of published ports is no way to scale the api: the engine takes the next port of the range
at every restart, so the page's address would wander. A name that stands for several replicas
resolves to all their addresses; each connection takes one at random and, when it doesn't answer,
another.

Usage: front.py LISTEN_PORT HOST PORT
"""

import asyncio
import logging
import random
import socket
import sys

CONNECT_TIMEOUT_S = 2.0
"""A replica on the same machine answers within milliseconds; one that is stopping never does."""
CHUNK_BYTES = 64 * 1024

log = logging.getLogger("front")


async def connect(host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connects to one of the host's addresses; raises OSError when none of them answers."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(address[0]) for *_, address in found]
    random.shuffle(addresses)  # the resolver sorts them: its first would get every connection
    refused: OSError = OSError(f"{host} has no address")
    for address in addresses:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                return await asyncio.open_connection(address, port)
        except OSError as error:  # TimeoutError is one
            refused = error
    raise refused


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Passes bytes on until the reader's side ends, and then says so to the writer's."""
    while chunk := await reader.read(CHUNK_BYTES):
        writer.write(chunk)
        await writer.drain()
    writer.write_eof()


async def serve(listen_port: int, host: str, port: int) -> None:
    """Passes connections on until it is cancelled."""

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            upstream_reader, upstream_writer = await connect(host, port)
        except OSError as error:
            log.warning("no replica of %s answers: %s", host, error)
            writer.close()
            return
        try:
            async with asyncio.TaskGroup() as both:
                request = both.create_task(copy(reader, upstream_writer), name="request")
                await copy(upstream_reader, writer)
                request.cancel()  # a client may keep its side open for as long as it likes
        except* OSError as errors:
            log.info("a connection broke: %s", errors.exceptions[0])
        finally:
            writer.close()
            upstream_writer.close()

    server = await asyncio.start_server(pass_on, "0.0.0.0", listen_port)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    asyncio.run(serve(int(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
