"""The sample message: everything that an agent read at one tick, as columns.

MessagePack (content type SAMPLES_MSGPACK) is what agents send; the JSON twin (SAMPLES_JSON) spells
series and numbers out, for third parties. Both decode to the same `SampleMessage`.
"""

import json
import math
import struct
import sys
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from schemas.errors import Invalid
from schemas.layouts import MAX_LABELS, Series, check_labels, encode_layout
from schemas.topology import MAX_MESSAGE_BYTES
from schemas.values import ABSENT, ABSENT_BITS, STALE, STALE_BITS, bits

VERSION = 1
SAMPLES_MSGPACK = "application/vnd.vervet.samples+msgpack"
SAMPLES_JSON = "application/json"

MAX_FRAMES = 1000
"""Frames in one message; an agent has one per collector."""

MAX_ROWS = 10_000
"""Instants in one frame; more than one where a spool packs several ticks together."""


class Frame(msgspec.Struct, frozen=True, gc=False):
    """A layout's values at one or several instants.

    at: int64 microseconds since 1970 UTC, (rows,), little-endian.
    values: float64, (rows, series), row-major, little-endian; ABSENT where there was no value.
    """

    collector: str
    layout: bytes
    at: bytes
    values: bytes


class SampleMessage(msgspec.Struct, frozen=True, gc=False):
    """What one agent read at one tick. (instance, epoch, seq) identifies it for ever."""

    source: dict[str, str]
    epoch: str
    seq: int
    frames: tuple[Frame, ...]
    v: int = VERSION

    @property
    def message_id(self) -> str:
        return f"{self.source['instance']}/{self.epoch}/{self.seq}"


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(SampleMessage)


def frame(
    collector: str, layout: bytes, at_us: Sequence[int], values: Sequence[Sequence[float]]
) -> Frame:
    """A frame from numbers: `values` holds a row per instant."""
    at = struct.pack(f"<{len(at_us)}q", *at_us)
    return Frame(
        collector, layout, at, b"".join(struct.pack(f"<{len(row)}d", *row) for row in values)
    )


def encode(message: SampleMessage) -> bytes:
    """The MessagePack body."""
    return _encoder.encode(message)


def decode(body: bytes, content_type: str) -> SampleMessage:
    """The message of a body. Raises Invalid with the reason; takes memory in proportion to `body`.

    Layouts stay opaque: what they hold is checked by `decode_layout`, once per layout, and whether
    `values` has rows x series numbers is checked by whoever knows the layout.
    """
    if len(body) > MAX_MESSAGE_BYTES:
        raise Invalid(f"body: {len(body)} bytes; at most {MAX_MESSAGE_BYTES}")
    if content_type == SAMPLES_MSGPACK:
        message = _decode_msgpack(body)
    elif content_type == SAMPLES_JSON:
        message = _decode_json(body)
    else:
        raise Invalid(
            f"content type {content_type!r}: expected {SAMPLES_MSGPACK} or {SAMPLES_JSON}"
        )
    _check(message)
    return message


def _decode_msgpack(body: bytes) -> SampleMessage:
    try:
        return _decoder.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise Invalid(f"body: {error}") from error


def _check(message: SampleMessage) -> None:
    if message.v != VERSION:
        raise Invalid(f"v: {message.v}; this version reads {VERSION}")
    check_source(message.source)
    if not message.epoch or len(message.epoch) > 64 or not message.epoch.isalnum():
        raise Invalid("epoch: expected 1 to 64 letters and digits")
    if not 0 <= message.seq < 2**63:
        raise Invalid("seq: expected 0 or more")
    if not message.frames or len(message.frames) > MAX_FRAMES:
        raise Invalid(f"frames: {len(message.frames)}; expected 1 to {MAX_FRAMES}")
    for one in message.frames:
        rows, rest = divmod(len(one.at), 8)
        if rest or not 1 <= rows <= MAX_ROWS:
            raise Invalid(f"frame {one.collector}: at: {len(one.at)} bytes are no list of instants")
        if not one.values or len(one.values) % (8 * rows):
            raise Invalid(
                f"frame {one.collector}: values: {len(one.values)} bytes for {rows} instants"
            )


def check_source(source: Mapping[str, str]) -> None:
    """Raises Invalid unless these are a source's labels: job and instance at least.

    An empty label is none, as everywhere in Prometheus: what was written from elsewhere may lack
    the two, and `present_labels` is what its series have of them.
    """
    for name in ("job", "instance"):
        if name not in source:
            raise Invalid(f"source: {name} is missing")
    if len(source) > MAX_LABELS:
        raise Invalid(f"source: {len(source)} labels; at most {MAX_LABELS}")
    check_labels(source, "source")


def present_labels(source: Mapping[str, str]) -> dict[str, str]:
    """The labels that a source gives to its series: those that are not empty."""
    return {name: value for name, value in source.items() if value}


UNSPOOLED = "remote"
"""How an epoch begins behind which no spool stands (one of those is hexadecimal): whoever sent its
samples sends them again under other numbers, so a number that is missing means nothing."""


def from_little(code: str, data: bytes) -> "array[Any]":
    """The numbers of a frame's `at` (code q) or `values` (code d), for those without numpy."""
    numbers = array(code, data)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


class _JsonSeries(msgspec.Struct, frozen=True):
    name: str
    labels: dict[str, str] = {}
    type: str = "unknown"
    unit: str = ""


class _JsonFrame(msgspec.Struct, frozen=True):
    collector: str
    series: tuple[_JsonSeries, ...]
    at: tuple[int, ...]
    values: tuple[tuple[float | str | None, ...], ...]


class _JsonMessage(msgspec.Struct, frozen=True):
    source: dict[str, str]
    epoch: str
    seq: int
    frames: tuple[_JsonFrame, ...]
    v: int = VERSION


_json_decoder = msgspec.json.Decoder(_JsonMessage)

_WORDS = {"NaN": math.nan, "+Inf": math.inf, "Inf": math.inf, "-Inf": -math.inf, "stale": STALE}
"""How the JSON twin spells what JSON has no number for; an absent value is null."""


def _decode_json(body: bytes) -> SampleMessage:
    try:
        message = _json_decoder.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise Invalid(f"body: {error}") from error
    frames = []
    for one in message.frames:
        if any(len(row) != len(one.series) for row in one.values) or len(one.values) != len(one.at):
            raise Invalid(
                f"frame {one.collector}: values: expected {len(one.at)} rows of {len(one.series)}"
            )
        series = [Series(s.name, s.labels, _series_type(s.type), s.unit) for s in one.series]
        if any(not -(2**63) <= at < 2**63 for at in one.at):
            raise Invalid(f"frame {one.collector}: at: expected microseconds since 1970")
        rows = [[_json_number(value, one.collector) for value in row] for row in one.values]
        frames.append(frame(one.collector, encode_layout(series), one.at, rows))
    return SampleMessage(message.source, message.epoch, message.seq, tuple(frames), message.v)


def _series_type(text: str) -> Any:
    return text if text in ("gauge", "counter", "histogram", "summary") else "unknown"


def _json_number(value: float | str | None, collector: str) -> float:
    if value is None:
        return ABSENT
    if isinstance(value, str):
        if value not in _WORDS:
            raise Invalid(
                f"frame {collector}: values: {value[:40]!r}; expected a number or {list(_WORDS)}"
            )
        return _WORDS[value]
    return value


def encode_json(message: SampleMessage, layouts: Mapping[bytes, Sequence[Series]]) -> bytes:
    """The JSON twin's body; `layouts` gives the series of each frame's layout bytes."""
    frames = []
    for one in message.frames:
        series = layouts[one.layout]
        numbers = from_little("d", one.values)
        width = len(series)
        frames.append(
            {
                "collector": one.collector,
                "series": [msgspec.structs.asdict(s) for s in series],
                "at": list(from_little("q", one.at)),
                "values": [
                    [_json_value(number) for number in numbers[start : start + width]]
                    for start in range(0, len(numbers), width)
                ],
            }
        )
    body = {
        "v": message.v,
        "source": message.source,
        "epoch": message.epoch,
        "seq": message.seq,
        "frames": frames,
    }
    return json.dumps(body, separators=(",", ":"), allow_nan=False).encode()


def _json_value(value: float) -> float | str | None:
    if value != value:
        return {ABSENT_BITS: None, STALE_BITS: "stale"}.get(bits(value), "NaN")
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return value
