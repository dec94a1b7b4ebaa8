"""The running kernel."""

import os
from collections.abc import Iterator
from datetime import timedelta

from services.agent.collectors import Host, Options, Reading, collector, gauge

INFO = gauge(
    "node_uname_info",
    "Labeled system information as provided by the uname system call.",
    *("sysname", "release", "version", "machine", "nodename", "domainname"),
)


@collector("uname", interval=timedelta(minutes=1))
def uname(host: Host, options: Options) -> Iterator[Reading]:
    system = os.uname()
    domain = host.proc("sys/kernel/domainname").read_text().strip()
    yield INFO(
        1, system.sysname, system.release, system.version, system.machine, system.nodename, domain
    )
