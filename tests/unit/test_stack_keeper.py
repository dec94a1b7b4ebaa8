"""The keeper ends what a run started, however the run ends."""

import os
import subprocess
import sys
from pathlib import Path

import psutil

from tests.stack.process import Keeper, await_condition, await_end

# A server with a child that left its session and whose parent ended, as daemons do.
DAEMONISES = "setsid sh -c 'sleep 600 & sleep 600 & exit' & sleep 600"
RUN = f"""
import sys
from pathlib import Path
from tests.stack.process import Keeper
keeper = Keeper()
folder = Path(sys.argv[1])
keeper.at_end("rm", "-rf", str(folder / "data"))
keeper.spawn(["sh", "-c", {DAEMONISES!r}], {{"PATH": "/usr/bin:/bin"}}, folder / "log")
print(keeper.pid, flush=True)
sys.stdin.read()
"""


def processes_below(pid: int) -> list[psutil.Process]:
    return [p for p in psutil.Process(pid).children(recursive=True) if p.name() == "sleep"]


def test_a_run_that_is_killed_leaves_neither_processes_nor_data(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", RUN, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as run:
        assert run.stdout is not None
        keeper = psutil.Process(int(run.stdout.readline()))
        assert await_condition(lambda: len(processes_below(keeper.pid)) == 3, timeout_s=10)
        below = processes_below(keeper.pid)
        run.kill()
    assert await_end([keeper, *below], timeout_s=10)
    assert not (tmp_path / "data").exists()


def test_closing_the_keeper_ends_what_it_keeps(tmp_path: Path) -> None:
    keeper = Keeper()
    child = keeper.spawn(["sleep", "600"], dict(os.environ), tmp_path / "log")
    keeper.close()
    assert await_end([child], timeout_s=10)
    keeper.close()


def test_a_frozen_process_is_ended_too(tmp_path: Path) -> None:
    keeper = Keeper()
    child = keeper.spawn(["sleep", "600"], dict(os.environ), tmp_path / "log")
    child.suspend()
    keeper.close()
    assert await_end([child], timeout_s=10)
