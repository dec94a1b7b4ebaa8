"""`make bench`, or `python -m bench [NAME …]`: measure, show a table, keep the figures.

Needs the real servers and starts them itself, as the tests do (tests/stack).
"""

import argparse
import asyncio
import os
import platform
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import agent, disk, growth, ingest, promql, query, stalls
from bench.figures import LATEST, Failed, Figure, Options, keep, table
from services.telemetry import configure_logging
from tests.stack.choice import STACK_VARIABLE, Unavailable, asked_for, refusal
from tests.stack.process import Say
from tests.stack.session import Stack
from tests.stack.settings import DURABLE_SETTINGS

ROOT = Path(__file__).parents[1]

BENCHMARKS: dict[str, Callable[[Stack, Say, Options], Coroutine[Any, Any, list[Figure]]]] = {
    ingest.BENCH: ingest.measure,
    disk.BENCH: disk.measure,
    query.BENCH: query.measure,
    promql.BENCH: promql.measure,
    growth.BENCH: growth.measure,
    agent.BENCH: agent.measure,
    stalls.BENCH: stalls.measure,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--runs", type=int, default=3, help="of each measurement (default: 3)")
    parser.add_argument("--full", action="store_true", help="every size, which takes an hour")
    options = parser.parse_args()
    if unknown := set(options.names) - BENCHMARKS.keys():
        parser.error(
            f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}"
        )
    asked = Options(options.runs, options.full)
    configure_logging("warning", "text")
    stack = Stack(environment(), _say, DURABLE_SETTINGS)
    figures: list[Figure] = []
    failed = 0
    try:
        for name in options.names or BENCHMARKS:
            measured = _measured(name, stack, asked)
            failed += not measured
            keep(measured)
            figures += measured
    except KeyboardInterrupt:
        return 130
    finally:
        stack.close()
    print(table(figures))
    print(f"\nkept in {LATEST}")
    return min(failed, 1)


def _measured(name: str, stack: Stack, asked: Options) -> list[Figure]:
    """The figures of one benchmark; none where it failed, which takes nothing from the others."""
    began = time.monotonic()
    try:
        figures = asyncio.run(BENCHMARKS[name](stack, _say, asked))
    except (Failed, Unavailable) as error:
        _say(f"bench: {name}: {error}")
        return []
    except Exception:  # noqa: BLE001  (whatever it is, the others go on)
        _say(f"bench: {name}:\n{traceback.format_exc()}")
        return []
    lasted_s = time.monotonic() - began
    _say(f"{name}: took {lasted_s:.0f} s")
    return [*figures, _machine(name, stack, lasted_s)]


def environment() -> dict[str, str]:
    """The environment, in which a Debian tree is the stack that is asked for, where it can be.

    Docker's proxy and bridge cost every process that speaks through them, the product's too; a
    server that was given by URL shows no processes.
    """
    environ = dict(os.environ)
    facts = Stack(environ, _say).facts(ask_docker=False)
    if not asked_for(environ) and refusal("debian13", "broker", environ, facts) is None:
        environ[STACK_VARIABLE] = "debian13"
    return environ


def _machine(name: str, stack: Stack, lasted_s: float) -> Figure:
    """What the figures were found on: another machine's can't be compared with them."""
    processor = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    about = {
        "processor": processor[1] if processor else platform.machine(),
        "python": platform.python_version(),
        "servers": "; ".join(line.partition(",")[0] for line in stack.started),
        "commit": _commit(),
        "lasted_s": round(lasted_s),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return Figure(name, "machine", "cores", (os.cpu_count() or 1,), "cores", about)


def _commit() -> str:
    """What git calls this tree; empty where there is no git."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        return ""


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
