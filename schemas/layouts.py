"""A layout: the ordered list of series that a frame holds values of.

On the wire it is opaque bytes, compressed once by the agent: zlib over MessagePack
`[[name, {label: value}, type, unit], …]`. Consumers look the bytes up and decode them once.
"""

import hashlib
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from schemas.errors import Invalid

MAX_SERIES = 20_000
"""Series in one layout. A host has hundreds; a frame of this many is 160 kB a row."""

MAX_LABELS = 64
MAX_NAME_CHARS = 256
MAX_VALUE_CHARS = 2048
MAX_DECODED_BYTES = 8 * 1024**2
"""Bound on a decompressed layout, so that a small message cannot ask for much memory."""

SeriesType = Literal["gauge", "counter", "histogram", "summary", "unknown"]

_METRIC = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*\Z")
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*\Z")


class Series(msgspec.Struct, frozen=True, array_like=True):
    """One series of a layout. `labels` are without the source's own (job, instance, …)."""

    name: str
    labels: dict[str, str] = {}
    type: SeriesType = "unknown"
    unit: str = ""


_encoder = msgspec.msgpack.Encoder(order="sorted")
_decoder = msgspec.msgpack.Decoder(tuple[Series, ...])


def encode_layout(series: Sequence[Series]) -> bytes:
    """The wire form. Equal lists give equal bytes within one zlib version; compare by hash."""
    return zlib.compress(_encoder.encode(tuple(series)), 6)


def decode_layout(data: bytes) -> tuple[Series, ...]:
    """The series of a wire form. Raises Invalid; takes at most MAX_DECODED_BYTES of memory."""
    inflate = zlib.decompressobj()
    try:
        packed = inflate.decompress(data, MAX_DECODED_BYTES)
    except zlib.error as error:
        raise Invalid(f"layout: not zlib data: {error}") from error
    if inflate.unconsumed_tail:
        raise Invalid(f"layout: more than {MAX_DECODED_BYTES} bytes when decompressed")
    if not inflate.eof:
        raise Invalid("layout: truncated")
    try:
        series = _decoder.decode(packed)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise Invalid(f"layout: {error}") from error
    check_layout(series)
    return series


def check_layout(series: Sequence[Series]) -> None:
    """Raises Invalid where names, labels or sizes break the rules of the data model."""
    if not series:
        raise Invalid("layout: no series")
    if len(series) > MAX_SERIES:
        raise Invalid(f"layout: {len(series)} series; at most {MAX_SERIES}")
    seen = set()
    for position, one in enumerate(series):
        where = f"layout: series {position}"
        check_series(one, where)
        identity = (one.name, tuple(sorted(one.labels.items())))
        if identity in seen:
            raise Invalid(f"{where}: {one.name} {one.labels} stands in the layout twice")
        seen.add(identity)


def check_series(one: Series, where: str) -> None:
    """Raises Invalid unless the series has a metric name and permitted labels."""
    if not _METRIC.match(one.name) or len(one.name) > MAX_NAME_CHARS:
        raise Invalid(f"{where}: {one.name[:80]!r} is not a metric name")
    check_labels(one.labels, where)


def check_labels(labels: Mapping[str, str], where: str) -> None:
    """Raises Invalid unless every label has a permitted name and a printable value."""
    if len(labels) > MAX_LABELS:
        raise Invalid(f"{where}: {len(labels)} labels; at most {MAX_LABELS}")
    for name, value in labels.items():
        if not _LABEL.match(name) or name.startswith("__") or len(name) > MAX_NAME_CHARS:
            raise Invalid(f"{where}: {name[:80]!r} is not a label name")
        if len(value) > MAX_VALUE_CHARS:
            raise Invalid(f"{where}: label {name}: longer than {MAX_VALUE_CHARS} characters")
        if not value.isprintable() and any(ord(char) < 32 or ord(char) == 127 for char in value):
            raise Invalid(f"{where}: label {name}: control character in {value[:80]!r}")


def layout_hash(source: Mapping[str, str], series: Sequence[Series]) -> bytes:
    """Identity of a layout: 16 bytes over the source's labels and the ordered series."""
    return hashlib.blake2b(_encoder.encode([dict(source), tuple(series)]), digest_size=16).digest()


def series_hash(metric: str, labels: Mapping[str, str]) -> bytes:
    """Identity of a series: 16 bytes over its metric name and all labels, the source's included."""
    return hashlib.blake2b(_encoder.encode([metric, dict(labels)]), digest_size=16).digest()
