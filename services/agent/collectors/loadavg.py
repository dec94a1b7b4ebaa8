"""Load averages, from /proc/loadavg."""

from collections.abc import Iterator

from services.agent.collectors import Host, Options, Reading, collector, gauge

LOADS = (
    gauge("node_load1", "1m load average."),
    gauge("node_load5", "5m load average."),
    gauge("node_load15", "15m load average."),
)


@collector("loadavg")
def loadavg(host: Host, options: Options) -> Iterator[Reading]:
    for metric, field in zip(LOADS, host.proc("loadavg").read_text().split(), strict=False):
        yield metric(float(field))
