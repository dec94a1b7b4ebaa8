"""CPU time by mode, from /proc/stat (proc(5))."""

import os
from collections.abc import Iterator

from services.agent.collectors import Host, Options, Reading, collector, counter

SECONDS = counter("node_cpu_seconds_total", "Seconds the CPUs spent in each mode.", "cpu", "mode")
GUEST = counter(
    "node_cpu_guest_seconds_total",
    "Seconds the CPUs spent in guests (VMs) for each mode.",
    "cpu",
    "mode",
)

MODES = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
"""In the order of the file. As in node_exporter, user and nice hold the guests' time too."""

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@collector("cpu")
def cpu(host: Host, options: Options) -> Iterator[Reading]:
    for line in host.proc("stat").read_text().splitlines():
        if not line.startswith("cpu"):
            return
        name, *fields = line.split()
        if not (number := name.removeprefix("cpu")):
            continue
        ticks = [int(field) / TICKS_PER_SECOND for field in fields]
        for mode, seconds in zip(MODES, ticks, strict=False):
            yield SECONDS(seconds, number, mode)
        for mode, seconds in zip(("user", "nice"), ticks[len(MODES) :], strict=False):
            yield GUEST(seconds, number, mode)
