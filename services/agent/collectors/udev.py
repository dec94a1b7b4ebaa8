"""What udev knows about a device (udevadm(8)): not a collector, a file that one of them reads."""

from pathlib import Path


def properties(path: Path) -> dict[str, str]:
    """The properties in a file of /run/udev/data; none where there is no udev."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return {}
    pairs = (line[2:].partition("=") for line in text.splitlines() if line.startswith("E:"))
    return {name: value for name, _, value in pairs}
