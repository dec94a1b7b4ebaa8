"""Network devices' traffic, from /proc/net/dev and /sys/class/net."""

import re
from collections.abc import Iterator

from pydantic import Field

from services.agent.collectors import Host, Metric, Options, Pattern, Reading, collector, counter


class NetworkOptions(Options):
    """[collectors.netdev]"""

    device_exclude: Pattern = Field(
        r"^$", description="regular expression of devices that are left out"
    )


def _network(field: str) -> Metric:
    return counter(f"node_network_{field}_total", f"Network device statistic {field}.", "device")


FIELDS = tuple(
    _network(f"{way}_{field}")
    for way, fields in (
        ("receive", "bytes packets errs drop fifo frame compressed multicast"),
        ("transmit", "bytes packets errs drop fifo colls carrier compressed"),
    )
    for field in fields.split()
)
"""In the order of the file."""

NO_HANDLER = _network("receive_nohandler")


@collector("netdev", options=NetworkOptions)
def netdev(host: Host, options: NetworkOptions) -> Iterator[Reading]:
    for line in host.init("net/dev").read_text().splitlines()[2:]:
        device, _, numbers = line.partition(":")
        device = device.strip()
        if re.search(options.device_exclude, device):
            continue
        for metric, number in zip(FIELDS, numbers.split(), strict=True):
            yield metric(float(number), device)
        try:
            path = host.sys(f"class/net/{device}/statistics/rx_nohandler")
            yield NO_HANDLER(float(path.read_text()), device)
        except OSError:  # kernels before 4.6, and devices of another network namespace
            continue
