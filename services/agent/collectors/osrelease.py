"""The operating system's name and version, from os-release(5)."""

import re
import shlex
from collections.abc import Iterator
from datetime import timedelta

from services.agent.collectors import Host, Options, Reading, collector, gauge

LABELS = (
    *("build_id", "id", "id_like", "image_id", "image_version", "name", "pretty_name"),
    *("variant", "variant_id", "version", "version_codename", "version_id"),
)

INFO = gauge("node_os_info", "A metric with a constant '1' value, labeled by os-release.", *LABELS)
VERSION = gauge(
    "node_os_version", "The major.minor part of the OS version.", "id", "id_like", "name"
)


@collector("os", interval=timedelta(minutes=1))
def os_release(host: Host, options: Options) -> Iterator[Reading]:
    values = _read(host)
    yield INFO(1, *(values.get(label, "") for label in LABELS))
    if match := re.match(r"\d+(\.\d+)?", values.get("version_id", "")):
        yield VERSION(float(match[0]), *(values.get(k, "") for k in VERSION.labels))


def _read(host: Host) -> dict[str, str]:
    places = [host.rootfs / "etc/os-release", host.rootfs / "usr/lib/os-release"]
    path = next((place for place in places if place.exists()), places[0])
    pairs = (word.partition("=") for word in shlex.split(path.read_text(), comments=True))
    return {name.lower(): value for name, _, value in pairs}
