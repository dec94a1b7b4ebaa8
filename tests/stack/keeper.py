"""Keeps the servers of one test run, and ends them when the run ends, however it ends.

Run as a process of its own. It reads one JSON object a line from standard input, and answers one:
    {"spawn": argv, "env": {…}, "log": path}   start a process            {"pid": n}
    {"at_end": argv}                           a command to run at the end {}
When standard input closes, because the run ended or was killed, every process below this one is
killed and the commands are run. It is the reaper of orphans (PR_SET_CHILD_SUBREAPER), so that a
server's child that outlives the server is found too.
"""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

import psutil

PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
COMMAND_TIMEOUT_S = 60


def main() -> None:
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGCHLD, _reap)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    at_end: list[list[str]] = []
    try:
        for line in sys.stdin:
            print(json.dumps(_obey(json.loads(line), at_end)), flush=True)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _kill_all()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for command in at_end:
            subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                timeout=COMMAND_TIMEOUT_S,
                check=False,
            )


def _obey(request: dict[str, Any], at_end: list[list[str]]) -> dict[str, int]:
    if "at_end" in request:
        at_end.append(request["at_end"])
        return {}
    with open(request["log"], "ab") as log:
        child = subprocess.Popen(
            request["spawn"],
            env=request["env"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    return {"pid": child.pid}


def _reap(*_: object) -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass


def _kill_all() -> None:
    while below := psutil.Process().children(recursive=True):
        for process in below:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(0.02)


if __name__ == "__main__":
    main()
