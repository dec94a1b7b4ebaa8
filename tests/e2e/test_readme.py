"""Every command of the README is run by a test; this file knows which one runs it."""

import asyncio
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from services.cli import main
from tests.processes import eventually, free_port, vervet

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()

RUN, CURL = "make run", ("curl -sG 127.0.0.1:8420/api/v1/query --data-urlencode 'query=node_load1'")
PROCESSES = ("migrate", "ingest", "evaluator", "notifier", "api", "agent")
CHECK = "vervet check agent deploy/agent.toml"
TEST = "make test"
COMPOSE = (
    "docker compose up --build --wait",
    "docker compose up --wait --scale ingest=3 --scale evaluator=2 --scale api=2",
)


def readme_commands() -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line]


def test_each_command_is_one_that_a_test_runs() -> None:
    known = {RUN, CURL, CHECK, TEST, *COMPOSE, *(f"vervet {name}" for name in PROCESSES)}
    assert set(readme_commands()) == known


def test_the_test_command_is_what_ci_calls() -> None:
    assert re.search(rf"^{TEST}$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)


def test_the_compose_commands_are_those_of_the_compose_test() -> None:
    text = (ROOT / "tests" / "e2e" / "test_compose.py").read_text()
    for command in COMPOSE:
        for word in shlex.split(command)[2:]:
            assert f'"{word}"' in text


def anchors(page: Path) -> set[str]:
    """What links can name of a page: its headings, as hosts of repositories write them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


@pytest.mark.parametrize(
    "page",
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^) ]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        leads_to = page.parent / path if path else page
        assert leads_to.exists(), target
        assert not anchor or anchor in anchors(leads_to), target


@pytest.fixture
def home() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="vervet-", dir="/var/tmp"))
    made.chmod(0o755)
    yield made / "state"
    shutil.rmtree(made)


async def test_make_run_answers_the_query(home: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    environ = {**os.environ, "VERVET_HOME": str(home), "VERVET_LISTEN": address}
    log = home.parent / "log"
    with log.open("wb") as output:
        make = await asyncio.create_subprocess_exec(
            *shlex.split(RUN),
            cwd=ROOT,
            env=environ,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        curl = shlex.split(CURL.replace("127.0.0.1:8420", address))
        await eventually(lambda: '"value":[' in _output(curl), log.read_text, within_s=120)
        assert f"http://{address}" in log.read_text()
    finally:
        os.killpg(make.pid, signal.SIGINT)
        await make.wait()


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout


async def test_the_processes_on_real_servers_answer_the_query(
    broker_url: str, database_url: str, tmp_path: Path
) -> None:
    servers = {"broker_url": broker_url, "database_url": database_url}
    log = tmp_path / "log"
    async with AsyncExitStack() as stack:
        running = {}
        for name in PROCESSES:
            environ = servers | (
                {"spool_directory": str(tmp_path / "spool")} if name == "agent" else {}
            )
            if name == "agent":
                del environ["database_url"]
            running[name] = await stack.enter_async_context(vervet(name, log=log, **environ))
        assert await running.pop("migrate").ended() == 0
        for process in running.values():
            await process.until_ready()
        path = "/api/v1/query?query=node_load1"
        await eventually(lambda: '"value":[' in running["api"].get(path)[1], running["api"].text)


def test_the_example_of_an_agents_file_is_fine(capsys: pytest.CaptureFixture[str]) -> None:
    _, *arguments = shlex.split(CHECK.replace("deploy/", f"{ROOT}/deploy/"))
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0, capsys.readouterr().err
