"""The servers of one test run: each starts when it is first asked for, all end with the run."""

import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from tests.stack import choice, containers, debian, trees
from tests.stack.broker import Broker
from tests.stack.choice import Facts, Kind, Server, Unavailable
from tests.stack.database import Database, with_database
from tests.stack.peers import peer
from tests.stack.process import Keeper, Process, Say, free_port
from tests.stack.settings import ROLE

MANAGEMENT_VARIABLE = "VERVET_TEST_BROKER_MANAGEMENT_URL"
MANAGEMENT_PORT = 15672
OWN_DATABASE = "vervet"
Started = TypeVar("Started", Broker, Database)


class Stack:
    """Starts servers on demand. What can't be had raises Unavailable, each time it's asked.

    started, refused, ways: what became of it so far. say: tells the person what takes long.
    database_settings: PostgreSQL's, over those of tests/stack/settings.py.
    """

    def __init__(
        self, environ: Mapping[str, str], say: Say, database_settings: Mapping[str, str] = {}
    ) -> None:
        self.keeper = Keeper()
        self.started: list[str] = []
        self.refused: dict[str, str] = {}
        self.ways: dict[Server, Kind] = {}
        self._environ = environ
        self._say = say
        self._database_settings = database_settings
        self._servers: dict[str, Broker | Database] = {}

    def peer(self, name: str) -> Path:
        """A program of others that judges ours (peers.py)."""
        return peer(name, self._environ, self._say)

    def broker(self) -> Broker:
        """The RabbitMQ that all tests share."""
        return self._once("RabbitMQ", lambda: self._had("broker", self._start_broker))

    def own_broker(self) -> Broker:
        """A second RabbitMQ, for a test that kills it: running, thawed and empty."""
        name = "RabbitMQ of its own"
        kept = self._servers.get(name)
        if isinstance(kept, Broker):
            kept.thaw()
            if not (kept.pristine and kept.is_running()):
                kept.close()
                del self._servers[name]
        broker = self._once(name, lambda: self._had("broker", self._start_own_broker))
        broker.empty()
        return broker

    def database(self) -> Database:
        """The PostgreSQL that all tests share, with TimescaleDB where the stack has it."""
        return self._once("PostgreSQL", lambda: self._had("database", self._start_database))

    def plain_database(self) -> Database:
        """PostgreSQL without TimescaleDB: the shared one where it has none."""
        shared = self.database()
        if not shared.has_timescale():
            return shared
        return self._once(
            "PostgreSQL without TimescaleDB",
            lambda: self._had("database", lambda way: self._start_another(way, timescale=False)),
        )

    def own_database(self) -> Database:
        """A second PostgreSQL, for a test that kills it; its url is that of an empty database."""
        name = "PostgreSQL of its own"
        kept = self._servers.get(name)
        if isinstance(kept, Database):
            kept.thaw()
            if not kept.is_running():
                kept.start()
        database = self._once(
            name,
            lambda: self._had("database", lambda way: self._start_another(way, timescale=True)),
        )
        database.recreate(OWN_DATABASE)
        database.url = with_database(database.url, OWN_DATABASE)
        return database

    def close(self) -> None:
        """End everything that was started."""
        try:
            if self.ways.get("database") == "url":
                self._servers["PostgreSQL"].close()
        finally:
            self._servers.clear()
            self.keeper.close()

    def facts(self, *, ask_docker: bool = True) -> Facts:
        """Find out what the choice depends on."""
        return Facts(
            is_root=os.geteuid() == 0,
            distribution=_distribution(),
            docker_refusal=containers.engine_refusal() if ask_docker else "not asked",
            trees=trees.ready(self._environ),
        )

    # How.

    def _once(self, name: str, start: Callable[[], Started]) -> Started:
        if name in self.refused:
            raise Unavailable(self.refused[name])
        if name not in self._servers:
            try:
                server = start()
            except Unavailable as error:
                self.refused[name] = str(error)
                raise
            self._servers[name] = server
            self.started.append(f"{name} {server.version()}, {server!r}")
        found: Started = self._servers[name]  # type: ignore[assignment]
        return found

    def _had(self, server: Server, start: Callable[[Kind], Started]) -> Started:
        """Try the ways in order; the one that worked is the only one for the rest of the run."""
        if server in self.ways:
            return start(self.ways[server])
        ask_docker = choice.needs_docker_answer(server, self._environ)
        plan = choice.plan(server, self._environ, self.facts(ask_docker=ask_docker))
        refusals = list(plan.refusals)
        for way in plan.ways:
            try:
                started = start(way)
            except Unavailable as error:
                refusals.append(f"{way}: {error}")
            else:
                self.ways[server] = way
                return started
        raise choice.unavailable(server, refusals)

    def _start_broker(self, way: Kind) -> Broker:
        if way != "url":
            return self._start_own_broker(way)
        url = self._environ[choice.URL_VARIABLES["broker"]]
        host = urlsplit(url).hostname
        management = self._environ.get(MANAGEMENT_VARIABLE) or f"http://{host}:{MANAGEMENT_PORT}"
        broker = Broker(url, management, None)
        try:
            broker.version()
        except (OSError, RuntimeError) as error:
            raise Unavailable(f"{management} ({MANAGEMENT_VARIABLE}): {error}") from error
        return broker

    def _start_own_broker(self, way: Kind) -> Broker:
        password = secrets.token_hex(16)
        if way == "url":
            raise Unavailable("no RabbitMQ of its own for a test: the broker was given by URL")
        if way == "docker":
            image = containers.image("broker")
            containers.ensure_image(image, self._say)
            amqp, management = free_port(), free_port()
            process: Process = containers.broker_container(
                image, self.keeper, amqp, management, password
            )
        else:
            tree = trees.ensure(way, self._environ, self.keeper, self._say)
            ports = debian.broker_ports()
            amqp, management = ports.amqp, ports.management
            process = debian.broker_process(tree, self.keeper, ports, password)
        url = f"amqp://{ROLE}:{password}@127.0.0.1:{amqp}/%2F"
        broker = Broker(url, f"http://127.0.0.1:{management}", process)
        broker.start()
        return broker

    def _start_database(self, way: Kind) -> Database:
        if way != "url":
            return self._start_another(way, timescale=True)
        url = self._environ[choice.URL_VARIABLES["database"]]
        database = Database(url, url, None)
        database.await_ready()
        return database

    def _start_another(self, way: Kind, *, timescale: bool) -> Database:
        password, role_password, port = secrets.token_hex(16), secrets.token_hex(16), free_port()
        settings = self._database_settings
        if way == "url":
            raise Unavailable("no second PostgreSQL for a test: the database was given by URL")
        if way == "docker":
            image = containers.image("database")
            containers.ensure_image(image, self._say)
            process: Process = containers.database_container(
                image, self.keeper, port, password, timescale=timescale, settings=settings
            )
        else:
            tree = trees.ensure(way, self._environ, self.keeper, self._say)
            process = debian.database_process(
                tree, self.keeper, port, password, timescale=timescale, settings=settings
            )
        address = f"127.0.0.1:{port}/postgres"
        database = Database(
            f"postgresql://{ROLE}:{role_password}@{address}",
            f"postgresql://postgres:{password}@{address}",
            process,
        )
        database.start()
        database.ensure_role(ROLE, role_password)
        return database


def _distribution() -> str:
    try:
        lines = Path("/etc/os-release").read_text().splitlines()
    except FileNotFoundError:
        return ""
    return dict(line.split("=", 1) for line in lines if "=" in line).get("ID", "").strip('"')
