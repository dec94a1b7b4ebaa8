"""Block devices' work, from /proc/diskstats (Linux, Documentation/admin-guide/iostats.rst)."""

import re
from collections.abc import Iterator

from pydantic import Field

from services.agent.collectors import (
    Host,
    Metric,
    Options,
    Pattern,
    Reading,
    collector,
    counter,
    gauge,
)
from services.agent.collectors.udev import properties

SECTOR_BYTES = 512
"""A sector of /proc/diskstats, whatever the device's own are."""

MILLISECOND = 0.001

EXCLUDED = r"^(ram|loop|fd|(h|s|v|xv)d[a-z]|nvme\d+n\d+p)\d+$"
"""Partitions and memory disks, as node_exporter 1.5 leaves out."""


class DiskOptions(Options):
    """[collectors.diskstats]"""

    device_exclude: Pattern = Field(
        EXCLUDED, description="regular expression of devices that are left out"
    )


def _disk(name: str, text: str) -> Metric:
    return counter(f"node_disk_{name}", text, "device")


FIELDS: tuple[tuple[Metric, float], ...] = (
    (_disk("reads_completed_total", "The total number of reads completed successfully."), 1),
    (_disk("reads_merged_total", "The total number of reads merged."), 1),
    (_disk("read_bytes_total", "The total number of bytes read successfully."), SECTOR_BYTES),
    (
        _disk("read_time_seconds_total", "Seconds spent by all reads."),
        MILLISECOND,
    ),
    (_disk("writes_completed_total", "The total number of writes completed successfully."), 1),
    (_disk("writes_merged_total", "The number of writes merged."), 1),
    (_disk("written_bytes_total", "The total number of bytes written successfully."), SECTOR_BYTES),
    (_disk("write_time_seconds_total", "Seconds spent by all writes."), MILLISECOND),
    (gauge("node_disk_io_now", "The number of I/Os currently in progress.", "device"), 1),
    (_disk("io_time_seconds_total", "Total seconds spent doing I/Os."), MILLISECOND),
    (
        _disk("io_time_weighted_seconds_total", "Weighted seconds doing I/Os."),
        MILLISECOND,
    ),
    (_disk("discards_completed_total", "Discards completed successfully."), 1),
    (_disk("discards_merged_total", "The total number of discards merged."), 1),
    (_disk("discarded_sectors_total", "Sectors discarded successfully."), 1),
    (_disk("discard_time_seconds_total", "Seconds spent by all discards."), MILLISECOND),
    (_disk("flush_requests_total", "Flush requests completed successfully."), 1),
    (_disk("flush_requests_time_seconds_total", "Seconds spent by all flushes."), MILLISECOND),
)
"""In the order of the file, with what a unit of it is worth. Older kernels have fewer."""

INFO = gauge(
    "node_disk_info",
    "Info of /sys/block/<block_device>.",
    *("device", "major", "minor", "path", "wwn", "model", "serial", "revision"),
)


@collector("diskstats", options=DiskOptions)
def diskstats(host: Host, options: DiskOptions) -> Iterator[Reading]:
    for line in host.proc("diskstats").read_text().splitlines():
        major, minor, device, *numbers = line.split()
        if re.search(options.device_exclude, device):
            continue
        yield _info(host, device, major, minor)
        for (metric, worth), number in zip(FIELDS, numbers, strict=False):
            yield metric(int(number) * worth, device)


def _info(host: Host, device: str, major: str, minor: str) -> Reading:
    udev = properties(host.rootfs / "run/udev/data" / f"b{major}:{minor}")
    serial = next(
        (udev[k] for k in ("SCSI_IDENT_SERIAL", "ID_SERIAL_SHORT", "ID_SERIAL") if udev.get(k)), ""
    )
    path, wwn, model, revision = (
        udev.get(key, "") for key in ("ID_PATH", "ID_WWN", "ID_MODEL", "ID_REVISION")
    )
    return INFO(1, device, major, minor, path, wwn, model, serial, revision)
