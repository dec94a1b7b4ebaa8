"""Record this host: `python -m bench.record --seconds N --interval S --output FILE`.

Starts Debian's node_exporter on a free port, or asks one that runs (--url), and keeps what it shows
in the format of bench/recording.py. `--convert RAW` makes a recording of scrapes in a text file.
"""

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from bench.recording import SHIPPED, Recording, Scrape, assemble, scrapes, write
from tests.stack.choice import Unavailable
from tests.stack.process import await_condition, free_port
from tests.stack.session import Stack

START_TIMEOUT_S = 20.0
SCRAPE_TIMEOUT_S = 4.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.record", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--interval", type=float, default=5, help="seconds (default: 5)")
    parser.add_argument("--output", type=Path, default=SHIPPED)
    parser.add_argument("--url", help="a node_exporter that runs, up to /metrics")
    parser.add_argument("--convert", type=Path, metavar="RAW", help="record nothing, convert")
    options = parser.parse_args()
    if options.convert:
        recording = assemble(scrapes(options.convert))
    else:
        with contextlib.ExitStack() as resources:
            url = options.url or resources.enter_context(exporter())
            recording = assemble(recorded(url, options.seconds, options.interval))
    write(recording, options.output)
    print(summary(recording, options.output))
    return 0


@contextlib.contextmanager
def exporter() -> Iterator[str]:
    """node_exporter with its default collectors; yields the URL of its metrics."""
    stack = Stack(os.environ, lambda line: print(line, file=sys.stderr))
    address = f"127.0.0.1:{free_port()}"
    url = f"http://{address}/metrics"
    try:
        program = str(stack.peer("prometheus-node-exporter"))
        argv = [program, f"--web.listen-address={address}"]
        stack.keeper.spawn(argv, dict(os.environ), Path(os.devnull))
        if not await_condition(lambda: _shown(url) is not None, START_TIMEOUT_S):
            raise Unavailable(f"node_exporter shows nothing on {url}")
        yield url
    finally:
        stack.close()


def recorded(url: str, seconds: float, interval_s: float) -> Iterator[Scrape]:
    """Scrapes at a steady pace; one that fails leaves a gap, as it would in service."""
    began = time.monotonic()
    for tick in range(max(1, round(seconds / interval_s))):
        time.sleep(max(0.0, began + tick * interval_s - time.monotonic()))
        at_ms = time.time_ns() // 1_000_000
        if (text := _shown(url)) is not None:
            yield at_ms, text.splitlines()


def _shown(url: str) -> str | None:
    try:
        return httpx.get(url, timeout=SCRAPE_TIMEOUT_S, trust_env=False).raise_for_status().text
    except httpx.HTTPError:
        return None


def summary(recording: Recording, path: Path) -> str:
    """One line about a kept recording."""
    rows, series = recording.values.shape
    samples = rows * series - int(recording.absent().sum())
    size = path.stat().st_size
    return (
        f"{path}: {rows} scrapes of {series} series, {samples} samples, {size} bytes,"
        f" {size / samples:.2f} a sample"
    )


if __name__ == "__main__":
    sys.exit(main())
