"""Boot time and the kernel's counts of its work, from /proc/stat (proc(5))."""

from collections.abc import Iterator

from services.agent.collectors import Host, Options, Reading, collector, counter, gauge

METRICS = {
    "btime": gauge("node_boot_time_seconds", "Node boot time, in unixtime."),
    "ctxt": counter("node_context_switches_total", "Total number of context switches."),
    "intr": counter("node_intr_total", "Total number of interrupts serviced."),
    "processes": counter("node_forks_total", "Total number of forks."),
    "procs_blocked": gauge("node_procs_blocked", "Processes blocked waiting for I/O."),
    "procs_running": gauge("node_procs_running", "Processes in runnable state."),
}
"""By the first word of a line; the second is the value."""


@collector("stat")
def stat(host: Host, options: Options) -> Iterator[Reading]:
    for line in host.proc("stat").read_text().splitlines():
        word, _, rest = line.partition(" ")
        if word in METRICS:
            yield METRICS[word](float(rest.split(" ", 1)[0]))
