"""Recordings of a host: what node_exporter showed, scrape by scrape, kept small and exact.

A file is xz over: `vervet recording 1\\n`; a line of JSON, `{"rows", "series": [[name, labels,
type], …]}`; the instants, int64 milliseconds since 1970; the values, float64, series after series.
Instants and each series are XORed with the number before, then laid out in planes of bytes (the
first byte of every number, then the second …), little-endian. A series that a scrape did not show
is absent there (schemas/values.py).
"""

import json
import lzma
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families

from schemas.layouts import Series, SeriesType
from schemas.values import ABSENT_BITS

MAGIC = b"vervet recording 1\n"
SCRAPE = "# at "
"""Begins the text of a scrape in a raw recording; unix seconds follow."""

SHIPPED = Path(__file__).parent / "recordings" / "host-5s.xz"
"""Two cores at work on compilers, databases and tests; scraped every 5 s."""

TYPES = {"gauge", "counter", "histogram", "summary"}

Scrape = tuple[int, Iterable[str]]
"""An instant in milliseconds, and the lines of the exposition."""


@dataclass(frozen=True)
class Recording:
    """at_ms: (rows,) ascending. values: (rows, series)."""

    series: tuple[Series, ...]
    at_ms: NDArray[np.int64]
    values: NDArray[np.float64]

    def absent(self) -> NDArray[np.bool_]:
        """Which values no scrape gave, (rows, series)."""
        return np.ascontiguousarray(self.values).view(np.uint64) == np.uint64(ABSENT_BITS)


def assemble(scrapes: Iterable[Scrape]) -> Recording:
    """A recording of scrapes in order; its columns are the series in order of appearance."""
    columns: dict[str, int] = {}
    types: dict[str, str] = {}
    rows: list[dict[int, float]] = []
    instants: list[int] = []
    for at_ms, lines in scrapes:
        row: dict[int, float] = {}
        for line in lines:
            if line.startswith("# TYPE "):
                _, _, family, kind = line.split()
                types[family] = kind
            elif line and not line.startswith("#"):
                key, _, number = line.rpartition(" ")
                row[columns.setdefault(key, len(columns))] = float(number)
        instants.append(at_ms)
        rows.append(row)
    values = np.full((len(rows), len(columns)), ABSENT_BITS, np.uint64).view(np.float64)
    for index, row in enumerate(rows):
        values[index, list(row)] = list(row.values())
    series = tuple(_series(key, types) for key in columns)
    return Recording(series, np.array(instants, np.int64), values)


def scrapes(raw: Path) -> Iterator[Scrape]:
    """The scrapes of a raw recording; the last, which may be half written, is left out."""
    at_ms, lines = None, list[str]()
    with raw.open() as file:
        for line in file:
            if line.startswith(SCRAPE):
                if at_ms is not None:
                    yield at_ms, lines
                at_ms, lines = round(float(line.removeprefix(SCRAPE)) * 1000), []
            else:
                lines.append(line.rstrip("\n"))


def _series(key: str, types: dict[str, str]) -> Series:
    """The series of the text before a sample's value."""
    (family,) = text_string_to_metric_families(f"{key} 0\n")
    sample = family.samples[0]
    kinds = (types.get(sample.name.removesuffix(end)) for end in ("", "_sum", "_count", "_bucket"))
    kind = next((kind for kind in kinds if kind), "unknown")
    known = cast("SeriesType", kind if kind in TYPES else "unknown")
    # A label without a value is none (Prometheus' data model), and is stored by nobody.
    labels = {name: value for name, value in sample.labels.items() if value}
    return Series(sample.name, labels, known)


def write(recording: Recording, path: Path) -> None:
    """Keep a recording."""
    about = {
        "rows": len(recording.at_ms),
        "series": [[one.name, one.labels, one.type] for one in recording.series],
    }
    head = MAGIC + json.dumps(about, separators=(",", ":")).encode() + b"\n"
    body = _planes(recording.at_ms[np.newaxis]) + _planes(recording.values.T)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(lzma.compress(head + body, preset=9 | lzma.PRESET_EXTREME))


def read(path: Path = SHIPPED) -> Recording:
    """A recording as it was kept. Raises ValueError for another file."""
    data = lzma.decompress(path.read_bytes())
    if not data.startswith(MAGIC):
        raise ValueError(f"{path} is no recording")
    head, _, body = data.removeprefix(MAGIC).partition(b"\n")
    about = json.loads(head)
    rows, series = about["rows"], tuple(Series(*one) for one in about["series"])
    at_ms = _numbers(body[: rows * 8], 1, rows)[0]
    values = _numbers(body[rows * 8 :], len(series), rows).view(np.float64).T
    return Recording(series, at_ms, np.ascontiguousarray(values))


def _planes(columns: NDArray[np.int64] | NDArray[np.float64]) -> bytes:
    """Columns (count, rows) of 64 bits as bytes."""
    bits = np.ascontiguousarray(columns).view("<u8").copy()
    bits[:, 1:] ^= bits[:, :-1].copy()
    return np.ascontiguousarray(bits.reshape(-1).view(np.uint8).reshape(-1, 8).T).tobytes()


def _numbers(data: bytes, count: int, rows: int) -> NDArray[np.int64]:
    planes = np.frombuffer(data, np.uint8).reshape(8, -1).T
    bits = np.ascontiguousarray(planes).view("<u8").reshape(count, rows)
    return cast("NDArray[np.int64]", np.bitwise_xor.accumulate(bits, axis=1).view(np.int64))
