"""The host's clock."""

import time
from collections.abc import Iterator

from services.agent.collectors import Host, Options, Reading, collector, gauge

NOW = gauge("node_time_seconds", "System time in seconds since epoch (1970).")


@collector("time", platforms=("linux", "darwin", "win32"))
def clock(host: Host, options: Options) -> Iterator[Reading]:
    yield NOW(time.time())
