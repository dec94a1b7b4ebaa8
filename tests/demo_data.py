"""A fleet as its agents would report it: every series of the Linux collectors, an hour of it."""

from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path

from schemas.layouts import Series
from schemas.samples import SampleMessage
from services.agent.collectors import Metric
from services.agent.collectors import agent as agent_collector
from tests.builders import sample_message

GOLDEN = Path(__file__).parent / "unit" / "test_collectors_golden.txt"
INSTANCES = ("web-1", "web-2")
MINUTES = 61
MINUTE_US = 60_000_000

LABEL_VALUES: Mapping[str, tuple[str, ...]] = {
    "cpu": ("0", "1"),
    "mode": ("idle", "iowait", "irq", "nice", "softirq", "steal", "system", "user"),
    "mountpoint": ("/",),
    "fstype": ("ext4",),
    "reason": ("full",),
}
DEVICES = {"node_disk": ("sda",), "node_network": ("eth0",), "node_filesystem": ("/dev/sda1",)}

GIB = 2.0**30
GAUGES = {
    "node_memory_MemTotal_bytes": 16 * GIB,
    "node_memory_MemAvailable_bytes": 9 * GIB,
    "node_memory_MemFree_bytes": 4 * GIB,
    "node_memory_Cached_bytes": 4 * GIB,
    "node_memory_SwapTotal_bytes": 2 * GIB,
    "node_memory_SwapFree_bytes": 2 * GIB,
    "node_filesystem_size_bytes": 100 * GIB,
    "node_filesystem_files": 1e6,
    "node_filesystem_files_free": 9e5,
    "node_filesystem_readonly": 0.0,
    "node_filesystem_device_error": 0.0,
}
RATES = {"node_cpu_seconds_total": 0.125, "node_memory": 0.0}
"""What a counter grows by in a second; others by 3."""


def series() -> Iterator[Series]:
    """Every series that an agent on Linux has, with its own."""
    for line in GOLDEN.read_text().splitlines():
        if line and not line.startswith("#"):
            name, kind, *labels = line.split(" ")
            yield from _of(name, kind, labels[0].split(",") if labels else [])
    for one in vars(agent_collector).values():
        if isinstance(one, Metric):
            yield from _of(one.name, one.type, one.labels)


def _of(name: str, kind: str, labels: object) -> Iterator[Series]:
    names = [str(label) for label in labels] if isinstance(labels, list | tuple) else []
    devices = next((found for part, found in DEVICES.items() if name.startswith(part)), ("x",))
    every = [devices if one == "device" else LABEL_VALUES.get(one, ("x",)) for one in names]
    for values in product(*every):
        yield Series(name, dict(zip(names, values, strict=True)), kind)


def value(one: Series, at_us: int, begun_us: int) -> float:
    """A plausible value: counters grow, file systems fill."""
    elapsed_s = (at_us - begun_us) / 1e6
    if one.type == "counter":
        return 1000.0 + elapsed_s * RATES.get(one.name, 3.0)
    if one.name == "node_filesystem_avail_bytes" or one.name == "node_filesystem_free_bytes":
        return 60 * GIB - elapsed_s * 1e6
    if one.name == "node_time_seconds":
        return at_us / 1e6
    if one.name == "node_boot_time_seconds":
        return begun_us / 1e6 - 86_400
    return GAUGES.get(one.name, 1.0)


def fleet(end_us: int) -> list[SampleMessage]:
    """Messages of every instance: one frame a minute over an hour up to `end_us`."""
    every = tuple(series())
    begun_us = end_us - (MINUTES - 1) * MINUTE_US
    rows = [
        [value(one, begun_us + n * MINUTE_US, begun_us) for one in every] for n in range(MINUTES)
    ]
    return [
        sample_message(*rows, instance=name, at_us=begun_us, step_us=MINUTE_US, series=every)
        for name in INSTANCES
    ]
