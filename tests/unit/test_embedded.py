"""Decisions of the embedded PostgreSQL that need no server."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from services.cli import main
from services.embedded import EmbeddedError, state_directory
from services.embedded_files import (
    SOCKET_PATH_BYTES,
    Account,
    choose_version,
    kept_password,
    lock,
    private_directory,
    socket_directory,
)
from services.settings import DatabaseSettings

MYSELF = Account("me", os.getuid(), os.getgid())


@pytest.mark.parametrize(
    ("environ", "uid", "expected"),
    [
        ({"VERVET_HOME": "/srv/v", "XDG_STATE_HOME": "/x", "HOME": "/h"}, 0, "/srv/v"),
        ({"VERVET_HOME": "/srv/v", "HOME": "/h"}, 1000, "/srv/v"),
        ({"HOME": "/root", "XDG_STATE_HOME": "/root/x"}, 0, "/var/lib/vervet"),
        ({"HOME": "/h", "XDG_STATE_HOME": "/x"}, 1000, "/x/vervet"),
        ({"HOME": "/h", "XDG_STATE_HOME": "relative"}, 1000, "/h/.local/state/vervet"),
        ({"HOME": "/h", "VERVET_HOME": "", "XDG_STATE_HOME": ""}, 1000, "/h/.local/state/vervet"),
    ],
)
def test_the_state_lies_where_the_environment_says(
    environ: dict[str, str], uid: int, expected: str
) -> None:
    assert state_directory(environ, uid) == Path(expected)


def test_without_any_home_the_error_says_what_to_set() -> None:
    with pytest.raises(EmbeddedError, match="Set VERVET_HOME"):
        state_directory({}, 1000)


def test_new_data_get_the_newest_postgresql(tmp_path: Path) -> None:
    shipped = {9: Path("/nine"), 18: Path("/eighteen")}
    assert choose_version(tmp_path, shipped) == Path("/eighteen")


def test_existing_data_keep_the_version_that_wrote_them(tmp_path: Path) -> None:
    (tmp_path / "PG_VERSION").write_text("16\n")
    assert choose_version(tmp_path, {16: Path("/a"), 18: Path("/b")}) == Path("/a")


def test_data_of_a_version_that_is_not_shipped_are_refused(tmp_path: Path) -> None:
    (tmp_path / "PG_VERSION").write_text("13\n")
    with pytest.raises(EmbeddedError, match=r"written by PostgreSQL 13, .* only 16 and 18"):
        choose_version(tmp_path, {18: Path("/b"), 16: Path("/a")})


def test_a_second_holder_of_a_directory_is_told_the_first_ones_pid(tmp_path: Path) -> None:
    second = pytest.raises(EmbeddedError, match=f"in use by process {os.getpid()}")
    with lock(tmp_path), second, lock(tmp_path):
        pass
    with lock(tmp_path):
        pass


def test_the_socket_lies_in_the_directory_itself_where_its_path_fits(tmp_path: Path) -> None:
    assert socket_directory(tmp_path, MYSELF, 5432) == tmp_path / "run"


def test_a_long_path_gets_a_short_socket_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = tmp_path / "r"
    runtime.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    deep = tmp_path / ("d" * SOCKET_PATH_BYTES)
    deep.mkdir()

    chosen = socket_directory(deep, MYSELF, 5432)

    assert len(bytes(chosen / ".s.PGSQL.5432")) <= SOCKET_PATH_BYTES
    assert chosen.stat().st_mode & 0o777 == 0o700
    assert chosen == socket_directory(deep, MYSELF, 5432), "a second start finds the same"
    chosen.rmdir()


def test_a_socket_directory_that_others_may_enter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o755)
    with pytest.raises(EmbeddedError, match="with mode 0700"):
        private_directory(tmp_path / "run", MYSELF)


def test_a_link_in_place_of_a_socket_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "run").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(EmbeddedError, match="with mode 0700"):
        private_directory(tmp_path / "run", MYSELF)


def test_the_password_is_kept_and_private(tmp_path: Path) -> None:
    first = kept_password(tmp_path / "password")
    assert len(first) >= 32
    assert (tmp_path / "password").stat().st_mode & 0o777 == 0o600
    assert kept_password(tmp_path / "password") == first


def test_vervet_up_says_why_it_has_no_database_and_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def serve_all(_: DatabaseSettings) -> None:
        raise EmbeddedError("There is no room.", "Make some.")

    everything = SimpleNamespace(UpSettings=DatabaseSettings, serve_all=serve_all)
    monkeypatch.setitem(sys.modules, "services.allinone", everything)
    monkeypatch.setattr("services.cli.configure_logging", lambda *_: None)  # it is for good
    with pytest.raises(SystemExit) as ended:
        main(["up"])
    assert ended.value.code == 69
    assert capsys.readouterr().err == "vervet up: There is no room. Make some.\n"
