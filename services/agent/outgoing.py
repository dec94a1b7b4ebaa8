"""What a tick becomes: messages in their envelopes, as they lie in the spool."""

from collections.abc import Sequence
from typing import Literal

import msgspec

from schemas.samples import SAMPLES_JSON, SAMPLES_MSGPACK, SampleMessage, encode, encode_json
from schemas.topology import MAX_MESSAGE_BYTES, PARTITION_HEADER, sample_key
from services.agent.columns import Columns
from services.agent.records import Record
from services.bus import Message

Format = Literal["msgpack", "json"]


class Envelope(msgspec.Struct, frozen=True, array_like=True):
    """A message with what the broker must know: settings may have changed when it is sent."""

    key: str
    instance: str
    content_type: str
    message_id: str
    body: bytes

    def message(self) -> Message:
        headers = {PARTITION_HEADER: self.instance}
        return Message(self.body, self.content_type, self.message_id, headers)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Envelope)


def open_envelope(record: Record) -> Envelope:
    """The envelope that a record of the spool holds."""
    return _decoder.decode(record.payload)


def compose(
    columns: Sequence[Columns],
    source: dict[str, str],
    at_us: int,
    form: Format,
    epoch: str,
    seq: int,
) -> list[Record]:
    """The messages of one tick, numbered from `seq` on: one, or more where one is too large."""
    frames = tuple(frame for one in columns for frame in one.frames)
    message = SampleMessage(source, epoch, seq, frames)
    if form == "msgpack":
        body = encode(message)
    else:
        series = (of_frame for one in columns for of_frame in one.series)
        body = encode_json(message, {f.layout: s for f, s in zip(frames, series, strict=True)})
    if len(body) > MAX_MESSAGE_BYTES and len(columns) > 1:
        half = len(columns) // 2
        first = compose(columns[:half], source, at_us, form, epoch, seq)
        rest = compose(columns[half:], source, at_us, form, epoch, seq + len(first))
        return first + rest
    envelope = Envelope(
        key=sample_key(source["job"], source["instance"]),
        instance=source["instance"],
        content_type=SAMPLES_MSGPACK if form == "msgpack" else SAMPLES_JSON,
        message_id=message.message_id,
        body=body,
    )
    samples = sum(one.samples for one in columns)
    return [Record(seq, at_us, samples, _encoder.encode(envelope))]
