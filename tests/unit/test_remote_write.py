"""Reading remote write: what was encoded by others comes out, whatever is malformed is told."""

import math
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress

import cramjam
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.api.remote_write import (
    BYTES_AT_ONCE,
    MAX_SERIES_BYTES,
    Malformed,
    TooLarge,
    Unusual,
    decompress,
    parse_labels,
    read,
)
from tests.stack.remote_write import (
    Sample,
    compressed,
    encode_labels,
    encode_sample,
    time_series,
    varint,
    write_request,
)

NOW_MS = 1_763_600_000_123
BITS = st.integers(0, 2**64 - 1)
VALUES = BITS.map(lambda bits: struct.unpack("<d", struct.pack("<Q", bits))[0]) | st.floats()
SAMPLES = st.tuples(VALUES, st.integers(-(2**63), 2**63 - 1) | st.just(NOW_MS))
LABELS = st.dictionaries(st.text(max_size=150), st.text(max_size=150), max_size=5)
SERIES = st.lists(st.tuples(LABELS, st.lists(SAMPLES, max_size=3)), max_size=12)

Series = Sequence[tuple[Mapping[str, str], Sequence[Sample]]]
Found = list[tuple[tuple[tuple[str, str], ...], int, int]]


class Reader:
    """Reads request after request, and remembers series."""

    def __init__(self) -> None:
        self.known: dict[bytes, int] = {}
        self.names: list[tuple[tuple[str, str], ...]] = []
        self.unusual = Unusual()

    def register(self, labels: bytes) -> int:
        assert labels not in self.known
        self.names.append(tuple(parse_labels(labels)))
        self.known[labels] = len(self.names) - 1
        return self.known[labels]

    def read(self, request: bytes) -> Found:
        self.unusual = Unusual()
        at, parts = 0, []
        while at < len(request):
            part, at = read(request, at, self.known, self.register, self.unusual)
            parts += [part, self.unusual.taken()]
        return [
            (self.names[number], at_ms, bits)
            for part in parts
            for number, at_ms, bits in zip(
                part.numbers.tolist(), part.at_ms.tolist(), part.bits.tolist(), strict=True
            )
        ]


def bits(value: float) -> int:
    return int(struct.unpack("<Q", struct.pack("<d", value))[0])


def expected(series: Series) -> Found:
    return [
        (tuple(sorted(labels.items())), at_ms, bits(value))
        for labels, samples in series
        for value, at_ms in samples
    ]


def plain(series: Series) -> bytes:
    return bytes(cramjam.snappy.decompress_raw(write_request(series)))


@given(SERIES)
def test_every_sample_comes_out_with_all_its_bits(series: Series) -> None:
    reader = Reader()
    for _ in range(2):  # a second time, when the series are known
        assert sorted(reader.read(plain(series))) == sorted(expected(series))


def bare(value: float, at_ms: int) -> bytes:
    """A sample as gogo/protobuf encodes it: what is zero is left out."""
    content = b"" if value == 0 else b"\x09" + struct.pack("<d", value)
    content += b"" if at_ms == 0 else b"\x10" + varint(at_ms)
    return b"\x12" + varint(len(content)) + content


@given(st.lists(st.tuples(LABELS, VALUES | st.just(0.0), st.sampled_from([0, 1, NOW_MS]))))
def test_a_value_that_is_left_out_is_zero(rows: list[tuple[Mapping[str, str], float, int]]) -> None:
    request = b"".join(
        time_series(encode_labels(labels), bare(value, at)) for labels, value, at in rows
    )
    reader = Reader()
    for _ in range(2):
        assert sorted(reader.read(request)) == sorted(
            (tuple(sorted(labels.items())), at, bits(value) if value else 0)
            for labels, value, at in rows
        )


def test_usual_samples_stay_in_their_order() -> None:
    """Series that are new are put into layouts in the order in which they came."""
    series = [({"__name__": f"m{n}"}, [(float(n % 3), NOW_MS)]) for n in range(50)]
    assert Reader().read(plain(series)) == expected(series)


def test_a_label_that_looks_like_a_sample_is_none() -> None:
    """A series without samples, whose last label value ends nearly as a usual one does."""
    known = {"a": "x" * 30}
    trap = {"a": "x" * 30, "b": (b"\x12\x10\x09" + bytes(8) + b"\x10" + bytes(6)).decode()}
    series: Series = [(known, [(1.0, NOW_MS)]), (trap, []), (trap, [(2.0, NOW_MS)]), (known, [])]
    reader = Reader()
    for _ in range(2):
        assert reader.read(plain(series)) == expected(series)


def field(number: int, content: bytes) -> bytes:
    return bytes((number << 3 | 2,)) + varint(len(content)) + content


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (field(1, b"a") + field(2, b"b"), ("a", "b")),
        (field(2, b"b") + field(1, b"a"), ("a", "b")),
        (field(1, b"abc"), ("abc", "")),
        (field(2, b"abc"), ("", "abc")),
        (b"", ("", "")),
        (field(1, b"a") + field(2, b"b" * 200), ("a", "b" * 200)),
        (field(1, b"a" * 200) + field(2, b"b"), ("a" * 200, "b")),
        (field(1, b"a") + field(2, b"b") + b"\x18\x07", ("a", "b")),
        (field(1, b"x") + field(1, b"a") + field(2, b"b"), ("a", "b")),
    ],
)
def test_a_label_is_read_however_it_is_encoded(label: bytes, expected: tuple[str, str]) -> None:
    other = field(1, field(1, b"o") + field(2, b"p"))
    assert parse_labels(field(1, label)) == [expected]
    assert parse_labels(other + field(1, label) + other) == [("o", "p"), expected, ("o", "p")]


def test_what_is_not_kept_is_counted_and_leaves_the_samples_alone() -> None:
    labels = encode_labels({"__name__": "m", "job": "a" * 40})
    sample = encode_sample(3.0, NOW_MS)
    exemplar = field(3, b"\x09" + bytes(14))  # as long as a usual sample
    request = (
        time_series(labels, sample)
        + time_series(labels, sample + exemplar)
        + time_series(labels, exemplar)
        + time_series(labels, field(4, b""))
        + field(3, b"\x08\x01")  # metadata
        + b"\x50\x07"  # a field of a later version
    )
    reader = Reader()
    for _ in range(2):
        assert len(reader.read(request)) == 2
        assert (reader.unusual.exemplars, reader.unusual.histograms) == (2, 1)


def test_a_large_request_is_read_in_parts() -> None:
    series = [({"__name__": f"m{n}"}, [(1.0, NOW_MS)]) for n in range(45_000)]
    assert Reader().read(plain(series)) == expected(series)


def test_a_series_of_many_samples_ends_a_part() -> None:
    """Reading it takes as long as many series."""
    many = ({"__name__": "m"}, [(1.0, NOW_MS)] * (BYTES_AT_ONCE // 20))
    request = plain([many] * 3)
    places, at = [], 0
    while at < len(request):
        at = read(request, at, {}, lambda _: 0, Unusual())[1]
        places.append(at)
    assert len(places) > 1
    assert Reader().read(request) == expected([many] * 3)


def test_a_series_that_is_too_large_is_refused_unread() -> None:
    huge = ({"__name__": "m"}, [(1.0, NOW_MS)] * (MAX_SERIES_BYTES // 18))
    with pytest.raises(TooLarge, match="a series of"):
        Reader().read(plain([huge]))


@given(SERIES, st.data())
def test_a_truncated_or_changed_request_is_malformed_or_read(series: Series, data: object) -> None:
    draw = data.draw  # type: ignore[attr-defined]
    request = bytearray(plain(series))
    for _ in range(draw(st.integers(0, 3))):
        if request:
            request[draw(st.integers(0, len(request) - 1))] = draw(st.integers(0, 255))
    del request[draw(st.integers(0, len(request))) :]
    with suppress(Malformed):
        Reader().read(bytes(request))


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x0a",
        b"\x0a\x05a",
        b"\x0a\x80",
        b"\x0a\xff\xff",
        b"\x0b",
        b"\x08" + b"\xff" * 11,
        b"\x00\x00",
        time_series(encode_labels({"a": "b"}), b"\x12\x03\x09\x00\x00"),
        time_series(b"\x0a\x04\x0a\x02\xff\xfe", b""),
        time_series(encode_sample(1.0, 1), encode_labels({"a": "b"})),
    ],
)
def test_what_is_no_request_is_malformed(request_bytes: bytes) -> None:
    with pytest.raises(Malformed):
        Reader().read(request_bytes)


def test_a_body_is_refused_before_it_takes_its_memory() -> None:
    bomb = compressed(bytes(2_000_000))
    assert len(bomb) < 100_000
    assert len(decompress(bomb, 2_000_000)) == 2_000_000
    with pytest.raises(TooLarge):
        decompress(bomb, 1_999_999)
    liar = varint(2**32 - 1) + bomb[3:]
    with pytest.raises(TooLarge):
        decompress(liar, 32 * 1024**2)
    for wrong in (b"", b"\xff" * 20, bomb[:-1], b"plain text, not snappy"):
        with pytest.raises((Malformed, TooLarge)):
            decompress(wrong, 32 * 1024**2)


def test_a_value_is_not_computed_with() -> None:
    payload = struct.unpack("<d", struct.pack("<Q", 0x7FF0_0000_0000_0002))[0]
    assert math.isnan(payload)
    ((_, _, found),) = Reader().read(plain([({"__name__": "m"}, [(payload, NOW_MS)])]))
    assert found == 0x7FF0_0000_0000_0002
