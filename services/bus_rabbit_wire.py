"""The frames of messages and confirms on an AMQP 0-9-1 connection, packed and taken apart quickly.

aio-pika opens the connection, aiormq speaks all that is rare on it (AMQP 0-9-1 specification,
sections 2.3 and 4.2). What comes by the thousand per second, a message out, a message in, a
confirm, goes past both: their way costs three to four times as much (docs/adr/0003-bus.md).
"""

import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import aiormq.connection
from aiormq import exceptions as amqp
from aiormq.abc import ChannelFrame
from aiormq.channel import Channel
from pamqp import decode, encode, frame, header
from pamqp.exceptions import PAMQPException

from services.bus import Message

_FRAME = struct.Struct(">BHI")
"""Type, channel, size of the payload."""
_FRAME_END = b"\xce"
_OVERHEAD_BYTES = _FRAME.size + 1
_METHOD, _HEADER, _BODY = 1, 2, 3
_OTHER_VERSION = b"A"[0]
"""Where a frame's type should be: the server answers with its own protocol header, AMQP…"""
_BASIC = 60
_PUBLISH = struct.pack(">HHH", _BASIC, 40, 0)
_RETURN, _DELIVER, _ACK, _NACK = (struct.pack(">HH", _BASIC, id_) for id_ in (50, 60, 80, 120))
_MANDATORY = b"\x01"
_CONTENT = struct.Struct(">HHQH")
"""Class, weight, size of the body, flags of the properties."""
_TYPE, _HEADERS, _MODE, _ID = 0x8000, 0x2000, 0x1000, 0x0080
_FLAGS = _TYPE | _HEADERS | _MODE | _ID
_PERSISTENT = b"\x02"
_DELIVERY = struct.Struct(">QB")
_CONFIRM = _DELIVERY
_TAG = struct.Struct(">Q")

FULL_S = 0.005
"""How long a connection that takes no more frames is let be."""

READ_BYTES = 256 * 1024
"""Asked of the socket's buffer at once."""


class Incoming(NamedTuple):
    """A message that was delivered."""

    tag: int
    redelivered: bool
    exchange: str
    routing_key: str
    message: Message


class Confirmed(NamedTuple):
    """The broker's word on what was published, on all up to `tag` if `multiple`."""

    tag: int
    multiple: bool
    stored: bool


class Returned(NamedTuple):
    """A message that no queue was bound for. Its confirm follows."""

    message_id: str


Arrival = Incoming | Confirmed | Returned


def publish_frames(
    channel: int, frame_max: int, exchange: str, key: str, message: Message
) -> list[bytes]:
    """The frames of a basic.publish: mandatory, persistent. Raises ValueError, TypeError or
    struct.error for what cannot be encoded."""
    method = b"".join((_PUBLISH, _short(exchange), _short(key), _MANDATORY))
    content = b"".join(
        (
            _CONTENT.pack(_BASIC, 0, len(message.body), _FLAGS),
            _short(message.content_type),
            encode.field_table(dict(message.headers)),
            _PERSISTENT,
            _short(message.message_id),
        )
    )
    if len(content) + _OVERHEAD_BYTES > frame_max:
        raise ValueError(f"headers of {len(content)} bytes do not fit into a frame")
    parts = [
        _FRAME.pack(_METHOD, channel, len(method)),
        method,
        _FRAME_END,
        _FRAME.pack(_HEADER, channel, len(content)),
        content,
        _FRAME_END,
    ]
    most = frame_max - _OVERHEAD_BYTES
    body = message.body
    for start in range(0, len(body), most):
        piece = body if len(body) <= most else body[start : start + most]
        parts += (_FRAME.pack(_BODY, channel, len(piece)), piece, _FRAME_END)
    return parts


@lru_cache(maxsize=4096)
def _short(text: str) -> bytes:
    """A short string: at most 255 bytes of UTF-8 behind their number."""
    data = text.encode()
    return bytes((len(data),)) + data


@dataclass(slots=True)
class _Content:
    """A message of which not all frames have come."""

    method: bytes
    properties: bytes = b""
    missing: int = -1
    pieces: list[bytes] = field(default_factory=list)

    @property
    def body(self) -> bytes:
        return self.pieces[0] if len(self.pieces) == 1 else b"".join(self.pieces)


class Receiver(aiormq.connection.FrameReceiver):
    """Takes frames off a connection: whole messages and confirms as an Arrival in the place of a
    frame, all else as pamqp's frames. aiormq makes one for each connection (`quick_frames`)."""

    def __init__(self, reader: Any) -> None:
        super().__init__(reader)
        self._data = b""
        self._at = 0
        self._contents: dict[int, _Content] = {}

    async def get_frame(self) -> Any:
        while True:
            taken = self._take()
            if taken is not None:
                return taken
            try:
                data = await self.reader.read(READ_BYTES)
            except OSError as error:
                raise amqp.AMQPConnectionError(f"connection lost: {error!r}") from error
            if not data:
                raise amqp.AMQPConnectionError("connection closed by the server")
            self._data = self._data[self._at :] + data
            self._at = 0

    def _take(self) -> tuple[int, int, Any] | None:
        """(0, channel, frame) of what has come; None where more has to come first."""
        data = self._data
        while len(data) - self._at >= _OVERHEAD_BYTES:
            kind, channel, size = _FRAME.unpack_from(data, self._at)
            start = self._at + _FRAME.size
            end = start + size
            if kind == _OTHER_VERSION:
                raise amqp.ProtocolSyntaxError("the server speaks another version of AMQP")
            if len(data) <= end:
                return None
            if data[end] != _FRAME_END[0]:
                raise amqp.InvalidFrameError("a frame without its end")
            whole, self._at = self._at, end + 1
            if kind == _METHOD:
                method = data[start:end]
                word = method[:4]
                if word in (_ACK, _NACK):
                    tag, multiple = _CONFIRM.unpack_from(method, 4)
                    return 0, channel, Confirmed(tag, bool(multiple & 1), word == _ACK)
                if word in (_DELIVER, _RETURN):
                    self._contents[channel] = _Content(method)
                    continue
            elif channel in self._contents:
                arrival = self._add(channel, kind, data[start:end])
                if arrival is None:
                    continue
                return 0, channel, arrival
            try:
                _, channel, taken = frame.unmarshal(data[whole : end + 1])
            except PAMQPException as error:
                raise amqp.InvalidFrameError(str(error)) from error
            return 0, channel, taken
        return None

    def _add(self, channel: int, kind: int, payload: bytes) -> Arrival | None:
        content = self._contents[channel]
        if kind == _HEADER:
            content.properties = payload
            content.missing = _CONTENT.unpack_from(payload)[2]
        elif kind == _BODY:
            content.missing -= len(payload)
            content.pieces.append(payload)
        else:
            raise amqp.InvalidFrameError(f"a frame of type {kind} in a message")
        if content.missing:
            return None
        del self._contents[channel]
        return _arrival(content)


def _arrival(content: _Content) -> Arrival:
    message = _message(content)
    method = content.method
    if method.startswith(_RETURN):
        return Returned(message.message_id)
    after_consumer = 5 + method[4]
    tag, redelivered = _DELIVERY.unpack_from(method, after_consumer)
    at = after_consumer + _DELIVERY.size
    after_exchange = at + 1 + method[at]
    return Incoming(
        tag,
        bool(redelivered),
        _text(method[at + 1 : after_exchange]),
        _text(method[after_exchange + 1 :]),
        message,
    )


def _message(content: _Content) -> Message:
    properties = content.properties
    flags = _CONTENT.unpack_from(properties)[3]
    if flags != _FLAGS:
        return _foreign_message(content)
    at = _CONTENT.size
    after_type = at + 1 + properties[at]
    (length,) = struct.unpack_from(">I", properties, after_type)
    after_headers = after_type + 4 + length
    return Message(
        content.body,
        _text(properties[at + 1 : after_type]),
        _text_once(properties[after_headers + 2 :]),
        _headers(properties[after_type:after_headers]),
    )


def _foreign_message(content: _Content) -> Message:
    """Of one with other properties than ours, as third parties publish."""
    parsed = header.ContentHeader()
    parsed.unmarshal(content.properties)
    known = parsed.properties
    headers = _plain(known.headers or {})
    return Message(content.body, known.content_type or "", known.message_id or "", headers)


def _text_once(data: bytes) -> str:
    """Bytes that are no UTF-8 must not end the connection, whoever published them."""
    return data.decode("utf-8", "replace")


_text = lru_cache(maxsize=4096)(_text_once)


@lru_cache(maxsize=4096)
def _headers(table: bytes) -> Mapping[str, str | int]:
    """Of a table; none where it is broken: what such a message lacks, its consumer will say."""
    try:
        return _plain(decode.field_table(table)[1])
    except (ValueError, UnicodeDecodeError, struct.error, IndexError, KeyError):
        return {}


BROKER_HEADERS = {"x-delivery-count"}
"""Headers that the broker adds, which are no part of what was published."""


def _plain(headers: Mapping[str, Any]) -> dict[str, str | int]:
    return {
        name: value
        for name, value in headers.items()
        if isinstance(value, str | int) and name not in BROKER_HEADERS
    }


def divert(channel: Channel, take: Any) -> None:
    """Have `take` called with each Arrival on a channel, at once and in order; all else goes on to
    aiormq."""
    forward = channel.frames.put

    async def sift(item: tuple[int, Any]) -> None:
        if isinstance(item[1], Incoming | Confirmed | Returned):
            take(item[1])
        else:
            await forward(item)

    channel.frames.put = sift  # type: ignore[method-assign]


class Writer:
    """Writes frames of one channel, those of one turn of the event loop together."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._parts: list[bytes] = []
        self.frame_max: int = channel.connection.connection_tune.frame_max

    def write(self, parts: list[bytes]) -> None:
        if not self._parts:
            self._channel.loop.call_soon(self._flush)
        self._parts += parts

    def _flush(self) -> None:
        if self._channel.write_queue.full():
            self._channel.loop.call_later(FULL_S, self._flush)
            return
        payload, self._parts = b"".join(self._parts), []
        if not self._channel.is_closed:
            self._channel.write_queue.put_nowait(ChannelFrame(payload, should_close=False))


_OURS: ContextVar[bool] = ContextVar("_OURS", default=False)
_THEIRS = aiormq.connection.FrameReceiver


@contextmanager
def quick_frames() -> Iterator[None]:
    """Connections that aiormq opens in here have a Receiver; others in the process don't."""
    token = _OURS.set(True)
    try:
        yield
    finally:
        _OURS.reset(token)


def _receiver(reader: Any) -> aiormq.connection.FrameReceiver:
    return Receiver(reader) if _OURS.get() else _THEIRS(reader)


aiormq.connection.FrameReceiver = _receiver  # type: ignore[assignment,misc]
