"""Batches: what is checked before anything is stored, and how rows become a COPY."""

import struct
from datetime import timedelta

import pytest

from schemas.errors import Invalid
from schemas.layouts import Series
from schemas.samples import SampleMessage, from_little
from schemas.values import (
    ABSENT,
    ABSENT_BITS,
    STALE,
    STORED_ABSENT_BITS,
    STORED_STALE_BITS,
    bits,
)
from services.clock import POSTGRES_EPOCH_US
from services.ingest.batch import (
    Batch,
    Layouts,
    Received,
    Window,
    encode_copy,
    passes,
    progress,
    receive,
)
from services.ingest.settings import IngestSettings
from tests.builders import delivery, sample_message

NOW_US = 1_700_000_000_000_000
BOUNDS = Window(timedelta(days=1), timedelta(hours=1)).bounds_us(NOW_US)


def received(message: SampleMessage, layouts: Layouts | None = None) -> Received:
    one = receive(delivery(message), message, layouts or Layouts(), BOUNDS)
    for rows in one.frames:
        rows.layout.id = 7
    return one


def test_absent_cells_are_not_counted_as_samples() -> None:
    one = received(sample_message([1.0, ABSENT], [STALE, 2.0], at_us=NOW_US))
    assert one.samples == 3


def test_bytes_of_two_cells_that_look_like_an_absent_one_are_samples() -> None:
    straddling = bytes(4) + ABSENT_BITS.to_bytes(8, "little") + bytes(4)
    values = from_little("d", straddling).tolist()
    assert received(sample_message(values, at_us=NOW_US)).samples == 2


def test_a_layout_is_decoded_once_per_source() -> None:
    layouts = Layouts()
    first = received(sample_message([1.0, 2.0], at_us=NOW_US), layouts)
    again = received(sample_message([3.0, 4.0], at_us=NOW_US, seq=1), layouts)
    other = received(sample_message([3.0, 4.0], at_us=NOW_US, instance="host-2"), layouts)
    assert first.frames[0].layout is again.frames[0].layout
    assert first.frames[0].layout is not other.frames[0].layout


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (sample_message([1.0], at_us=NOW_US), "expected 1 rows of 2"),
        (sample_message([1.0, 2.0], at_us=NOW_US - 2 * 86_400_000_000), "too far from now"),
        (sample_message([1.0, 2.0], at_us=NOW_US + 2 * 3_600_000_000), "too far from now"),
        (sample_message([1.0, 2.0], at_us=2**62), "too far from now"),
        (sample_message([1.0, 2.0], [1.0, 2.0], at_us=NOW_US, step_us=0), "stands twice"),
    ],
)
def test_what_cannot_be_stored_is_refused_with_a_reason(
    message: SampleMessage, reason: str
) -> None:
    with pytest.raises(Invalid, match=reason):
        received(message)


def test_a_copy_holds_every_bit_of_every_row() -> None:
    wide = [Series("m", {"n": str(n)}) for n in range(40)]
    frames = [
        *received(sample_message([1.5, STALE], [ABSENT, -0.0], at_us=NOW_US)).frames,
        *received(sample_message(range(40), at_us=NOW_US, series=wide)).frames,
    ]
    data = encode_copy(frames[:1])
    first, second = struct.iter_unpack(">hiiiqiiiiii" + "iQ" * 2, data[19:-2])
    assert [first[4] + POSTGRES_EPOCH_US, second[4] + POSTGRES_EPOCH_US] == [
        NOW_US,
        NOW_US + 1_000_000,
    ]
    assert (first[12], first[14]) == (bits(1.5), STORED_STALE_BITS)
    assert (second[12], second[14]) == (STORED_ABSENT_BITS, 1 << 63)
    assert len(encode_copy(frames)) == len(data) + 46 + 12 * 40


def test_rows_stand_in_the_order_that_all_writers_keep() -> None:
    given = [(2, NOW_US + 1, 9), (1, NOW_US, 8), (2, NOW_US, 9), (2, NOW_US, 3)]
    frames = []
    for width, at_us, layout_id in given:
        series = [Series("m", {"n": str(n)}) for n in range(width)]
        message = sample_message([float(layout_id)] * width, at_us=at_us, series=series)
        one = receive(delivery(message), message, Layouts(), BOUNDS)
        one.frames[0].layout.id = layout_id
        frames += one.frames
    data, found, place = encode_copy(frames), [], 19
    while data[place : place + 2] != b"\xff\xff":
        row = struct.unpack_from(">hiiiqiiiiiiiQ", data, place)
        found.append((row[9], row[4] + POSTGRES_EPOCH_US, row[2]))
        assert row[12] == bits(float(row[2]))
        place += 46 + 12 * row[9]
    assert found == sorted(given, key=lambda one: (one[0], one[2], one[1]))


def test_one_statement_never_sees_a_key_twice() -> None:
    layouts = Layouts()
    first = received(sample_message([1.0, ABSENT], at_us=NOW_US), layouts)
    again = received(sample_message([ABSENT, 2.0], at_us=NOW_US, seq=1), layouts)
    later = received(sample_message([3.0, 4.0], at_us=NOW_US + 1, seq=2), layouts)
    groups = passes([first, again, later])
    assert [len(group) for group in groups] == [2, 1]


def test_progress_tells_new_messages_from_repeated_ones() -> None:
    batch = [received(sample_message([1.0, 2.0], at_us=NOW_US + n, seq=n)) for n in (4, 5, 5, 9)]
    agent = progress(batch, known={(7, NOW_US + 9)})["node", "host-1", "e1"]
    assert (agent.first_seq, agent.last_seq) == (4, 9)
    assert (agent.messages, agent.duplicates, agent.samples) == (2, 2, 4)


@pytest.mark.parametrize(
    "limit",
    [{"batch_samples": 6}, {"batch_rows": 3}, {"batch_bytes": 1}, {"prefetch": 6}],
    ids=str,
)
def test_a_batch_is_full_at_its_third_message(limit: dict[str, int]) -> None:
    messages = [received(sample_message([1.0, 2.0], at_us=NOW_US, seq=seq)) for seq in range(3)]
    if "batch_bytes" in limit:
        limit = {"batch_bytes": sum(len(one.delivery.message.body) for one in messages)}
    settings, batch, fills = IngestSettings.model_validate(limit), Batch(), []
    for one in messages:
        batch.add(one)
        fills.append(batch.is_full(settings))
    assert fills == [False, False, True]
