"""Prometheus remote write 1.0, the sender's side: requests as a Prometheus makes them.

The protobuf is written by hand (prometheus/prompb: remote.proto, types.proto), so that what reads
it in the product is held to another's reading of the specification than its own.
"""

import struct
from collections.abc import Iterable, Mapping, Sequence

import cramjam
import httpx

Sample = tuple[float, int]
"""A value, and its instant in milliseconds since 1970."""

HEADERS = {
    "Content-Encoding": "snappy",
    "Content-Type": "application/x-protobuf",
    "X-Prometheus-Remote-Write-Version": "0.1.0",
}
TIMEOUT_S = 60.0
ONE_SAMPLE = struct.Struct("<Bd")


def write_request(series: Iterable[tuple[Mapping[str, str], Sequence[Sample]]]) -> bytes:
    """The body of one request, compressed.

    Labels include `__name__`, and are sent in the order of their names, as the specification asks.
    """
    return compressed(
        b"".join(
            time_series(encode_labels(labels), b"".join(encode_sample(*one) for one in samples))
            for labels, samples in series
        )
    )


def compressed(request: bytes) -> bytes:
    """A request's body: one block of snappy, without frames."""
    return bytes(cramjam.snappy.compress_raw(request))


def time_series(labels: bytes, samples: bytes) -> bytes:
    """One of WriteRequest.timeseries, of its encoded labels and samples."""
    return _field(1, labels + samples)


def encode_labels(labels: Mapping[str, str]) -> bytes:
    """TimeSeries.labels: the same bytes in every request, so that a fast sender makes them once."""
    return b"".join(
        _field(1, _field(1, name.encode()) + _field(2, value.encode()))
        for name, value in sorted(labels.items())
    )


def encode_sample(value: float, at_ms: int) -> bytes:
    """One of TimeSeries.samples; every bit of the value is kept, a stale marker's too."""
    return _field(2, ONE_SAMPLE.pack(1 << 3 | 1, value) + b"\x10" + varint(at_ms))


def varint(number: int) -> bytes:
    """An int64; a negative one takes ten bytes (protobuf's encoding of int64)."""
    number &= 0xFFFF_FFFF_FFFF_FFFF
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def post(url: str, body: bytes, headers: Mapping[str, str] = HEADERS) -> httpx.Response:
    """Send one request to an endpoint; what it answers is the caller's to judge."""
    return httpx.post(url, content=body, headers=headers, timeout=TIMEOUT_S, trust_env=False)


def _field(number: int, content: bytes) -> bytes:
    """A field of wire type 2: its length, then its bytes."""
    return bytes((number << 3 | 2,)) + varint(len(content)) + content
