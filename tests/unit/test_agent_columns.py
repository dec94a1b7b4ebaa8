"""From readings to frames, and from frames to messages in their envelopes."""

from dataclasses import replace

import pytest

from schemas.errors import Invalid
from schemas.layouts import decode_layout
from schemas.samples import SAMPLES_JSON, SAMPLES_MSGPACK, Frame, decode, from_little
from schemas.values import ABSENT_BITS, STALE_BITS, bits
from services.agent import outgoing
from services.agent.collectors import Reading, counter, gauge
from services.agent.columns import Columns, Layout
from services.agent.outgoing import compose, open_envelope

LOAD = gauge("node_load1", "Load.")
BYTES = counter("bytes_total", "Bytes.", "device")
SOURCE = {"job": "node", "instance": "host.1"}


def row(frame: Frame) -> dict[str, float | str]:
    """A frame's values by series, absent and stale ones in words."""
    words = {ABSENT_BITS: "absent", STALE_BITS: "stale"}
    names = [one.name + "".join(one.labels.values()) for one in decode_layout(frame.layout)]
    values = from_little("d", frame.values)
    return {n: words.get(bits(v), v) for n, v in zip(names, values, strict=True)}


def test_readings_become_one_frame_at_the_ticks_instant() -> None:
    columns = Layout("test").columns([LOAD(1.5), BYTES(7, "eth0")], 1_000_001)
    (frame,) = columns.frames
    assert row(frame) == {"node_load1": 1.5, "bytes_totaleth0": 7}
    assert list(from_little("q", frame.at)) == [1_000_001]
    assert columns.samples == 2
    (_, series) = decode_layout(frame.layout)
    assert (series.type, series.labels) == ("counter", {"device": "eth0"})


def test_the_layout_is_encoded_once_while_its_series_stay() -> None:
    layout = Layout("test")
    first = layout.columns([LOAD(1)], 1).frames[0]
    assert layout.columns([LOAD(2)], 2).frames[0].layout is first.layout


def test_a_series_that_comes_changes_the_layout_and_marks_nothing() -> None:
    layout = Layout("test")
    layout.columns([LOAD(1)], 1)
    columns = layout.columns([LOAD(2), BYTES(7, "eth0")], 2)
    assert [row(frame) for frame in columns.frames] == [{"node_load1": 2, "bytes_totaleth0": 7}]


def test_a_series_that_vanished_is_marked_stale_once_in_the_old_layout() -> None:
    layout = Layout("test")
    layout.columns([LOAD(1), BYTES(7, "eth0"), BYTES(8, "eth1")], 1)
    columns = layout.columns([LOAD(2), BYTES(8, "eth1")], 2)
    assert [row(frame) for frame in columns.frames] == [
        {"node_load1": "absent", "bytes_totaleth0": "stale", "bytes_totaleth1": "absent"},
        {"node_load1": 2, "bytes_totaleth1": 8},
    ]
    assert columns.samples == 3
    assert len(layout.columns([LOAD(3), BYTES(8, "eth1")], 3).frames) == 1


def test_a_failed_collectors_series_are_absent_and_not_stale() -> None:
    layout = Layout("test")
    layout.columns([BYTES(7, "eth0"), LOAD(1)], 1)
    columns = layout.partial([LOAD(0)], 2)
    assert [row(frame) for frame in columns.frames] == [
        {"bytes_totaleth0": "absent", "node_load1": 0}
    ]
    assert columns.samples == 1


def test_a_collector_that_fails_from_the_start_has_a_frame_of_its_own_two_series() -> None:
    columns = Layout("test").partial([LOAD(0)], 2)
    assert [row(frame) for frame in columns.frames] == [{"node_load1": 0}]


def test_readings_that_are_no_layout_are_refused_and_change_nothing() -> None:
    layout = Layout("test")
    layout.columns([LOAD(1)], 1)
    with pytest.raises(Invalid, match="twice"):
        layout.columns([LOAD(1), LOAD(2)], 2)
    assert len(layout.columns([LOAD(3)], 3).frames) == 1


@pytest.mark.parametrize("text", ["a\nb", "\udcff", "x" * 5000, "\x7f"])
def test_any_text_of_the_host_becomes_a_label_value(text: str) -> None:
    columns = Layout("test").columns([BYTES(1, text)], 1)
    decode_layout(columns.frames[0].layout)


def columns_of(*sizes: int) -> list[Columns]:
    """A collector per size, with that many series."""
    return [
        Layout(f"c{index}").columns([BYTES(n, f"c{index}-{n}") for n in range(size)], 5)
        for index, size in enumerate(sizes)
    ]


@pytest.mark.parametrize(
    ("form", "content_type"), [("msgpack", SAMPLES_MSGPACK), ("json", SAMPLES_JSON)]
)
def test_a_tick_is_one_message_that_consumers_can_decode(form: str, content_type: str) -> None:
    (record,) = compose(columns_of(2, 3), SOURCE, 5, form, "e1", 9)  # type: ignore[arg-type]
    envelope = open_envelope(record)
    message = decode(envelope.body, envelope.content_type)
    assert envelope.content_type == content_type
    assert envelope.message().message_id == message.message_id == "host.1/e1/9"
    assert envelope.message().headers == {"instance": "host.1"}
    assert envelope.key == "node.host_1"
    assert (record.seq, record.at_us, record.samples) == (9, 5, 5)
    assert [frame.collector for frame in message.frames] == ["c0", "c1"]


def test_the_json_twin_says_which_series_is_stale() -> None:
    layout = Layout("test")
    layout.columns([LOAD(1), BYTES(7, "eth0")], 1)
    columns = layout.columns([LOAD(1)], 2)
    (record,) = compose([columns], SOURCE, 2, "json", "e1", 1)
    body = open_envelope(record).body
    assert b'"values":[[null,"stale"]]' in body
    assert [row(frame) for frame in decode(body, SAMPLES_JSON).frames] == [
        row(frame) for frame in columns.frames
    ]


def test_a_tick_too_large_for_one_message_becomes_several_with_numbers_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outgoing, "MAX_MESSAGE_BYTES", 3000)
    records = compose(columns_of(*[50] * 9), SOURCE, 5, "msgpack", "e1", 7)
    bodies = [open_envelope(record).body for record in records]
    messages = [decode(body, SAMPLES_MSGPACK) for body in bodies]
    assert len(bodies) > 1
    assert max(map(len, bodies)) <= 3000
    assert [message.seq for message in messages] == list(range(7, 7 + len(records)))
    assert [record.seq for record in records] == [message.seq for message in messages]
    assert sum(record.samples for record in records) == 9 * 50
    assert [f.collector for m in messages for f in m.frames] == [f"c{n}" for n in range(9)]


def test_columns_of_one_tick_add_up() -> None:
    one, two = columns_of(1, 2)
    assert (one + two).samples == 3
    assert (one + two).frames == one.frames + two.frames
    assert replace(one, samples=9).series == one.series


def test_a_metrics_unit_is_the_one_in_its_name() -> None:
    assert counter("cpu_seconds_total", "").unit == "seconds"
    assert gauge("disk_bytes", "").unit == "bytes"
    assert gauge("node_load1", "").unit == ""
    assert isinstance(LOAD(1), Reading)
