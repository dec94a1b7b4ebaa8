"""Which way the servers for tests are had: decisions without I/O.

A way is refused at once (wrong user, no engine) or tried; what is tried and fails is refused then,
and the next way is tried. All refusals together are the reason that a skipped test gives.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

Server = Literal["broker", "database"]
Kind = Literal["url", "docker", "debian13", "debian12"]

STACK_VARIABLE = "VERVET_TEST_STACK"
STACKS: tuple[Kind, ...] = ("url", "docker", "debian13", "debian12")
URL_VARIABLES: dict[Server, str] = {
    "broker": "VERVET_TEST_BROKER_URL",
    "database": "VERVET_TEST_DATABASE_URL",
}
SCHEMES: dict[Server, tuple[str, ...]] = {
    "broker": ("amqp",),
    "database": ("postgresql", "postgres"),
}
PRODUCTS: dict[Server, str] = {"broker": "RabbitMQ", "database": "PostgreSQL"}


class Unavailable(Exception):
    """A server for tests can't be had here; the message is the whole reason."""


@dataclass(frozen=True)
class Facts:
    """What was found out about this machine.

    docker_refusal: why no Docker engine can be used; None where one answers.
    distribution: ID of /etc/os-release. trees: the Debian trees that are made already.
    """

    is_root: bool
    distribution: str
    docker_refusal: str | None
    trees: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Plan:
    """The ways to try, in order, and why each of the others is not among them."""

    ways: tuple[Kind, ...]
    refusals: tuple[str, ...]


def asked_for(environ: Mapping[str, str]) -> Kind | None:
    """Return the stack that the environment asks for; None means the first that works."""
    value = environ.get(STACK_VARIABLE, "")
    if not value:
        return None
    for stack in STACKS:
        if value == stack:
            return stack
    raise Unavailable(f"{STACK_VARIABLE}: {value!r}; expected one of {', '.join(STACKS)}")


def needs_docker_answer(server: Server, environ: Mapping[str, str]) -> bool:
    """Say whether the plan depends on Docker; only then is it asked, which may take seconds."""
    asked = asked_for(environ)
    return asked == "docker" or (asked is None and not environ.get(URL_VARIABLES[server]))


def plan(server: Server, environ: Mapping[str, str], facts: Facts) -> Plan:
    """Decide the ways to try for a server.

    A stack that was asked for is the only one. Otherwise a URL is the only one when it is given:
    a server that somebody named and that doesn't answer must not be replaced in silence.
    """
    asked = asked_for(environ)
    if asked is None:
        candidates: tuple[Kind, ...] = ("url", "docker", "debian13")
        if environ.get(URL_VARIABLES[server]):
            candidates = ("url",)
    else:
        candidates = (asked,)
    refusals = {way: refusal(way, server, environ, facts) for way in candidates}
    return Plan(
        ways=tuple(way for way, reason in refusals.items() if reason is None),
        refusals=tuple(reason for reason in refusals.values() if reason is not None),
    )


def refusal(way: Kind, server: Server, environ: Mapping[str, str], facts: Facts) -> str | None:
    """Return why a way can't even be tried, or None."""
    if way == "url":
        return _url_refusal(server, environ.get(URL_VARIABLES[server], ""))
    if way == "docker":
        return facts.docker_refusal and f"Docker: {facts.docker_refusal}"
    if not facts.is_root:
        return f"{way}: servers in a Debian tree need root (chroot)"
    if way not in facts.trees and facts.distribution != "debian":
        return (
            f"{way}: a Debian tree is made on Debian only,"
            f" this is {facts.distribution or 'an unknown system'}"
        )
    return None


def _url_refusal(server: Server, url: str) -> str | None:
    variable = URL_VARIABLES[server]
    if not url:
        return f"{variable} is not set"
    if urlsplit(url).scheme not in SCHEMES[server]:
        # The URL itself isn't repeated: it may hold a password.
        return f"{variable} is not a URL that starts with {SCHEMES[server][0]}://"
    return None


def unavailable(server: Server, refusals: Iterable[str]) -> Unavailable:
    """Return the error that gives all reasons."""
    return Unavailable(f"no {PRODUCTS[server]} for tests: {'; '.join(refusals)}")


def mirror(index_targets: str) -> str | None:
    """Return Debian's mirror from `apt-get indextargets` lines of `REPO_URI ORIGIN RELEASE`.

    Third parties' repositories and the security archive, which has no base system, are skipped.
    """
    for line in index_targets.splitlines():
        uri, origin, *release = [*line.split("|"), "", ""]
        is_archive = "security" not in uri and "security" not in release[0]
        if origin == "Debian" and is_archive and urlsplit(uri).scheme in ("http", "https", "file"):
            return uri.rstrip("/")
    return None
