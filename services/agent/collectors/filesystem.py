"""Mounted file systems' size and use, from the first process' mounts and statvfs(3)."""

import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog
from pydantic import Field

from services.agent.collectors import Host, Metric, Options, Pattern, Reading, collector, gauge

log = structlog.get_logger("vervet.agent")

POINTS_EXCLUDED = (
    r"^/(dev|proc|run/credentials/.+|sys|var/lib/docker/.+|var/lib/containers/storage/.+)($|/)"
)
TYPES_EXCLUDED = (
    r"^(autofs|binfmt_misc|bpf|cgroup2?|configfs|debugfs|devpts|devtmpfs|fusectl|hugetlbfs"
    r"|iso9660|mqueue|nsfs|overlay|proc|procfs|pstore|rpc_pipefs|securityfs|selinuxfs|squashfs"
    r"|erofs|sysfs|tracefs)$"
)
"""Both as node_exporter's own defaults; Debian's package leaves out /run, /mnt and /media too."""

LOCAL = re.compile(r"^(ext[234]|xfs|btrfs|tmpfs|vfat|zfs|f2fs|bcachefs|ntfs3?|exfat|ramfs)$")
"""Types whose statvfs answers at once. Others may wait for a server that is away."""

PATIENCE_S = 1.0
"""How long a file system that is not local may take."""


class FilesystemOptions(Options):
    """[collectors.filesystem]"""

    mount_points_exclude: Pattern = Field(
        POINTS_EXCLUDED,
        description="regular expression of mount points that are left out",
    )
    fs_types_exclude: Pattern = Field(
        TYPES_EXCLUDED,
        description="regular expression of file system types that are left out",
    )


def _filesystem(name: str, text: str) -> Metric:
    return gauge(f"node_filesystem_{name}", text, "device", "mountpoint", "fstype")


SIZE = _filesystem("size_bytes", "Filesystem size in bytes.")
FREE = _filesystem("free_bytes", "Filesystem free space in bytes.")
AVAIL = _filesystem("avail_bytes", "Filesystem space available to non-root users in bytes.")
FILES = _filesystem("files", "Filesystem total file nodes.")
FILES_FREE = _filesystem("files_free", "Filesystem total free file nodes.")
READONLY = _filesystem("readonly", "Filesystem read-only status.")
ERROR = _filesystem("device_error", "Whether an error occurred while getting its statistics.")


@dataclass(frozen=True)
class Mount:
    """A line of a mounts file (fstab(5)); texts as the kernel gives them, unescaped."""

    device: str
    point: str
    type: str
    readonly: bool
    """By its options: to a process in a container or under systemd's protection, statvfs says
    read-only of everything."""

    @property
    def labels(self) -> tuple[str, str, str]:
        return self.device, self.point, self.type


def mounts(host: Host) -> list[Mount]:
    """The host's mounts, each once, with mount points as the host names them."""
    prefix = str(host.rootfs).rstrip("/")
    found: dict[tuple[str, str, str], Mount] = {}
    text = host.init("mounts").read_text(errors="surrogateescape")
    for line in text.splitlines():
        device, point, kind, options, *_ = line.split(" ")
        point = _unescape(point)
        if prefix and (point == prefix or point.startswith(prefix + "/")):
            point = point[len(prefix) :] or "/"
        mount = Mount(_unescape(device), point, kind, "ro" in options.split(","))
        found[mount.labels] = mount  # the last one lies on top
    return list(found.values())


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


@collector("filesystem", options=FilesystemOptions)
def filesystem(host: Host, options: FilesystemOptions) -> Iterator[Reading]:
    for mount in mounts(host):
        if re.search(options.mount_points_exclude, mount.point):
            continue
        if re.search(options.fs_types_exclude, mount.type):
            continue
        path = host.rootfs / mount.point.lstrip("/")
        status = _status(path, patient=not LOCAL.search(mount.type))
        yield ERROR(float(status is None), *mount.labels)
        if status is None:
            continue
        yield SIZE(status.f_blocks * status.f_frsize, *mount.labels)
        yield FREE(status.f_bfree * status.f_frsize, *mount.labels)
        yield AVAIL(status.f_bavail * status.f_frsize, *mount.labels)
        yield FILES(status.f_files, *mount.labels)
        yield FILES_FREE(status.f_ffree, *mount.labels)
        yield READONLY(float(mount.readonly), *mount.labels)


_asked: dict[Path, threading.Thread] = {}
"""Threads that still wait for an answer, one per mount point: it is not asked again meanwhile."""


def _status(path: Path, *, patient: bool) -> os.statvfs_result | None:
    """The file system's status; None on an error, or when it does not answer in time."""
    if not patient:
        return _ask(path)
    answer: list[os.statvfs_result | None] = []
    if (thread := _asked.get(path)) is None or not thread.is_alive():
        thread = threading.Thread(target=lambda: answer.append(_ask(path)), daemon=True)
        thread.start()
        _asked[path] = thread
        thread.join(PATIENCE_S)
    return answer[0] if answer else None


def _ask(path: Path) -> os.statvfs_result | None:
    try:
        return os.statvfs(path)
    except OSError as error:
        log.debug("no status of a file system", path=str(path), error=str(error))
        return None
