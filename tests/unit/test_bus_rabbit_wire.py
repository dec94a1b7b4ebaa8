"""The quick way of messages past aiormq, held to pamqp's own encoding of AMQP."""

import asyncio
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
from aiormq import exceptions as amqp
from hypothesis import given
from hypothesis import strategies as st
from pamqp import body, commands, frame, header

from services.bus import Message
from services.bus_rabbit_wire import Confirmed, Incoming, Receiver, Returned, publish_frames

NAMES = st.text(max_size=60).filter(lambda text: len(text.encode()) <= 255)
HEADERS = st.dictionaries(
    st.text(max_size=20), st.text(max_size=40) | st.integers(-(2**31), 2**31 - 1), max_size=3
)
MESSAGES = st.builds(Message, st.binary(max_size=300), NAMES, NAMES, HEADERS)
SMALL_FRAME = 4096
"""Smallest that AMQP allows, so that bodies above it are cut."""


def delivered(message: Message, *, most: int = 100, **properties: Any) -> bytes:
    """The frames of a delivery on channel 5, its body cut into pieces of `most` bytes."""
    known = {
        "content_type": message.content_type,
        "message_id": message.message_id,
        "headers": dict(message.headers),
        "delivery_mode": 2,
    }
    return b"".join(
        frame.marshal(one, 5)
        for one in (
            commands.Basic.Deliver("consumer", 7, True, "exchange", "key"),
            header.ContentHeader(
                0, len(message.body), commands.Basic.Properties(**(known | properties))
            ),
            *(
                body.ContentBody(message.body[start : start + most])
                for start in range(0, len(message.body), most)
            ),
        )
    )


async def received(data: bytes, cuts: list[int]) -> list[Any]:
    """What a receiver makes of bytes that arrive in pieces."""
    reader = asyncio.StreamReader()
    receiver = Receiver(reader)
    marks = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    found = []

    async def feed() -> None:
        for start, end in pairwise(marks):
            reader.feed_data(data[start:end])
            await asyncio.sleep(0)
        reader.feed_eof()

    feeding = asyncio.create_task(feed())
    with suppress(amqp.AMQPConnectionError):  # the end of the data
        while True:
            found.append((await receiver.get_frame())[2])
    await feeding
    return found


@given(st.lists(MESSAGES, max_size=4), st.lists(st.integers(0, 10_000), max_size=8))
def test_messages_arrive_whole_however_their_bytes_are_cut(
    messages: list[Message], cuts: list[int]
) -> None:
    data = b"".join(delivered(message) for message in messages)
    found = asyncio.run(received(data, cuts))
    assert found == [Incoming(7, True, "exchange", "key", message) for message in messages]


@given(MESSAGES, st.integers(1, 300))
def test_what_is_published_reads_the_same_to_pamqp(message: Message, extra: int) -> None:
    message = Message(
        message.body * extra, message.content_type, message.message_id, message.headers
    )
    data = b"".join(publish_frames(3, SMALL_FRAME, "exchange", "key", message))
    frames = []
    while data:
        assert len(data) >= 8
        used, channel, one = frame.unmarshal(data)
        assert channel == 3
        assert used <= SMALL_FRAME
        frames.append(one)
        data = data[used:]
    method, content, *pieces = frames
    assert (method.exchange, method.routing_key, method.mandatory) == ("exchange", "key", True)
    properties = content.properties
    assert properties.content_type == message.content_type
    assert properties.message_id == message.message_id
    assert properties.headers == dict(message.headers)
    assert properties.delivery_mode == 2
    assert content.body_size == len(message.body)
    assert b"".join(piece.value for piece in pieces) == message.body


async def test_confirms_and_returns_stand_in_line_with_other_frames() -> None:
    message = Message(b"body", "text/plain", "id", {})
    returned = delivered(message).replace(
        frame.marshal(commands.Basic.Deliver("consumer", 7, True, "exchange", "key"), 5),
        frame.marshal(commands.Basic.Return(312, "NO_ROUTE", "exchange", "key"), 5),
    )
    data = b"".join(
        (
            frame.marshal(commands.Basic.Ack(3, True), 5),
            returned,
            frame.marshal(commands.Basic.Nack(4, False, True), 5),
            frame.marshal(commands.Channel.CloseOk(), 5),
        )
    )
    *arrivals, last = await received(data, [])
    assert arrivals == [Confirmed(3, True, True), Returned("id"), Confirmed(4, False, False)]
    assert isinstance(last, commands.Channel.CloseOk)


@pytest.mark.parametrize(
    "properties",
    [{"priority": 3, "app_id": "other"}, {"content_type": None}, {"headers": None}],
)
async def test_a_message_with_other_properties_than_ours_arrives(
    properties: dict[str, Any],
) -> None:
    known: dict[str, Any] = {"content_type": "text/plain", "headers": {"a": 1, "b": "c"}}
    message = Message(b"body", known["content_type"], "id", known["headers"])
    (arrival,) = await received(delivered(message, **properties), [])
    expected = known | properties
    assert arrival.message == Message(
        b"body", expected["content_type"] or "", "id", expected["headers"] or {}
    )


async def test_names_and_headers_that_are_broken_do_not_end_the_connection() -> None:
    message = Message(b"body", "text/plain", "id", {"name": "value"})
    data = delivered(message).replace(b"text/plain", b"\xff" * 10).replace(b"Svalue", b"\x00value")
    data = data.replace(b"S\x00\x00\x00\x05value", b"?\x00\x00\x00\x05value")
    (arrival,) = await received(data, [])
    assert arrival.message == Message(b"body", "\ufffd" * 10, "id", {})


@pytest.mark.parametrize("data", [b"AMQP\x00\x00\x09\x01", b"\x01\x00\x01\x00\x00\x00\x00\x00"])
async def test_what_is_no_frame_ends_the_connection_with_a_reason(data: bytes) -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    with pytest.raises(amqp.AMQPError):
        await Receiver(reader).get_frame()
