"""Builders of what tests feed in: short to call, and valid unless told otherwise."""

from collections.abc import Mapping, Sequence

from schemas.layouts import Series, encode_layout
from schemas.samples import SAMPLES_MSGPACK, SampleMessage, encode, frame
from schemas.topology import sample_key
from services.bus import Delivery, Message
from services.clock import now_us

GAUGE = (
    Series("temperature", {"room": "a"}, "gauge"),
    Series("temperature", {"room": "b"}, "gauge"),
)


def sample_message(
    *rows: Sequence[float],
    instance: str = "host-1",
    job: str = "node",
    seq: int = 0,
    epoch: str = "e1",
    at_us: int | None = None,
    step_us: int = 1_000_000,
    series: Sequence[Series] = GAUGE,
    labels: Mapping[str, str] | None = None,
) -> SampleMessage:
    """One frame with the given rows; the first is at `at_us`, or now."""
    first = now_us() if at_us is None else at_us
    instants = [first + step_us * index for index in range(len(rows))]
    return SampleMessage(
        source={"job": job, "instance": instance, **(labels or {})},
        epoch=epoch,
        seq=seq,
        frames=(frame("test", encode_layout(series), instants, rows),),
    )


def bus_message(message: SampleMessage) -> Message:
    """As an agent publishes it."""
    return Message(
        encode(message),
        SAMPLES_MSGPACK,
        message.message_id,
        {"instance": message.source["instance"]},
    )


def delivery(message: SampleMessage, tag: int = 1) -> Delivery:
    """As a consumer gets it."""
    key = sample_key(message.source["job"], message.source["instance"])
    return Delivery(bus_message(message), "vervet.intake", key, False, tag)
