"""The sample message: golden bytes, round trips, and hostile input."""

import contextlib
import json
import math
import tracemalloc
import zlib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import Invalid
from schemas.layouts import (
    MAX_DECODED_BYTES,
    Series,
    decode_layout,
    encode_layout,
    layout_hash,
    series_hash,
)
from schemas.samples import (
    SAMPLES_JSON,
    SAMPLES_MSGPACK,
    Frame,
    SampleMessage,
    decode,
    encode,
    encode_json,
    frame,
    from_little,
)
from schemas.topology import MAX_MESSAGE_BYTES
from schemas.values import ABSENT, ABSENT_BITS, STALE, STALE_BITS, bits

GOLDEN = Path(__file__).parent / "golden"

SERIES = (
    Series("node_load1", {}, "gauge"),
    Series("node_cpu_seconds_total", {"cpu": "0", "mode": "idle"}, "counter", "seconds"),
)
LAYOUT = encode_layout(SERIES)


def message(**changes: object) -> SampleMessage:
    given = {
        "source": {"job": "node", "instance": "web-1"},
        "epoch": "0123456789abcdef",
        "seq": 7,
        "frames": (frame("cpu", LAYOUT, [1_700_000_000_000_000], [[0.5, 1234.25]]),),
    }
    return SampleMessage(**{**given, **changes})  # type: ignore[arg-type]


def test_the_messagepack_form_is_the_golden_one() -> None:
    golden = (GOLDEN / "samples_v1.msgpack").read_bytes()
    decoded = decode(golden, SAMPLES_MSGPACK)
    assert decode_layout(decoded.frames[0].layout) == SERIES
    assert list(from_little("q", decoded.frames[0].at)) == [1_700_000_000_000_000]
    assert list(from_little("d", decoded.frames[0].values)) == [0.5, 1234.25]
    assert decoded.message_id == "web-1/0123456789abcdef/7"
    fields = msgspec.msgpack.decode(encode(message()))
    assert fields.keys() == msgspec.msgpack.decode(golden).keys()


def test_the_json_form_is_the_golden_one() -> None:
    golden = (GOLDEN / "samples_v1.json").read_bytes()
    assert json.loads(encode_json(message(), {LAYOUT: SERIES})) == json.loads(golden)
    assert decode(golden, SAMPLES_JSON).frames[0].values == message().frames[0].values


def test_hashes_stay_what_they_are_in_databases() -> None:
    assert layout_hash({"job": "node", "instance": "web-1"}, SERIES).hex() == (
        "fddbe52d040758b7995984fd1294dc9b"
    )
    assert series_hash("node_load1", {"job": "node", "instance": "web-1"}).hex() == (
        "1f4fe5b9029dbfe84a29311840a00dd2"
    )


def test_unknown_fields_are_ignored() -> None:
    fields = msgspec.msgpack.decode(encode(message()))
    fields["later"] = {"addition": True}
    assert decode(msgspec.msgpack.encode(fields), SAMPLES_MSGPACK) == message()


names = st.from_regex(r"[a-zA-Z_:][a-zA-Z0-9_:]{0,20}", fullmatch=True)
label_names = st.from_regex(r"[a-zA-Z][a-zA-Z0-9_]{0,20}", fullmatch=True)
texts = st.text(st.characters(blacklist_categories=("Cs", "Cc")), max_size=40)
series = st.builds(
    Series,
    names,
    st.dictionaries(label_names, texts, max_size=4),
    st.sampled_from(["gauge", "counter", "histogram", "summary", "unknown"]),
    st.sampled_from(["", "seconds", "bytes"]),
)
layouts = st.lists(
    series, min_size=1, max_size=8, unique_by=lambda s: (s.name, tuple(sorted(s.labels.items())))
)
numbers = st.one_of(st.floats(), st.sampled_from([ABSENT, STALE, -0.0, math.inf]))


@st.composite
def messages(draw: st.DrawFn) -> tuple[SampleMessage, dict[bytes, tuple[Series, ...]]]:
    known, frames = {}, []
    for _ in range(draw(st.integers(1, 3))):
        columns = tuple(draw(layouts))
        layout = encode_layout(columns)
        known[layout] = columns
        at = draw(st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=4))
        row = st.lists(numbers, min_size=len(columns), max_size=len(columns))
        frames.append(frame("c", layout, at, [draw(row) for _ in at]))
    source = {"job": "j", "instance": draw(texts.filter(bool)), **draw(st.just({"zone": "a"}))}
    return SampleMessage(source, "e1", draw(st.integers(0, 2**63 - 1)), tuple(frames)), known


@given(messages())
def test_messagepack_round_trips_every_bit(made: tuple[SampleMessage, object]) -> None:
    assert decode(encode(made[0]), SAMPLES_MSGPACK) == made[0]


@given(messages())
def test_the_json_twin_says_the_same(
    made: tuple[SampleMessage, dict[bytes, tuple[Series, ...]]],
) -> None:
    sent, known = made
    got = decode(encode_json(sent, known), SAMPLES_JSON)
    assert (got.source, got.epoch, got.seq) == (sent.source, sent.epoch, sent.seq)
    for one, other in zip(got.frames, sent.frames, strict=True):
        assert decode_layout(one.layout) == decode_layout(other.layout)
        assert one.at == other.at
        pairs = zip(from_little("d", one.values), from_little("d", other.values), strict=True)
        assert all(bits(a) == bits(b) or _plain_nan(a, b) for a, b in pairs)


def _plain_nan(a: float, b: float) -> bool:
    """JSON keeps the two meanings of NaN apart from ordinary NaN, whose payload means nothing."""
    special = {ABSENT_BITS, STALE_BITS}
    return a != a and b != b and not special & {bits(a), bits(b)}


@given(layouts)
def test_layouts_round_trip(columns: list[Series]) -> None:
    assert decode_layout(encode_layout(columns)) == tuple(columns)


def _msgpack(**changes: object) -> bytes:
    return msgspec.msgpack.encode({**msgspec.msgpack.decode(encode(message())), **changes})


def _frame(**changes: object) -> bytes:
    one = msgspec.to_builtins(message().frames[0], builtin_types=(bytes,))
    return _msgpack(frames=[{**one, **changes}])


HOSTILE = {
    "empty": (b"", SAMPLES_MSGPACK, "truncated"),
    "truncated": (encode(message())[:-3], SAMPLES_MSGPACK, "truncated"),
    "trailing": (encode(message()) + b"x", SAMPLES_MSGPACK, "trailing"),
    "not a map": (msgspec.msgpack.encode([1, 2]), SAMPLES_MSGPACK, "Expected `object`"),
    "wrong type": (_msgpack(seq="seven"), SAMPLES_MSGPACK, "seq"),
    "negative seq": (_msgpack(seq=-1), SAMPLES_MSGPACK, "seq"),
    "huge seq": (_msgpack(seq=2**63), SAMPLES_MSGPACK, "seq"),
    "epoch": (_msgpack(epoch="a/b"), SAMPLES_MSGPACK, "epoch"),
    "no instance": (_msgpack(source={"job": "j"}), SAMPLES_MSGPACK, "instance is missing"),
    "control character": (
        _msgpack(source={"job": "j", "instance": "a\nb"}),
        SAMPLES_MSGPACK,
        "control character",
    ),
    "reserved label": (
        _msgpack(source={"job": "j", "instance": "i", "__x": "1"}),
        SAMPLES_MSGPACK,
        "label name",
    ),
    "later version": (_msgpack(v=2), SAMPLES_MSGPACK, "v: 2"),
    "no frames": (_msgpack(frames=[]), SAMPLES_MSGPACK, "frames: 0"),
    "odd instants": (_frame(at=b"12345"), SAMPLES_MSGPACK, "instants"),
    "no values": (_frame(values=b""), SAMPLES_MSGPACK, "values"),
    "odd values": (_frame(values=b"x" * 9), SAMPLES_MSGPACK, "values"),
    "nested": (b"\x91" * 10_000, SAMPLES_MSGPACK, "body"),
    "nested json": (b"[" * 10_000, SAMPLES_JSON, "body"),
    "not utf-8": (b'{"source": "\xff"}', SAMPLES_JSON, "body"),
    "content type": (encode(message()), "text/plain", "content type"),
    "oversized": (b"x" * (MAX_MESSAGE_BYTES + 1), SAMPLES_MSGPACK, "at most"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_messages_raise_one_error_with_a_reason(name: str) -> None:
    body, content_type, reason = HOSTILE[name]
    with pytest.raises(Invalid, match=reason):
        decode(body, content_type)


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_else(body: bytes) -> None:
    for content_type in (SAMPLES_MSGPACK, SAMPLES_JSON):
        with contextlib.suppress(Invalid):
            decode(body, content_type)
    with contextlib.suppress(Invalid):
        decode_layout(body)


@pytest.mark.parametrize(
    ("series", "reason"),
    [
        ([], "no series"),
        ([Series("0bad")], "metric name"),
        ([Series("m", {"0": "x"})], "label name"),
        ([Series("m", {"__name__": "x"})], "label name"),
        ([Series("m", {"a": "\x00"})], "control character"),
        ([Series("m", {"a": "x" * 3000})], "longer than"),
        ([Series("m", {"a": "1"}), Series("m", {"a": "1"})], "twice"),
    ],
)
def test_layouts_keep_the_data_model(series: list[Series], reason: str) -> None:
    with pytest.raises(Invalid, match=reason):
        decode_layout(encode_layout(series))


def test_a_decompression_bomb_is_refused_in_bounded_memory() -> None:
    bomb = zlib.compress(bytes(MAX_DECODED_BYTES * 20), 9)
    tracemalloc.start()
    with pytest.raises(Invalid, match="when decompressed"):
        decode_layout(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * MAX_DECODED_BYTES


def test_a_frame_is_row_major_and_little_endian() -> None:
    made = frame("c", b"layout", [1, 2], [[1.0, 2.0], [3.0, 4.0]])
    assert made == Frame("c", b"layout", bytes([1, *[0] * 7, 2, *[0] * 7]), made.values)
    assert list(from_little("d", made.values)) == [1.0, 2.0, 3.0, 4.0]
