"""Programs that judge ours, by others: out of Debian's packages, unpacked, not installed."""

import os
import platform
import secrets
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.stack.choice import Unavailable
from tests.stack.process import Say
from tests.stack.trees import cache_folder

PEERS: dict[str, tuple[str, str]] = {
    "promtool": ("prometheus", "usr/bin/promtool"),
    "prometheus": ("prometheus", "usr/bin/prometheus"),
    "victoria-metrics": ("victoria-metrics", "usr/bin/victoria-metrics"),
    "influxd": ("influxdb", "usr/bin/influxd"),
    "amtool": ("prometheus-alertmanager", "usr/bin/amtool"),
    "prometheus-node-exporter": ("prometheus-node-exporter", "usr/bin/prometheus-node-exporter"),
}
"""Of each program its package, and its place there."""

TIMEOUT_S = 600


def peer(name: str, environ: Mapping[str, str], say: Say) -> Path:
    """The program: named by VERVET_TEST_<NAME>, on the PATH, or out of its package.

    Raises Unavailable. The package is fetched once, with apt's own configuration.
    """
    variable = f"VERVET_TEST_{name.upper().replace('-', '_')}"
    if found := environ.get(variable) or shutil.which(name):
        return Path(found)
    package, inside = PEERS[name]
    folder = cache_folder(environ).parent / "peers" / f"{package}-{platform.machine()}"
    if not (folder / inside).exists():
        say(f"fetching Debian's {package}: only once")
        _unpack(package, folder)
    return folder / inside


def _unpack(package: str, folder: Path) -> None:
    building = folder.with_name(f"{folder.name}.building-{secrets.token_hex(4)}")
    try:
        building.mkdir(parents=True)
        if not _ran(["apt-get", "-q", "download", package], building):
            _run(["apt-get", "-q", "update"], building)
            _run(["apt-get", "-q", "download", package], building)
        (archive,) = building.glob("*.deb")
        _run(["dpkg", "-x", archive.name, "."], building)
        archive.unlink()
        shutil.rmtree(folder, ignore_errors=True)
        building.rename(folder)
    except OSError as error:
        raise Unavailable(f"Debian's {package} can't be had here: {error}") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _ran(command: list[str], folder: Path) -> bool:
    try:
        _run(command, folder)
    except Unavailable:
        return False
    return True


def _run(command: list[str], folder: Path) -> None:
    try:
        subprocess.run(
            command,
            cwd=folder,
            env=os.environ | {"LANG": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=True,
        )
    except (subprocess.SubprocessError, OSError) as error:
        said = str(getattr(error, "stderr", "") or error).strip()
        raise Unavailable(f"{' '.join(command)}: {said}") from error
