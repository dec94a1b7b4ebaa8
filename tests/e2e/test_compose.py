"""compose.yaml: the same code as services on RabbitMQ and TimescaleDB.

A missing Docker engine, or images that cannot be had, is a skip even where CI is set: the servers
themselves are tested natively by the other suites, and Compose adds an engine to what they need.
"""

import importlib
import json
import os
import re
import secrets
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from ruamel.yaml import YAML

from services.settings import DatabaseSettings, ServiceSettings, fields, variable_name

ROOT = Path(__file__).parents[2]
SERVICES = ("agent", "ingest", "evaluator", "notifier", "api")
PULL_TIMEOUT_S = 300
UP_TIMEOUT_S = 900
"""A first build downloads the page's and the services' packages."""
FRESH_S = 30.0
"""Six ticks of the agent."""

T = TypeVar("T")


def compose_file() -> dict[str, Any]:
    document: dict[str, Any] = YAML(typ="safe").load((ROOT / "compose.yaml").read_text())
    return document


def settings_of(service: str) -> type[ServiceSettings]:
    if service == "migrate":
        return DatabaseSettings
    module = importlib.import_module(f"services.{service}.settings")
    model: type[ServiceSettings] = getattr(module, f"{service.title()}Settings")
    return model


@pytest.mark.parametrize("service", [*SERVICES, "migrate"])
def test_every_variable_of_a_service_is_one_of_its_settings(service: str) -> None:
    variables = compose_file()["services"][service]["environment"]
    known = {variable_name(path) for path, _ in fields(settings_of(service))}
    assert {name.removesuffix("_FILE") for name in variables} - known == set()


@pytest.mark.parametrize("service", [*SERVICES, "migrate"])
def test_a_service_runs_under_its_own_name_without_any_privilege(service: str) -> None:
    described = compose_file()["services"][service]
    assert described["command"] == [service]
    assert described["read_only"] is True
    assert described["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in described["security_opt"]


def test_no_password_stands_in_the_compose_file() -> None:
    for name, service in compose_file()["services"].items():
        for variable, value in service.get("environment", {}).items():
            assert not re.search(r"://[^/]*@", str(value)), f"{name}: {variable}"
            secret = re.search(r"PASS|URL", variable)
            assert not secret or variable.endswith("_FILE"), f"{name}: {variable}"


def test_every_image_is_pinned_to_a_version() -> None:
    for image in named_images():
        assert re.search(r":\d+[.\d]*", image), image


def named_images() -> set[str]:
    """The images that must come from a registry: the compose file's and the Containerfile's."""
    text = (ROOT / "Containerfile").read_text()
    images = set(re.findall(r"^FROM (\S+:\S+)", text, flags=re.MULTILINE))
    described = (service.get("image", "") for service in compose_file()["services"].values())
    return images | {image for image in described if image and not image.startswith("${")}


def docker(*arguments: str, timeout: float = 60, **environ: str) -> str:
    """Standard output of a docker command; a failure shows both of its outputs."""
    done = subprocess.run(
        ["docker", *arguments],
        cwd=ROOT,
        env=dict(os.environ) | environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"docker {' '.join(arguments)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def succeeds(*arguments: str, timeout: float = 60) -> bool:
    try:
        docker(*arguments, timeout=timeout)
    except (AssertionError, FileNotFoundError, subprocess.TimeoutExpired):
        return False
    return True


@pytest.fixture(scope="module")
def compose_command() -> None:
    if not succeeds("compose", "version"):
        pytest.skip("there is no docker command with Compose")


@pytest.mark.docker
@pytest.mark.usefixtures("compose_command")
def test_compose_accepts_the_file() -> None:
    docker("compose", "config", "--quiet")


@dataclass(frozen=True)
class Stack:
    """The stack under a project name, a port and an image name of its own."""

    project: str
    port: int

    def compose(self, *arguments: str) -> str:
        return docker(
            *("compose", "--ansi", "never", "--project-name", self.project, *arguments),
            timeout=UP_TIMEOUT_S,
            **self.environ(),
        )

    def environ(self) -> dict[str, str]:
        return {
            "COMPOSE_PROJECT_NAME": self.project,
            "VERVET_PORT": str(self.port),
            "VERVET_IMAGE": f"{self.project}:latest",
        }

    def get(self, path: str, **parameters: str) -> str:
        url = f"http://127.0.0.1:{self.port}{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=5) as response:
            text: str = response.read().decode()
        return text

    def sampled_at(self) -> float:
        """When the newest sample of node_load1 that the api shows was read; 0 when none is."""
        answer = json.loads(self.get("/api/v1/query", query="node_load1[2m]"))
        shown = (value for one in answer["data"]["result"] for value in one["values"])
        return max((float(at) for at, _ in shown), default=0.0)

    def replicas(self) -> dict[str, int]:
        """How many containers of each service run and are healthy."""
        names: list[str] = []
        for line in self.compose("ps", "--format", "{{.Service}} {{.Health}}").splitlines():
            service, _, health = line.partition(" ")
            names += [service] if health == "healthy" else []
        return {service: names.count(service) for service in SERVICES}

    def leftovers(self) -> str:
        label = f"label=com.docker.compose.project={self.project}"
        return docker("ps", "-aq", "--filter", label) + docker("volume", "ls", "-q", "-f", label)


def eventually(probe: Callable[[], T], accept: Callable[[T], bool], *, within_s: float) -> T:
    """The probe's first accepted answer; fails with its last one when time is up."""
    deadline = time.monotonic() + within_s
    while True:
        answer = probe()
        if accept(answer):
            return answer
        assert time.monotonic() < deadline, f"still {answer!r} after {within_s} s"
        time.sleep(0.5)


def free_port() -> int:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.fixture(scope="module")
def stack(compose_command: None) -> Iterator[Stack]:
    if not succeeds("info"):
        pytest.skip("no Docker engine answers")
    for image in sorted(named_images()):
        pull = ("pull", "--quiet", image)
        if not succeeds("image", "inspect", image) and not succeeds(*pull, timeout=PULL_TIMEOUT_S):
            pytest.skip(f"the image {image} cannot be had")
    running = Stack(f"vervet-test-{secrets.token_hex(4)}", free_port())
    try:
        running.compose("up", "--build", "--wait")
        yield running
    except BaseException:
        print(running.compose("logs", "--no-color", "--tail", "30"))
        raise
    finally:
        running.compose("down", "--volumes", "--timeout", "5")
        succeeds("image", "rm", f"{running.project}:latest")
    assert running.leftovers() == ""


@pytest.mark.docker
def test_the_stack_shows_fresh_samples_of_its_machine(stack: Stack) -> None:
    eventually(stack.sampled_at, lambda at: at > time.time() - FRESH_S, within_s=60)


@pytest.mark.docker
def test_the_page_is_in_the_image(stack: Stack) -> None:
    assert "<title>" in stack.get("/")


@pytest.mark.docker
def test_no_password_shows_in_what_the_engine_tells(stack: Stack) -> None:
    read = ("exec", "-T", "timescaledb", "cat")
    passwords = [
        stack.compose(*read, f"/run/vervet/{name}-password").strip()
        for name in ("broker", "database")
    ]
    assert [len(password) for password in passwords] == [48, 48]
    containers = docker("ps", "-aq", "--filter", f"name={stack.project}").split()
    told = docker("inspect", *containers) + stack.compose("logs", "--no-color")
    assert [password for password in passwords if password in told] == []


@pytest.mark.docker
def test_the_agent_cannot_read_the_address_of_the_database(stack: Stack) -> None:
    script = "open('/run/vervet/broker-url').close(); open('/run/vervet/database-url')"
    with pytest.raises(AssertionError, match=r"PermissionError.*database-url"):
        stack.compose("exec", "-T", "agent", "python", "-c", script)


@pytest.mark.docker
def test_scaled_out_it_goes_on_showing_fresh_samples(stack: Stack) -> None:
    scale = ("--scale", "ingest=3", "--scale", "evaluator=2", "--scale", "api=2")
    stack.compose("up", "--wait", *scale)
    wanted = {"agent": 1, "ingest": 3, "evaluator": 2, "notifier": 1, "api": 2}
    assert stack.replicas() == wanted
    scaled_at = time.time()
    eventually(stack.sampled_at, lambda at: at > scaled_at, within_s=60)
    eventually(lambda: starts_of_the_api(stack), lambda starts: len(starts) == 2, within_s=30)
    stack.compose("up", "--wait")
    assert stack.replicas() == dict.fromkeys(SERVICES, 1)


def starts_of_the_api(stack: Stack) -> set[str]:
    """When the replicas started that answered twenty requests: one instant for each."""
    pages = [stack.get("/metrics") for _ in range(20)]
    found = (re.search(r"^process_start_time_seconds (\S+)", page, re.MULTILINE) for page in pages)
    return {match[1] for match in found if match}


@pytest.mark.docker
def test_new_passwords_reach_every_process(stack: Stack) -> None:
    done = subprocess.run(
        ["deploy/compose/rotate.sh"],
        cwd=ROOT,
        env=dict(os.environ) | stack.environ(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=UP_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rotated_at = time.time()
    eventually(stack.replicas, lambda count: set(count.values()) == {1}, within_s=60)
    eventually(stack.sampled_at, lambda at: at > rotated_at, within_s=60)
