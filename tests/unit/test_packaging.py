"""What is packed, what it may import, and what import-linter can't say about that."""

import ast
import importlib.metadata
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = ("schemas", "engine", "services")

# The whole of what each may import from outside the standard library, besides what is below it.
ALLOWED = {
    "schemas": {"schemas", "pydantic", "pydantic_core", "msgspec"},
    "engine": {"engine", "schemas", "numpy", "promql_parser"},
}


def modules_of(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(module: Path) -> Iterator[str]:
    """The full names of what a module imports, wherever in it."""
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: imports are absolute here"
            yield str(node.module)


def strangers_in(package: str, known: set[str]) -> set[tuple[str, str]]:
    """Each (module, top-level name) imported there that is neither known nor standard library."""
    return {
        (str(module.relative_to(ROOT)), top)
        for module in modules_of(package)
        for top in (name.partition(".")[0] for name in imported(module))
        if top not in sys.stdlib_module_names and top not in known
    }


@pytest.mark.parametrize("package", ALLOWED)
def test_schemas_and_engine_import_their_few_libraries_and_nothing_else(package: str) -> None:
    assert strangers_in(package, ALLOWED[package]) == set()


def test_engine_and_schemas_do_no_input_or_output() -> None:
    doors = {"asyncio", "http", "socket", "sqlite3", "subprocess", "threading", "urllib.request"}
    found = {
        (str(module.relative_to(ROOT)), name)
        for module in modules_of("engine") + modules_of("schemas")
        for name in imported(module)
        if name in doors or name.partition(".")[0] in doors
    }
    assert found == set()


def test_the_agent_runs_without_the_server_libraries() -> None:
    """Asked of the interpreter: imports inside functions and of third parties count too."""
    heavy = {"asyncpg", "fastapi", "numpy", "promql_parser", "starlette", "uvicorn"}
    agent = [
        ".".join(module.relative_to(ROOT).with_suffix("").parts)
        for module in modules_of("services/agent")
        if module.name != "__main__.py"
    ]
    ask = f"import sys, {', '.join(agent)}; print(*({heavy!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", ask], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.stdout.split(), done.stderr) == ([], "")


def test_no_installed_distribution_ships_our_import_names() -> None:
    owners = importlib.metadata.packages_distributions()
    for name in OURS:
        assert set(owners.get(name, ["vervet"])) == {"vervet"}, name


def test_every_library_that_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [*project["dependencies"], *project["optional-dependencies"]["server"]]
    names = {distribution_of(requirement) for requirement in declared}
    known = {
        module
        for module, owners in importlib.metadata.packages_distributions().items()
        if names & set(map(normal, owners))
    }
    # In the interfaces of pydantic, fastapi and aio-pika, which require them.
    parts_of_declared = {"pydantic_core", "starlette", "aiormq", "pamqp", "yarl"}
    for package in OURS:
        assert strangers_in(package, known | parts_of_declared | set(OURS)) == set()


def distribution_of(requirement: str) -> str:
    end = next((at for at, letter in enumerate(requirement) if letter in "<>=!~[; "), None)
    return normal(requirement[:end])


def normal(distribution: str) -> str:
    """A distribution's name as PEP 503 compares it, as far as our names need it."""
    return distribution.lower().replace("_", "-")


@pytest.mark.parametrize(
    "file", sorted((ROOT / "requirements").glob("*.txt")), ids=lambda f: f.name
)
def test_every_pinned_requirement_has_a_hash(file: Path) -> None:
    text = file.read_text().replace("\\\n", " ")
    for line in filter(None, map(str.strip, text.splitlines())):
        assert "==" in line, line
        assert "--hash=sha256:" in line, line


def build(target: str, directory: Path) -> Path:
    """Build of this tree with what is installed: no network, no isolation."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(directory)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (built,) = directory.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    with zipfile.ZipFile(build("wheel", tmp_path_factory.mktemp("wheel"))) as opened:
        yield opened


def test_the_wheel_contains_every_file_of_the_packages(wheel: zipfile.ZipFile) -> None:
    packed = set(wheel.namelist())
    for package in OURS:
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert str(path.relative_to(ROOT)) in packed


def test_the_wheel_contains_the_migrations(wheel: zipfile.ZipFile) -> None:
    assert any(name.startswith("schemas/migrations/0001") for name in wheel.namelist())


def test_wheel_and_source_distribution_contain_the_page(
    wheel: zipfile.ZipFile, tmp_path: Path
) -> None:
    page = "services/api/static/index.html"
    if not (ROOT / page).exists():
        pytest.skip("the page is not built: make web")
    assert page in wheel.namelist()
    assert any(name.startswith("services/api/static/assets/") for name in wheel.namelist())
    with tarfile.open(build("sdist", tmp_path)) as sources:
        assert page in {name.partition("/")[2] for name in sources.getnames()}


def test_the_wheel_contains_nothing_but_the_packages_and_its_description(
    wheel: zipfile.ZipFile,
) -> None:
    tops = {name.partition("/")[0].partition("-")[0] for name in wheel.namelist()}
    assert tops == {*OURS, "vervet"}
    assert not [name for name in wheel.namelist() if name.endswith(".pyc")]


def test_the_wheel_carries_the_licence_and_the_command(wheel: zipfile.ZipFile) -> None:
    version = importlib.metadata.version("vervet")
    information = f"vervet-{version}.dist-info"
    assert b"Apache License" in wheel.read(f"{information}/licenses/LICENSE")
    assert b"vervet = services.cli:main" in wheel.read(f"{information}/entry_points.txt")
