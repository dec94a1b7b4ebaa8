"""RabbitMQ as tests see it: virtual hosts, management, and its faults."""

import contextlib
import http.client
import json
import secrets
from base64 import b64encode
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from tests.stack.choice import Unavailable
from tests.stack.process import Process, await_condition

START_TIMEOUT_S = 90
REQUEST_TIMEOUT_S = 15


class Broker:
    """A RabbitMQ server. Given by URL it has no process, and what needs one raises Unavailable.

    amqp_url: of the default virtual host. management_url: of the HTTP API, without credentials.
    """

    def __init__(self, amqp_url: str, management_url: str, process: Process | None) -> None:
        self.url = amqp_url
        self.management_url = management_url
        # Whether nothing was done to the node that a fresh virtual host doesn't undo.
        self.pristine = True
        self._frozen = False
        self._process = process

    def __repr__(self) -> str:
        parts = urlsplit(self.url)
        return f"Broker({parts.hostname}:{parts.port})"

    # Faults and commands. All of them block: from async tests, call them by asyncio.to_thread.

    def start(self) -> None:
        """Start it (again) and return once it serves."""
        self._own().start()
        self._frozen = False
        self.await_ready()

    def stop(self) -> None:
        """Stop it in order."""
        self._own().stop()

    def kill(self) -> None:
        """SIGKILL; confirmed messages must survive."""
        if self.is_running() and not self._frozen:
            # A quorum queue's name reaches the disk only some half second after its declaration:
            # killed before that, the node comes back with a queue that answers nobody.
            self._command("eval", "[dets:sync(Table) || Table <- dets:all()].")
        self._own().kill()

    def freeze(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        self._own().freeze()
        self._frozen = True

    def thaw(self) -> None:
        self._own().thaw()
        self._frozen = False

    def pid(self) -> int:
        """Its first process, below which all of its others are found."""
        return self._own().pid()

    def is_running(self) -> bool:
        return self._own().is_running()

    def management(self, *argv: str) -> str:
        """Run rabbitmqctl with these arguments; returns what it printed (about a second)."""
        self.pristine = False
        return self._command(*argv)

    def _command(self, *argv: str) -> str:
        return self._own().run("rabbitmqctl", "--quiet", *argv)

    def close(self) -> None:
        if self._process is not None:
            self._process.close()

    # The management API: milliseconds a call, and there for a broker given by URL too.

    def api(self, method: str, path: str, body: object = None) -> Any:
        """Call `/api/<path>`; returns the decoded answer, None where it has no body."""
        parts, credentials = urlsplit(self.management_url), urlsplit(self.url)
        secure = parts.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=REQUEST_TIMEOUT_S)
        pair = f"{unquote(credentials.username or '')}:{unquote(credentials.password or '')}"
        headers = {
            "Authorization": f"Basic {b64encode(pair.encode()).decode()}",
            "Content-Type": "application/json",
        }
        try:
            connection.request(
                method, f"{parts.path}/api/{path}", json.dumps(body) if body else None, headers
            )
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        if answer.status >= 400:
            raise RuntimeError(f"{method} /api/{path}: {answer.status} {content.decode()[:500]}")
        return json.loads(content) if content else None

    def version(self) -> str:
        version: str = self.api("GET", "overview")["rabbitmq_version"]
        return version

    @contextlib.contextmanager
    def virtual_host(self) -> Iterator[str]:
        """Make a fresh virtual host, yield its URL, delete it with all it holds."""
        name = f"test-{secrets.token_hex(6)}"
        self.make_virtual_host(name)
        try:
            yield self.url_of(name)
        finally:
            # A test may leave its broker dead; its virtual hosts die with it.
            if self._process is None or self._process.is_running():
                self.api("DELETE", f"vhosts/{name}")

    def make_virtual_host(self, name: str) -> None:
        path = quote(name, safe="")
        self.api("PUT", f"vhosts/{path}")
        user = quote(unquote(urlsplit(self.url).username or "guest"), safe="")
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        self.api("PUT", f"permissions/{path}/{user}", everything)

    def empty(self) -> None:
        """Make the default virtual host anew."""
        self.api("DELETE", "vhosts/%2F")
        self.make_virtual_host("/")

    def url_of(self, virtual_host: str) -> str:
        return urlsplit(self.url)._replace(path="/" + quote(virtual_host, safe="")).geturl()

    def await_ready(self) -> None:
        """Return once it serves AMQP and management. Raises Unavailable with the log's end."""
        if not await_condition(self._answers_or_ended, START_TIMEOUT_S) or not self._answers():
            log = "" if self._process is None else f"; its log ends:\n{self._process.log_tail()}"
            raise Unavailable(f"RabbitMQ doesn't serve {self.management_url}{log}")

    def _answers_or_ended(self) -> bool:
        ended = self._process is not None and not self._process.is_running()
        return ended or self._answers()

    def _answers(self) -> bool:
        try:
            listeners = self.api("GET", "overview")["listeners"]
        except (OSError, http.client.HTTPException, RuntimeError, KeyError, ValueError):
            return False
        # The node opens AMQP last; the management API may answer before.
        return any(listener["protocol"] == "amqp" for listener in listeners)

    def _own(self) -> Process:
        if self._process is None:
            raise Unavailable("the broker was given by URL: it can't be stopped, killed or managed")
        return self._process
