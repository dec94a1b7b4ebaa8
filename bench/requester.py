"""The peers' publisher, a process of its own: a request for each tick of each host.

Run as `python -m bench.requester FORM URL SAMPLES HOSTS FIRST_MS`; FORM is remote-write or lines.
For each count on standard input it makes so many requests and answers `made`; at the next line it
sends them as fast as they are answered, and answers `published`. They are made beforehand so that
the sender takes as little as it can of the machine that it shares with the server.
"""

import http.client
import sys
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Self
from urllib.parse import urlsplit

from bench.figures import Failed
from bench.hosts import Load
from bench.wire import Lines, RemoteWrite
from tests.stack.remote_write import HEADERS

CONNECTIONS = 8
TIMEOUT_S = 120.0
FORMS: Mapping[str, tuple[type[RemoteWrite] | type[Lines], Mapping[str, str]]] = {
    "remote-write": (RemoteWrite, HEADERS),
    "lines": (Lines, {}),
}


def main(form: str, url: str, load: Load) -> None:
    kind, headers = FORMS[form]
    encoder = kind()
    # A host's requests stay in order: Prometheus takes no late samples.
    connections = min(CONNECTIONS, load.hosts)
    made = 0
    with (
        Sender(url, headers) as sender,
        ThreadPoolExecutor(connections, thread_name_prefix="sender") as pool,
    ):
        while line := sys.stdin.readline():
            queues: list[list[bytes]] = [[] for _ in range(connections)]
            for number in range(made, made + int(line)):
                tick, host = divmod(number, load.hosts)
                body = encoder.body(load.source(host), load.pieces(host, tick))
                queues[host % connections].append(body)
            made += int(line)
            print("made", flush=True)
            sys.stdin.readline()
            list(pool.map(sender.post_all, queues))
            print("published", flush=True)


class Sender:
    """Sends requests, over a connection in each thread that does; closed with the block."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        parts = urlsplit(url)
        self._address = parts.netloc
        self._target = parts._replace(scheme="", netloc="").geturl()
        self._headers = dict(headers)
        self._own = threading.local()
        self._connections: list[http.client.HTTPConnection] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._connections:
            connection.close()

    def post(self, body: bytes) -> None:
        """Raises Failed for a request that is not taken whole."""
        if not hasattr(self._own, "connection"):
            self._own.connection = http.client.HTTPConnection(self._address, timeout=TIMEOUT_S)
            self._connections.append(self._own.connection)
        connection: http.client.HTTPConnection = self._own.connection
        connection.request("POST", self._target, body, self._headers)
        answer = connection.getresponse()
        said = answer.read()
        if answer.status // 100 != 2:
            where = f"{self._address}{self._target}"
            raise Failed(f"{where} answered {answer.status}: {said[:500]!r}")

    def post_all(self, bodies: Iterable[bytes]) -> None:
        for body in bodies:
            self.post(body)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Load.of(*map(int, sys.argv[3:6])))
