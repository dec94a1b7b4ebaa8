"""Fixtures for the real servers; how they come to be is in tests/stack."""

import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.stack.broker import Broker
from tests.stack.choice import Unavailable
from tests.stack.database import Database
from tests.stack.session import Stack

# A busy machine is no reason to fail, and a failure in CI must be there again at the next try.
settings.register_profile(
    "vervet",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=bool(os.environ.get("CI")),
    print_blob=True,
)
settings.load_profile("vervet")

BROKER_FIXTURES = {"broker_server", "broker_url", "own_broker"}
DATABASE_FIXTURES = {
    "database_server",
    "database_url",
    "empty_database_url",
    "own_database",
    "plain_database_url",
    "timescale_database_url",
}
STACK = pytest.StashKey[Stack]()


def pytest_configure(config: pytest.Config) -> None:
    def say(line: str) -> None:
        reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
        capture: Any = config.pluginmanager.get_plugin("capturemanager")
        with capture.global_and_fixture_disabled():
            reporter.ensure_newline()
            reporter.write_line(f"servers for tests: {line}")

    config.stash[STACK] = Stack(os.environ, say)


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[STACK].close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that uses a server has its marker; a test that has the marker has a started server."""
    for item in items:
        names = getattr(item, "fixturenames", [])
        for marker, fixtures in (("broker", BROKER_FIXTURES), ("database", DATABASE_FIXTURES)):
            if fixtures.intersection(names):
                item.add_marker(marker)
            elif item.get_closest_marker(marker):
                # Not append: the parameter sets of one test share the list.
                item.fixturenames = [*names, f"{marker}_server"]  # type: ignore[attr-defined]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None, None, None]:
    yield from _skipping_what_is_unavailable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, None, None]:
    yield from _skipping_what_is_unavailable()


def _skipping_what_is_unavailable() -> Generator[None, None, None]:
    try:
        yield
    except Unavailable as error:
        reason = str(error)
    else:
        return
    # On a laptop a missing server is a skip; in CI it would hide that nothing was tested.
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    stack = config.stash[STACK]
    if stack.started or stack.refused:
        terminalreporter.section("servers for tests")
    for line in (*stack.started, *dict.fromkeys(stack.refused.values())):
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def stack(pytestconfig: pytest.Config) -> Stack:
    """All servers of this run."""
    return pytestconfig.stash[STACK]


@pytest.fixture(scope="session")
def broker_server(stack: Stack) -> Broker:
    """The RabbitMQ that all tests share: don't disturb it."""
    return stack.broker()


@pytest.fixture
def broker_url(broker_server: Broker) -> Iterator[str]:
    """The URL of a fresh virtual host, deleted afterwards."""
    with broker_server.virtual_host() as url:
        yield url


@pytest.fixture
def own_broker(stack: Stack) -> Broker:
    """A RabbitMQ for this test alone, to kill, freeze and alarm; it is empty."""
    return stack.own_broker()


@pytest.fixture(scope="session")
def database_server(stack: Stack) -> Database:
    """The PostgreSQL that all tests share: don't disturb it."""
    return stack.database()


@pytest.fixture
def empty_database_url(database_server: Database) -> Iterator[str]:
    """The URL of a fresh empty database, dropped afterwards."""
    with database_server.empty_database() as url:
        yield url


@pytest.fixture
def database_url(database_server: Database) -> Iterator[str]:
    """The URL of a fresh database with all migrations applied, dropped afterwards."""
    from services.database import migrate

    with database_server.migrated_database(migrate) as url:
        yield url


@pytest.fixture
def timescale_database_url(database_server: Database) -> Iterator[str]:
    """The same; skipped where the stack that was chosen has no TimescaleDB."""
    from services.database import migrate

    if not database_server.has_timescale():
        pytest.skip(f"{database_server!r} has no TimescaleDB")
    with database_server.migrated_database(migrate) as url:
        yield url


@pytest.fixture
def plain_database_url(stack: Stack) -> Iterator[str]:
    """The same on PostgreSQL without TimescaleDB."""
    from services.database import migrate

    with stack.plain_database().migrated_database(migrate) as url:
        yield url


@pytest.fixture
def own_database(stack: Stack) -> Database:
    """A PostgreSQL for this test alone, to kill and freeze; its url is an empty database."""
    return stack.own_database()


@pytest.fixture(scope="session")
def promtool(stack: Stack) -> Path:
    """Prometheus' own tool, from Debian's package."""
    return stack.peer("promtool")


@pytest.fixture(scope="session")
def amtool(stack: Stack) -> Path:
    """Alertmanager's own tool, from Debian's package."""
    return stack.peer("amtool")


@pytest.fixture(scope="session")
def node_exporter(stack: Stack) -> Path:
    """node_exporter, from Debian's package."""
    return stack.peer("prometheus-node-exporter")
