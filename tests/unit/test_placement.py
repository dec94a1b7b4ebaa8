"""Series into layouts, samples into frames: whatever is sent in whatever cut, once, and again."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.layouts import decode_layout, layout_hash
from schemas.samples import MAX_FRAMES, Frame, SampleMessage, decode, encode, present_labels
from schemas.samples import SAMPLES_MSGPACK as MSGPACK
from schemas.topology import MAX_MESSAGE_BYTES
from schemas.values import ABSENT_BITS, STALE_BITS
from services.api.assembly import Part, assemble, portions
from services.api.placement import MAX_WIDTH, Placement, Recalled, SourceKey
from services.api.remote_write import Samples, Unusual, read
from services.api.senders import SHORTEST_US, Sender
from tests.stack.remote_write import encode_labels, encode_sample, time_series

Labels = dict[str, str]
Row = tuple[int, int, int]
"""Number of a series, tick, value."""

NAMED = [
    {"__name__": f"m{n % 7}", "n": str(n), **({"job": f"j{n % 3}"} if n % 3 else {})}
    for n in range(60)
]


def at_ms(tick: int) -> int:
    return 1_763_600_000_000 + tick * 1000


class Store:
    """What a database would hold: cells by layout and instant; an absent one may be filled."""

    def __init__(self) -> None:
        self.cells: dict[tuple[bytes, int], list[int]] = {}
        self.recalled: list[tuple[Labels, Recalled]] = []
        self.hashes: list[bytes] = []

    def take(self, parts: list[Part]) -> None:
        for part in parts:
            for frame in part.frames:
                self._take(part, frame)

    def _take(self, part: Part, frame: Frame) -> None:
        series = decode_layout(frame.layout)
        source = present_labels(part.source.labels)
        key = layout_hash(source, series)
        if key not in self.hashes:
            self.hashes.append(key)
            self.recalled.append((source, Recalled(len(self.hashes), key, series)))
        at = np.frombuffer(frame.at, "<i8").tolist()
        rows = np.frombuffer(frame.values, "<u8").reshape(len(at), len(series)).tolist()
        for at_us, row in zip(at, rows, strict=True):
            stored = self.cells.setdefault((key, at_us), [ABSENT_BITS] * len(series))
            for place, bits in enumerate(row):
                if stored[place] == ABSENT_BITS:
                    stored[place] = bits

    def samples(self) -> list[tuple[str, int, int]]:
        """(series, instant in µs, bits), as often as they stand here."""
        found = []
        for (key, at_us), row in self.cells.items():
            source, layout = self.recalled[self.hashes.index(key)]
            for series, bits in zip(layout.series, row, strict=True):
                if bits != ABSENT_BITS:
                    labels = {"__name__": series.name, **series.labels, **source}
                    found.append((repr(sorted(labels.items())), at_us, bits))
        return sorted(found)


def request(rows: list[Row]) -> bytes:
    return b"".join(
        time_series(encode_labels(NAMED[n]), encode_sample(float(value), at_ms(tick)))
        for n, tick, value in rows
    )


def samples_of(placement: Placement, data: bytes) -> Samples:
    parts, at = [], 0
    while at < len(data):
        part, at = read(data, at, placement.known, placement.register, Unusual())
        parts.append(part)
    return Samples(
        np.concatenate([part.numbers for part in parts]),
        np.concatenate([part.at_ms for part in parts]),
        np.concatenate([part.bits for part in parts]),
    )


def write(placement: Placement, store: Store, data: bytes) -> None:
    """As the intake does."""
    samples = samples_of(placement, data)
    if new := placement.new(samples.numbers):
        for source in placement.sources(new):
            labels = present_labels(source.labels)
            layouts = [one for of, one in store.recalled if of == labels]
            placement.recall(source, [one for one in layouts if one.id > source.recalled])
    if new := placement.new(samples.numbers):
        placement.hear(samples.numbers, samples.at_ms * 1000)
        first = dict(zip(samples.numbers.tolist(), samples.at_ms.tolist(), strict=True))
        placement.place(new, [first[number] * 1000 for number in new])
    if len(samples):
        store.take(assemble(placement, samples))


ROWS = st.lists(
    st.tuples(st.integers(0, 59), st.integers(1, 4), st.integers(0, 3)),
    max_size=80,
    unique_by=lambda row: row[:2],
)


@given(ROWS, st.integers(1, 40), st.data())
def test_every_sample_stands_once_whatever_the_cuts_and_the_processes(
    rows: list[Row], size: int, data: st.DataObject
) -> None:
    """Any order, any cut, repeated at any time, by processes that start anew."""
    store, placement = Store(), Placement()
    requests = [rows[begin : begin + size] for begin in range(0, len(rows), size)]
    for number, one in enumerate(requests):
        if data.draw(st.booleans()):
            placement = Placement()
        write(placement, store, request(one))
        write(placement, store, request(one))
        before = store.samples()
        write(placement, store, request(requests[data.draw(st.integers(0, number))]))
        assert {sample[:2] for sample in store.samples()} == {sample[:2] for sample in before}
    expected = {
        (repr(sorted(NAMED[n].items())), at_ms(tick) * 1000, float(value))
        for n, tick, value in rows
    }
    found = {
        (name, at_us, struct.unpack("<d", struct.pack("<Q", bits))[0])
        for name, at_us, bits in store.samples()
    }
    assert found == expected


@given(ROWS, st.integers(1, 40))
def test_what_one_process_took_it_takes_again_into_the_same_cells(
    rows: list[Row], size: int
) -> None:
    store, placement = Store(), Placement()
    by_tick = sorted(rows, key=lambda row: row[1])
    requests = [by_tick[begin : begin + size] for begin in range(0, len(rows), size)]
    for number, one in enumerate(requests):
        write(placement, store, request(one))
        before = store.samples()
        for again in requests[max(0, number - 1) : number + 1]:
            write(placement, store, request(again))
        assert store.samples() == before


def test_series_that_come_together_make_layouts_of_equal_width() -> None:
    placement = Placement()
    data = b"".join(
        time_series(encode_labels({"__name__": "m", "n": str(n)}), encode_sample(1.0, at_ms(1)))
        for n in range(500)
    )
    write(placement, Store(), data)
    assert placement.widths.tolist() == [166, 167, 167]


def test_long_labels_make_narrow_layouts_whose_messages_fit() -> None:
    placement, noise = Placement(), np.random.default_rng(3)
    data = b"".join(
        time_series(
            encode_labels({"__name__": "m"} | {f"l{k}": noise.bytes(900).hex() for k in range(30)}),
            encode_sample(1.0, at_ms(1)),
        )
        for _ in range(40)
    )
    samples = samples_of(placement, data)
    placement.place(placement.new(samples.numbers), [1_000_000] * 40)
    (part,) = assemble(placement, samples)
    messages = [
        SampleMessage(part.source.labels, "remote1", n, frames)
        for n, frames in enumerate(portions(part.frames))
    ]
    assert len(messages) > 1
    for one in messages:
        assert len(encode(one)) <= MAX_MESSAGE_BYTES
        assert decode(encode(one), MSGPACK) == one


def test_rows_with_one_sample_each_are_bounded_and_make_many_frames() -> None:
    placement = Placement()
    write(placement, Store(), request([(n, 1, 1) for n in range(0, 60, 3)]))
    data = b"".join(request([(0, tick, 1)]) for tick in range(2, 20_000))
    samples = samples_of(placement, data)
    (part,) = assemble(placement, samples)
    for frames in portions(part.frames):
        message = SampleMessage(part.source.labels, "remote1", 1, frames)
        assert len(frames) <= MAX_FRAMES
        assert len(encode(message)) <= MAX_MESSAGE_BYTES
        decode(encode(message), MSGPACK)
    assert sum(len(frame.at) for frame in part.frames) == 8 * len(samples)


def test_a_value_that_means_absent_here_becomes_an_ordinary_nan() -> None:
    placement, store = Placement(), Store()
    absent = struct.unpack("<d", struct.pack("<Q", ABSENT_BITS))[0]
    write(placement, store, time_series(encode_labels(NAMED[0]), encode_sample(absent, at_ms(1))))
    assert [bits for _, _, bits in store.samples()] == [0x7FF8_0000_0000_0001]


def test_the_first_of_two_samples_of_one_instant_counts() -> None:
    placement, store = Placement(), Store()
    write(placement, store, request([(0, 1, 5), (0, 1, 6)]))
    write(placement, store, request([(0, 1, 7)]))
    (sample,) = store.samples()
    assert struct.unpack("<d", struct.pack("<Q", sample[2])) == (5.0,)


def test_a_source_has_ended_when_all_its_newest_samples_are_stale_markers() -> None:
    placement = Placement()
    stale = struct.unpack("<d", struct.pack("<Q", STALE_BITS))[0]

    def ended(*rows: tuple[int, int, float]) -> bool:
        data = b"".join(
            time_series(encode_labels(NAMED[n]), encode_sample(value, at_ms(tick)))
            for n, tick, value in rows
        )
        samples = samples_of(placement, data)
        new = placement.new(samples.numbers)
        placement.place(new, [1_000_000] * len(new))
        (part,) = assemble(placement, samples)
        return part.ended

    assert not ended((0, 1, 1.0), (3, 1, 2.0))
    assert not ended((0, 2, 1.0), (3, 2, stale))
    assert ended((0, 2, 1.0), (3, 3, stale), (0, 3, stale))


SECOND = 1_000_000


@pytest.mark.parametrize(
    ("heard", "said"),
    [
        ([(1, False)], ["started"]),
        ([(1, False), (16, False), (31, False)], ["started", None, None]),
        ([(1, False), (61, False), (121, False)], ["started", None, "started"]),
        ([(1, False), (2, True), (2, True), (3, False)], ["started", "stopping", None, "started"]),
        ([(1, False), (9, True), (9, False)], ["started", "stopping", "started"]),
        ([(9, False), (1, True)], ["started", None]),
        ([(1, True)], ["stopping"]),
        ([(1, False), (601, False), (616, False), (631, False)], ["started", None, None, None]),
    ],
)
def test_what_is_said_in_a_senders_place(
    heard: list[tuple[int, bool]], said: list[str | None]
) -> None:
    sender = Sender()
    assert [sender.hear(at_s * SECOND, ended) for at_s, ended in heard] == said


def test_short_intervals_are_not_told() -> None:
    sender = Sender()
    for at_s in range(1, 10):
        sender.hear(at_s * SECOND, False)
    assert sender.interval_us == SHORTEST_US


def test_a_layout_of_an_agent_is_left_to_it() -> None:
    placement = Placement()
    samples = samples_of(placement, request([(1, 1, 1)]))
    (source,) = placement.sources(placement.new(samples.numbers))
    assert source.key == SourceKey("j1", "")
    placement.recall(source, [Recalled(1, b"of types and units", ())])
    assert placement.new(samples.numbers)
    assert MAX_WIDTH * 8 < 2000
