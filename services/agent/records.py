"""The spool's record on disk: a header, a payload, and one CRC over both. Pure; no file is touched.

A segment is records one after another. A reader needs no index: where a record is damaged it looks
for the next one that is whole, so a flipped bit costs one record and not what follows it.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

MAGIC = b"VRV1"
"""Begins every record; what a reader looks for after a damaged one."""

_FIELDS = struct.Struct("<4sIQqI")
_CRC = struct.Struct("<I")
HEADER_BYTES = _FIELDS.size + _CRC.size


@dataclass(frozen=True, slots=True)
class Record:
    """One message in the spool.

    at_us: when it was made, microseconds since 1970 UTC. samples: how many it carries.
    """

    seq: int
    at_us: int
    samples: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes that belong to no whole record: `size` of them."""

    size: int


def pack(record: Record) -> bytes:
    """The bytes of a record."""
    fields = _FIELDS.pack(MAGIC, len(record.payload), record.seq, record.at_us, record.samples)
    return fields + _CRC.pack(_crc(fields, record.payload)) + record.payload


def scan(data: bytes) -> Iterator[tuple[Record | Damage, int]]:
    """Everything in `data` in order, each with the offset at which it ends."""
    start = 0
    while start < len(data):
        record, end = _unpack(data, start)
        if record is not None:
            yield record, end
            start = end
            continue
        end = _next_whole(data, start + 1)
        yield Damage(end - start), end
        start = end


def _unpack(data: bytes, start: int) -> tuple[Record | None, int]:
    body = start + HEADER_BYTES
    if body > len(data):
        return None, start
    magic, length, seq, at_us, samples = _FIELDS.unpack_from(data, start)
    end = body + length
    if magic != MAGIC or end > len(data):
        return None, start
    payload = data[body:end]
    (crc,) = _CRC.unpack_from(data, body - _CRC.size)
    if crc != _crc(data[start : body - _CRC.size], payload):
        return None, start
    return Record(seq, at_us, samples, payload), end


def _next_whole(data: bytes, start: int) -> int:
    while (start := data.find(MAGIC, start)) >= 0:
        if _unpack(data, start)[0] is not None:
            return start
        start += 1
    return len(data)


def _crc(fields: bytes, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(fields))
