"""Memory: every line of /proc/meminfo (proc(5)), in bytes."""

import re
from collections.abc import Iterator
from functools import cache

from services.agent.collectors import Host, Metric, Options, Reading, collector, gauge

_LINE = re.compile(r"^([^:]+):\s+(\d+)( kB)?", re.MULTILINE)


@collector("meminfo")
def meminfo(host: Host, options: Options) -> Iterator[Reading]:
    for name, number, unit in _LINE.findall(host.proc("meminfo").read_text()):
        yield _metric(name, unit)(float(number) * (1024 if unit else 1))


@cache
def _metric(name: str, unit: str) -> Metric:
    """As node_exporter names it: Active(anon) is node_memory_Active_anon_bytes."""
    field = re.sub(r"\W+", "_", name).strip("_") + ("_bytes" if unit else "")
    return gauge(f"node_memory_{field}", f"Memory information field {field}.")
