"""Samples as others take them: remote write 1.0, and InfluxDB's line protocol.

Made from the same pieces as our frames; whole columns at a time where the format allows it. That it
is what tests/stack/remote_write.py spells out sample by sample, is tested.
"""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from bench.replay import Piece
from schemas.layouts import Series
from tests.stack.remote_write import compressed, encode_labels, varint

SAMPLE = np.dtype([("head", "u1", 3), ("value", "<f8"), ("key", "u1"), ("at", "u1", 6)])
"""One of TimeSeries.samples: until the year 2109 an instant in ms takes six bytes as a varint."""

SAMPLE_BYTES = 1 + 8 + 1 + 6
HEAD = bytes((2 << 3 | 2, SAMPLE_BYTES, 1 << 3 | 1))
AT_KEY = 2 << 3


class RemoteWrite:
    """Bodies of remote write."""

    def __init__(self) -> None:
        self._labels: dict[tuple[str, bytes], list[bytes]] = {}

    def body(self, source: Mapping[str, str], pieces: Iterable[Piece]) -> bytes:
        """One request with all samples of the pieces, a time series for each of their series."""
        parts: list[bytes] = []
        for piece in pieces:
            samples = np.empty(piece.values.T.shape, SAMPLE)
            samples["head"] = np.frombuffer(HEAD, np.uint8)
            samples["value"] = piece.values.T
            samples["key"] = AT_KEY
            samples["at"] = varints(piece.at_ms)
            size = samples.shape[1] * SAMPLE.itemsize
            data = samples.tobytes()
            starts = range(0, len(data), size)
            for labels, start in zip(self._encoded(source, piece), starts, strict=True):
                parts += (b"\x0a", varint(len(labels) + size), labels, data[start : start + size])
        return compressed(b"".join(parts))

    def _encoded(self, source: Mapping[str, str], piece: Piece) -> list[bytes]:
        key = (source["instance"], piece.part.encoded)
        if key not in self._labels:
            full = full_labels(piece.part.series, source)
            self._labels[key] = [encode_labels(labels) for labels in full]
        return self._labels[key]


class Lines:
    """Bodies of InfluxDB's line protocol: a measurement per metric, its labels as tags."""

    def __init__(self) -> None:
        self._prefixes: dict[tuple[str, bytes], list[str]] = {}

    def body(self, source: Mapping[str, str], pieces: Iterable[Piece]) -> bytes:
        """One request with all samples of the pieces, a line each; it has no line for NaN."""
        return "".join(line for piece in pieces for line in self._lines(source, piece)).encode()

    def _lines(self, source: Mapping[str, str], piece: Piece) -> Iterator[str]:
        key = (source["instance"], piece.part.encoded)
        if key not in self._prefixes:
            full = full_labels(piece.part.series, source)
            self._prefixes[key] = [line_prefix(labels) for labels in full]
        for at, row in zip(piece.at_ms.tolist(), piece.values.tolist(), strict=True):
            for prefix, value in zip(self._prefixes[key], row, strict=True):
                if value - value == 0:
                    yield f"{prefix}{value!r} {at}\n"


def varints(numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Instants in milliseconds as varints of six bytes, (count, 6)."""
    shifts = np.arange(0, 42, 7)
    groups = (numbers[:, None] >> shifts) & 0x7F
    groups[:, :-1] |= 0x80
    return np.asarray(groups, np.uint8)


def full_labels(series: Iterable[Series], source: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """All labels of each series, its name and its source's included."""
    for one in series:
        yield {"__name__": one.name, **one.labels, **source}


def line_prefix(labels: Mapping[str, str]) -> str:
    """A line up to its value; InfluxDB has no empty tags."""
    tags = (
        f",{name}={_escaped(value)}"
        for name, value in sorted(labels.items())
        if value and name != "__name__"
    )
    return f"{labels['__name__']}{''.join(tags)} value="


def _escaped(text: str) -> str:
    for character in ("\\", ",", "=", " "):
        text = text.replace(character, f"\\{character}")
    return text
