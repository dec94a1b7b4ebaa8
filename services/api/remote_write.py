"""Reading a remote write request: protobuf in, columns of samples out. Pure.

The specification: https://prometheus.io/docs/specs/prw/remote_write_spec/ (version 1.0). A series
is parsed and checked when its encoded labels are seen first; after that it is known by those bytes,
and a sample costs a look-up. Numbers are then taken out of the request all at once.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import cramjam
import numpy as np
from numpy.typing import NDArray

from schemas.metadata import METRIC_TYPES

SERIES_AT_ONCE = 2_000
"""TimeSeries that one call of `read` takes, while nothing else is done: 1 ms, 25 when all are new.
"""

BYTES_AT_ONCE = 256 * 1024
"""One call takes no further TimeSeries after these: with many labels or samples they are slower."""

MAX_SERIES_BYTES = 512 * 1024
"""Of one TimeSeries: 29,000 samples. Prometheus sends 2,000 in a request."""

Integers = NDArray[np.int64]
Bits = NDArray[np.uint64]


class Malformed(Exception):
    """The body is no remote write request: nothing of it can be believed."""


class TooLarge(Exception):
    """The body is larger than what is taken."""


def decompress(body: bytes, limit: int) -> bytes:
    """The request of a body in snappy's block format. Raises Malformed, TooLarge.

    What it takes is known before any memory is: a small body may claim to be large.
    """
    try:
        size = cramjam.snappy.decompress_raw_len(body)
        if size > limit:
            raise TooLarge(f"{size} bytes when decompressed; at most {limit}")
        return bytes(cramjam.snappy.decompress_raw(body))
    except cramjam.DecompressionError as error:
        raise Malformed(f"not a block of snappy: {error}") from error


@dataclass(slots=True)
class Samples:
    """Samples as columns of one length, nearly in the order in which they came.

    numbers: of the series, as `register` gave them. bits: of the float64 values.
    """

    numbers: Integers
    at_ms: Integers
    bits: Bits

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, which: slice | NDArray[np.bool_]) -> "Samples":
        return Samples(self.numbers[which], self.at_ms[which], self.bits[which])


@dataclass(slots=True)
class Unusual:
    """What stands in a request beside the usual, one sample to a series: read one by one."""

    numbers: list[int] = field(default_factory=list)
    at_ms: list[int] = field(default_factory=list)
    bits: list[int] = field(default_factory=list)
    exemplars: int = 0
    histograms: int = 0
    metadata: list[bytes] = field(default_factory=list)
    """Encoded, as `parse_metadata` reads it."""

    def taken(self) -> Samples:
        """Those of series with several, or in an unusual encoding, since they were last taken."""
        found = Samples(
            np.array(self.numbers, np.int64),
            np.array(self.at_ms, np.int64),
            np.array(self.bits, np.uint64),
        )
        self.numbers, self.at_ms, self.bits = [], [], []
        return found


Register = Callable[[bytes], int]

# The usual TimeSeries ends with its only sample: `12 10 09 <8: value> 10 <6: instant>`, or, since
# gogo/protobuf leaves a value of zero out, `12 07 10 <6: instant>`.
_TAIL, _ZERO_TAIL = 18, 9


def read(
    data: bytes, start: int, known: Mapping[bytes, int], register: Register, unusual: Unusual
) -> tuple[Samples, int]:
    """The samples of the next TimeSeries from `start` on, and where to go on.

    `known` holds the numbers of series by their encoded labels; `register` gives a new one its
    number and adds it there. What is not as usual is added to `unusual`. Raises Malformed,
    TooLarge.

    That labels are known proves where they end: they were parsed once, in full, and protobuf is
    read from left to right, so a field begins after them.
    """
    numbers: list[int] = []
    tails: list[int] = []  # where the sample begins; negative where its value is left out
    lookup, size, at = known.get, len(data), start
    until = min(size, start + BYTES_AT_ONCE)
    try:
        for _ in range(SERIES_AT_ONCE):
            if at >= until:
                break
            length, begin = data[at + 1], at + 2
            if length > 127:
                more = data[begin]
                length, begin = length & 127 | more << 7 if more < 128 else 0, begin + 1
            end = begin + length
            if data[at] == 0x0A and length > _TAIL and end <= size:
                at, tail = end, end - _ZERO_TAIL
                if data[tail] == 0x12 and (number := lookup(data[begin:tail])) is not None:
                    numbers.append(number)
                    tails.append(-tail)
                    continue
                tail = end - _TAIL
                if (number := lookup(data[begin:tail])) is not None:
                    numbers.append(number)
                    tails.append(tail)
                    continue
            else:
                kind, begin, end = _field(data, at, size)
                at = end
                if kind == _METADATA:
                    unusual.metadata.append(data[begin:end])
                if kind != _TIME_SERIES:
                    continue  # what later versions may add
            _read_series(data, begin, end, (known, register), (numbers, tails), unusual)
    except IndexError:
        raise Malformed("it ends within a field") from None
    return _gathered(data, numbers, tails, unusual), at


def _gathered(data: bytes, numbers: list[int], tails: list[int], unusual: Unusual) -> Samples:
    """The samples at these places, all at once; what is no sample there is read by itself."""
    series, places = np.array(numbers, np.int64), np.array(tails, np.int64)
    zero = places < 0
    places = np.abs(places)
    ends = places + np.where(zero, _ZERO_TAIL, _TAIL)
    # Eight bytes from anywhere on, as a number: data holds more than eight where it has a tail.
    words = np.ndarray((max(len(data) - 7, 0),), "<u8", data, strides=(1,))
    first, last = words[places], words[ends - 8]
    usual = last & _INSTANT_MASK == _INSTANT_FORM
    usual &= np.where(zero, first & 0xFFFF == 0x0712, first & 0xFFFFFF == 0x091012)
    bits = np.where(zero, 0, words[places + np.where(zero, 0, 3)])
    samples = Samples(series, _instants(last), bits)
    if usual.all():
        return samples
    for one in np.flatnonzero(~usual).tolist():
        _read_fields(data, int(places[one]), int(ends[one]), int(series[one]), unusual)
    return samples[usual]


# Of the last eight bytes: the second is the instant's tag, then it follows in groups of seven bits.
_INSTANT_MASK = np.uint64(0x8080_8080_8080_FF00)
_INSTANT_FORM = np.uint64(0x0080_8080_8080_1000)


def _instants(words: Bits) -> Integers:
    """Six groups of seven bits, the lowest first, put together: first in pairs, then the pairs."""
    pairs = words >> 16 & 0x007F_007F_007F | words >> 17 & 0x3F80_3F80_3F80
    return (pairs & 0x3FFF | pairs >> 2 & 0x0FFF_C000 | pairs >> 4 & 0x3FF_F000_0000).view(np.int64)


_LENGTH_DELIMITED, _VARINT = 2, 0
_TIME_SERIES, _LABEL, _SAMPLE = 1 << 3 | 2, 1 << 3 | 2, 2 << 3 | 2
_METADATA = 3 << 3 | 2
_EXEMPLAR, _HISTOGRAM = 3 << 3 | 2, 4 << 3 | 2
_NAME, _TEXT = 1 << 3 | 2, 2 << 3 | 2
_SAMPLE_VALUE, _SAMPLE_INSTANT = 1 << 3 | 1, 2 << 3 | 0


def _read_series(
    data: bytes,
    begin: int,
    end: int,
    series: tuple[Mapping[bytes, int], Register],
    places: tuple[list[int], list[int]],
    unusual: Unusual,
) -> None:
    """One TimeSeries, field by field: a new series, or not the usual one sample."""
    if end - begin > MAX_SERIES_BYTES:
        raise TooLarge(f"a series of {end - begin} bytes; at most {MAX_SERIES_BYTES}")
    known, register = series
    rest = begin
    while rest < end and data[rest] == _LABEL:
        length = data[rest + 1]
        rest = rest + 2 + length if length < 128 else _field(data, rest, end)[2]
    if rest > end:
        raise Malformed("it ends within a label")
    labels = data[begin:rest]
    number = known.get(labels)
    if number is None:
        number = register(labels)
    if end - rest in (_TAIL, _ZERO_TAIL):
        places[0].append(number)
        places[1].append(rest if end - rest == _TAIL else -rest)
    else:
        _read_fields(data, rest, end, number, unusual)


def _read_fields(data: bytes, begin: int, end: int, number: int, unusual: Unusual) -> None:
    """The fields of a TimeSeries after its labels."""
    for kind, inner, after in _fields(data, begin, end):
        if kind == _LABEL:
            raise Malformed("labels stand after samples")
        if kind == _SAMPLE:
            at_ms, bits = _sample(data, inner, after)
            unusual.numbers.append(number)
            unusual.at_ms.append(at_ms)
            unusual.bits.append(bits)
        unusual.exemplars += kind == _EXEMPLAR
        unusual.histograms += kind == _HISTOGRAM


def _sample(data: bytes, begin: int, end: int) -> tuple[int, int]:
    """Instant in ms and bits of the value; what is left out is zero."""
    at_ms = bits = 0
    for kind, inner, after in _fields(data, begin, end):
        if kind == _SAMPLE_VALUE:
            bits = int.from_bytes(data[inner:after], "little")
        elif kind == _SAMPLE_INSTANT:
            at_ms = _varint(data, inner, after)[0]
    return at_ms - (1 << 64) if at_ms >> 63 else at_ms, bits


def parse_labels(labels: bytes) -> list[tuple[str, str]]:
    """Names and values of encoded labels, in their order. Raises Malformed."""
    found = []
    at, size = 0, len(labels)
    try:
        while at < size:
            # The usual one: `0a <length> 0a <length> name 12 <length> value`, all of it short.
            length, begin = labels[at + 1], at + 2
            end = begin + length
            if 4 <= length < 128 and end <= size and labels[begin] == _NAME:
                middle = begin + 2 + labels[begin + 1]
                value = middle + 2
                if value <= end and labels[middle] == _TEXT and value + labels[middle + 1] == end:
                    found.append((labels[begin + 2 : middle].decode(), labels[value:end].decode()))
                    at = end
                    continue
            _, begin, at = _field(labels, at, size)
            found.append(_label(labels, begin, at))
    except UnicodeDecodeError as error:
        raise Malformed(f"a label is not UTF-8: {error}") from error
    except IndexError:
        raise Malformed("it ends within a label") from None
    return found


def _label(labels: bytes, begin: int, end: int) -> tuple[str, str]:
    """Name and value, in whatever order; what is left out is empty."""
    pair = {_NAME: b"", _TEXT: b""}
    for kind, inner, after in _fields(labels, begin, end):
        pair[kind] = labels[inner:after]
    return pair[_NAME].decode(), pair[_TEXT].decode()


_METADATA_TYPE, _METADATA_TEXTS = 1 << 3 | 0, (2 << 3 | 2, 4 << 3 | 2, 5 << 3 | 2)


def parse_metadata(data: bytes) -> tuple[str, str, str, str]:
    """Type, metric, help and unit of an encoded MetricMetadata. Raises Malformed."""
    number, texts = 0, dict.fromkeys(_METADATA_TEXTS, b"")
    for kind, inner, after in _fields(data, 0, len(data)):
        if kind == _METADATA_TYPE:
            number = _varint(data, inner, after)[0]
        elif kind in texts:
            texts[kind] = data[inner:after]
    try:
        metric, about, unit = (text.decode() for text in texts.values())
    except UnicodeDecodeError as error:
        raise Malformed(f"metadata is not UTF-8: {error}") from error
    return METRIC_TYPES[number] if number < len(METRIC_TYPES) else "unknown", metric, about, unit


def _fields(data: bytes, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Of each field its tag, and where its content begins and ends. Raises Malformed."""
    while begin < end:
        kind, inner, begin = _field(data, begin, end)
        yield kind, inner, begin


_FIXED = {1: 8, 5: 4}
"""Bytes of a field of these wire types."""


def _field(data: bytes, at: int, limit: int) -> tuple[int, int, int]:
    """Tag of the field at `at`, and where its content begins and ends. Raises Malformed."""
    kind, at = _varint(data, at, limit)
    wire = kind & 7
    if wire == _LENGTH_DELIMITED:
        length, at = _varint(data, at, limit)
        end = at + length
    elif wire == _VARINT:
        end = _varint(data, at, limit)[1]
    elif wire in _FIXED:
        end = at + _FIXED[wire]
    else:
        raise Malformed(f"wire type {wire}")
    if not kind >> 3 or end > limit:
        raise Malformed("it ends within a field")
    return kind, at, end


def _varint(data: bytes, at: int, limit: int) -> tuple[int, int]:
    number = shift = 0
    while at < limit and shift < 70:
        byte = data[at]
        number |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return number & 0xFFFF_FFFF_FFFF_FFFF, at
    raise Malformed("it ends within a number")
