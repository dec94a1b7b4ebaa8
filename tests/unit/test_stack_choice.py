"""Which way the servers for tests are had, for every kind of machine."""

import socket
from pathlib import Path

import pytest

from tests.stack import choice, containers, trees
from tests.stack.choice import Facts, Unavailable
from tests.stack.database import with_database
from tests.stack.process import free_port
from tests.stack.settings import SERVER_SETTINGS, postgres_options

NO_DOCKER = "there is no docker command"
ROOT = Facts(is_root=True, distribution="debian", docker_refusal=NO_DOCKER)
ROOT_WITH_DOCKER = Facts(is_root=True, distribution="debian", docker_refusal=None)
USER = Facts(is_root=False, distribution="debian", docker_refusal=NO_DOCKER)
USER_WITH_DOCKER = Facts(is_root=False, distribution="fedora", docker_refusal=None)
ROOT_ELSEWHERE = Facts(is_root=True, distribution="fedora", docker_refusal=NO_DOCKER)
URL = {"VERVET_TEST_BROKER_URL": "amqp://guest:secret@broker.example/"}


@pytest.mark.parametrize(
    ("environ", "facts", "ways"),
    [
        ({}, ROOT, ("debian13",)),
        ({}, ROOT_WITH_DOCKER, ("docker", "debian13")),
        ({}, USER_WITH_DOCKER, ("docker",)),
        ({}, USER, ()),
        ({}, ROOT_ELSEWHERE, ()),
        (URL, ROOT_WITH_DOCKER, ("url",)),
        (URL, USER, ("url",)),
        (URL | {"VERVET_TEST_STACK": "debian12"}, ROOT_WITH_DOCKER, ("debian12",)),
        ({"VERVET_TEST_STACK": "debian13"}, ROOT_WITH_DOCKER, ("debian13",)),
        ({"VERVET_TEST_STACK": "docker"}, ROOT_WITH_DOCKER, ("docker",)),
        ({"VERVET_TEST_STACK": "docker"}, ROOT, ()),
        ({"VERVET_TEST_STACK": "url"}, ROOT, ()),
        ({"VERVET_TEST_STACK": "debian12"}, USER, ()),
        ({"VERVET_TEST_STACK": ""}, ROOT, ("debian13",)),
    ],
)
def test_the_ways_follow_from_the_environment_and_the_machine(
    environ: dict[str, str], facts: Facts, ways: tuple[str, ...]
) -> None:
    assert choice.plan("broker", environ, facts).ways == ways


def test_an_ordinary_user_without_docker_reads_every_reason() -> None:
    refusals = choice.plan("broker", {}, USER).refusals
    assert str(choice.unavailable("broker", refusals)) == (
        "no RabbitMQ for tests: VERVET_TEST_BROKER_URL is not set;"
        " Docker: there is no docker command;"
        " debian13: servers in a Debian tree need root (chroot)"
    )


def test_the_reason_names_the_server_and_its_own_variable() -> None:
    refusals = choice.plan("database", {}, USER).refusals
    reason = str(choice.unavailable("database", refusals))
    assert reason.startswith("no PostgreSQL for tests: VERVET_TEST_DATABASE_URL is not set; ")


def test_root_elsewhere_reads_which_system_it_is() -> None:
    assert (
        "debian13: a Debian tree is made on Debian only, this is fedora"
        in choice.plan("broker", {}, ROOT_ELSEWHERE).refusals
    )


def test_a_tree_that_is_made_already_serves_on_any_system() -> None:
    facts = Facts(True, "fedora", NO_DOCKER, trees=frozenset({"debian13"}))
    assert choice.plan("database", {}, facts).ways == ("debian13",)


def test_a_url_of_another_kind_is_refused_without_repeating_its_password() -> None:
    environ = {"VERVET_TEST_DATABASE_URL": "mysql://root:secret@127.0.0.1/"}
    (reason,) = choice.plan("database", environ, ROOT).refusals
    assert reason == "VERVET_TEST_DATABASE_URL is not a URL that starts with postgresql://"


def test_an_unknown_stack_is_refused_with_the_known_ones() -> None:
    with pytest.raises(Unavailable, match=r"'debian11'; expected one of url, docker, debian13"):
        choice.asked_for({"VERVET_TEST_STACK": "debian11"})


@pytest.mark.parametrize(
    ("environ", "asks"),
    [
        ({}, True),
        ({"VERVET_TEST_STACK": "docker"}, True),
        ({"VERVET_TEST_STACK": "debian13"}, False),
        (URL, False),
        (URL | {"VERVET_TEST_STACK": "docker"}, True),
    ],
)
def test_docker_is_asked_only_where_the_answer_matters(environ: dict[str, str], asks: bool) -> None:
    assert choice.needs_docker_answer("broker", environ) is asks


MIRROR = "http://mirror.example/debian"


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ([f"{MIRROR}/|Debian|bookworm"], MIRROR),
        (["https://apt.example/|Vendor|stable", f"{MIRROR}|Debian|bookworm-updates"], MIRROR),
        (["http://mirror.example/debian-security|Debian|bookworm-security"], None),
        (["http://security.debian.org|Debian|bookworm", f"{MIRROR}|Debian|bookworm"], MIRROR),
        (["cdrom:[Debian]/|Debian|bookworm"], None),
        (["file:/srv/debian/|Debian|bookworm"], "file:/srv/debian"),
        ([f"{MIRROR}||"], None),
        ([], None),
    ],
)
def test_the_mirror_is_debians_own_archive_as_apt_names_it(
    lines: list[str], found: str | None
) -> None:
    assert choice.mirror("\n".join(lines)) == found


def test_the_cache_folder_follows_xdg(tmp_path: Path) -> None:
    folder = trees.tree_folder("debian13", {"XDG_CACHE_HOME": str(tmp_path)})
    assert folder.parent == tmp_path / "vervet" / "trees"
    assert folder.name.startswith("trixie-")


def test_only_a_finished_tree_counts_as_ready(tmp_path: Path) -> None:
    environ = {"XDG_CACHE_HOME": str(tmp_path)}
    folder = trees.tree_folder("debian12", environ)
    folder.with_name(f"{folder.name}.building-1").mkdir(parents=True)
    assert trees.ready(environ) == frozenset()
    folder.mkdir()
    assert trees.ready(environ) == {"debian12"}


def test_containers_are_of_the_images_that_the_compose_file_names() -> None:
    assert containers.image("broker").startswith("rabbitmq:4")
    assert "pg17" in containers.image("database")


def test_a_port_is_free_and_below_the_ephemeral_ones() -> None:
    port = free_port()
    ephemeral = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0]
    assert port < int(ephemeral)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", port))


def test_a_database_is_named_in_a_url_without_touching_the_rest() -> None:
    url = with_database("postgresql://me:a%2Fb@127.0.0.1:5432/postgres?sslmode=disable", "t 1")
    assert url == "postgresql://me:a%2Fb@127.0.0.1:5432/t%201?sslmode=disable"


def test_a_commit_means_to_a_test_what_it_means_in_production() -> None:
    assert "synchronous_commit=on" in postgres_options(SERVER_SETTINGS)
