"""What the kernel counted for a process and all below it: processor time and memory."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import psutil

Roots = Mapping[str, Sequence[int]]
"""By name, the processes whose trees are measured together."""

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
IDLE_LOOK_S = 1.0
IDLE_CORES = 0.03
"""A server that has nothing to do uses less."""

LOOK_S = 0.5
"""How often memory is looked at; a shorter peak may be missed."""


def tree(root: int) -> Iterator[int]:
    """The process and all below it that live."""
    yield root
    for process in psutil.Process(root).children(recursive=True):
        yield process.pid


def cpu_s(root: int) -> float:
    """Processor seconds used so far by a tree, by those of it that have ended too.

    Never falls: what a child used goes over to its parent when it is waited for (proc(5), stat:
    utime, stime, cutime, cstime). The sums are exact to a tick of 10 ms for each process.
    """
    ticks = 0
    for pid in tree(root):
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        # The name in parentheses, the second field, may hold spaces.
        ticks += sum(int(number) for number in stat.rpartition(")")[2].split()[11:15])
    return ticks / TICKS_PER_S


def memory_mib(root: int) -> float:
    """Memory of a tree; a page that several share is counted once (proc(5), smaps: Pss)."""
    kib = 0
    for pid in tree(root):
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        kib += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    return kib / 1024


def cpu_of_all_s(roots: Roots) -> dict[str, float]:
    """cpu_s of several trees, by name."""
    return {name: sum(map(cpu_s, pids)) for name, pids in roots.items()}


async def await_idle(root: int, timeout_s: float) -> None:
    """Return when a tree rests, or when time has run out: what it does later is not waited for."""
    deadline = time.monotonic() + timeout_s
    before = cpu_s(root)
    while time.monotonic() < deadline:
        await asyncio.sleep(IDLE_LOOK_S)
        now = cpu_s(root)
        if now - before <= IDLE_CORES * IDLE_LOOK_S:
            return
        before = now


@asynccontextmanager
async def peaks_mib(roots: Roots) -> AsyncIterator[dict[str, float]]:
    """Yields what becomes the peak memory of each tree while the block runs."""
    peaks = dict.fromkeys(roots, 0.0)

    async def look() -> None:
        while True:
            for name, pids in roots.items():
                peaks[name] = max(peaks[name], sum(map(memory_mib, pids)))
            await asyncio.sleep(LOOK_S)

    task = asyncio.create_task(look(), name="look at memory")
    try:
        yield peaks
    finally:
        task.cancel()
        await asyncio.wait((task,))
    task.cancelled() or task.result()
