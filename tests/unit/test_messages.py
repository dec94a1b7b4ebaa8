"""Status and transition messages: golden bytes, round trips, and hostile input."""

import contextlib
import json
import math
import re
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import layouts, samples, topology
from schemas.bodies import MAX_JSON_BYTES
from schemas.errors import Invalid
from schemas.events import AgentStatus, decode_status, encode_status
from schemas.metadata import MetadataTold, decode_metadata, encode_metadata
from schemas.transitions import (
    AlertState,
    Transition,
    decode_transition,
    encode_transition,
    fingerprint,
    transition_id,
)
from schemas.values import ABSENT_BITS, STALE_BITS

GOLDEN = Path(__file__).parent / "golden"
AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
LABELS = {"alertname": "HighLoad", "instance": "web-1", "job": "node", "severity": "warning"}

STATUS = AgentStatus(
    state="started",
    source={"job": "node", "instance": "web-1", "site": "lab"},
    epoch="0123456789abcdef",
    at=AT.replace(microsecond=678_901),
    version="0.1.0",
    interval_s=5,
)
TRANSITION = Transition(
    id="bb510452808f5acebf1b56d3553de265",
    rule="host/HighLoad",
    alertname="HighLoad",
    fingerprint="7bcd259d9fbb24809e1177360be39a37",
    severity="warning",
    from_state=AlertState.PENDING,
    to_state=AlertState.FIRING,
    at=AT,
    active_at=AT - timedelta(seconds=299.5),
    value=9.5,
    labels=LABELS,
    annotations={"summary": "Load of web-1 is 9.5"},
    expr="node_load5 > 8",
)


def test_the_status_is_the_golden_one() -> None:
    golden = (GOLDEN / "status_v1.json").read_bytes()
    assert decode_status(golden) == STATUS
    assert json.loads(encode_status(STATUS)) == json.loads(golden)


def test_the_transition_is_the_golden_one() -> None:
    golden = (GOLDEN / "transition_v1.json").read_bytes()
    assert decode_transition(golden) == TRANSITION
    sent, kept = json.loads(encode_transition(TRANSITION)), json.loads(golden)
    assert sent.keys() == kept.keys()
    assert decode_transition(encode_transition(TRANSITION)) == TRANSITION


def test_identities_stay_what_they_are_in_databases() -> None:
    assert fingerprint(LABELS) == TRANSITION.fingerprint
    made = transition_id("host/HighLoad", TRANSITION.fingerprint, AlertState.FIRING, AT)
    assert made == TRANSITION.id


def test_the_identity_of_a_transition_is_that_of_its_instant_in_any_zone() -> None:
    elsewhere = AT.astimezone(timezone(timedelta(hours=5, minutes=30)))
    identities = {transition_id("g/a", "f", AlertState.FIRING, at) for at in (AT, elsewhere)}
    assert len(identities) == 1


@pytest.mark.parametrize(
    "other",
    [
        ("g/b", "f", AlertState.FIRING, AT),
        ("g/a", "e", AlertState.FIRING, AT),
        ("g/a", "f", AlertState.INACTIVE, AT),
        ("g/a", "f", AlertState.FIRING, AT + timedelta(microseconds=1)),
    ],
)
def test_each_change_of_state_has_an_identity_of_its_own(
    other: tuple[str, str, AlertState, datetime],
) -> None:
    assert transition_id(*other) != transition_id("g/a", "f", AlertState.FIRING, AT)


def test_a_transition_without_an_instance_has_a_routing_key() -> None:
    made = TRANSITION.model_copy(update={"labels": {}, "severity": ""})
    assert made.routing_key == "none.firing.none.HighLoad"


def test_instants_come_in_any_offset_and_are_kept_in_utc() -> None:
    body = json.loads(encode_status(STATUS)) | {"at": "2026-01-02T04:04:05+01:00"}
    decoded = decode_status(json.dumps(body).encode())
    assert decoded.at == AT
    assert decoded.at.utcoffset() == timedelta(0)


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
values = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40)
maps = st.dictionaries(texts, texts, max_size=4)
instants = st.datetimes(timezones=st.just(UTC))
states = st.sampled_from(AlertState)


@given(
    st.builds(
        AgentStatus,
        state=st.sampled_from(["started", "stopping"]),
        source=st.fixed_dictionaries({"job": values, "instance": values}),
        epoch=texts,
        at=instants,
        version=texts,
        interval_s=st.floats(0.001, 86_400),
    )
)
def test_a_status_round_trips(status: AgentStatus) -> None:
    assert decode_status(encode_status(status)) == status


@given(
    st.builds(
        Transition,
        id=texts,
        rule=texts,
        alertname=texts,
        fingerprint=texts,
        severity=texts,
        from_state=states,
        to_state=states,
        at=instants,
        active_at=st.none() | instants,
        value=st.none() | st.floats(allow_nan=False),
        labels=maps,
        annotations=maps,
        expr=texts,
    )
)
def test_a_transition_round_trips(transition: Transition) -> None:
    assert decode_transition(encode_transition(transition)) == transition


def test_a_value_that_is_no_number_round_trips() -> None:
    sent = TRANSITION.model_copy(update={"value": math.nan})
    value = decode_transition(encode_transition(sent)).value
    assert value is not None
    assert math.isnan(value)


Decode = Callable[[bytes], object]
METADATA = MetadataTold.model_validate(
    {"at": AT, "metrics": [{"metric": "up_seconds", "type": "gauge", "help": "é\n"}]}
)
WHOLE: dict[Decode, bytes] = {
    decode_metadata: encode_metadata(METADATA),
    decode_status: encode_status(STATUS),
    decode_transition: encode_transition(TRANSITION),
}


def test_unknown_fields_are_ignored() -> None:
    for decode, body in WHOLE.items():
        later = json.loads(body) | {"later": {"addition": [True]}}
        assert decode(json.dumps(later).encode()) == decode(body)


@pytest.mark.parametrize("decode", WHOLE, ids=lambda it: it.__name__)
@pytest.mark.parametrize(
    ("hostile", "reason"),
    [
        (b"", "EOF"),
        (b"\xff\xfe", "Invalid JSON"),
        (b"null", "object"),
        (b"[]", "object"),
        (b"[" * 10_000, "recursion limit"),
        (b'{"a":' * 10_000, "recursion limit"),
        (b"1" * 5_000, "out of range"),
        (b" " * (MAX_JSON_BYTES + 1), "at most"),
        (b"{}", "Field required"),
    ],
)
def test_hostile_bodies_raise_one_error_with_a_reason(
    decode: Decode, hostile: bytes, reason: str
) -> None:
    with pytest.raises(Invalid, match=reason):
        decode(hostile)


@pytest.mark.parametrize(
    ("decode", "change", "reason"),
    [
        (decode_metadata, {"metrics": [{"metric": ""}]}, r"metrics\.0\.metric"),
        (decode_metadata, {"metrics": [{"metric": "m", "help": "a\0"}]}, "NUL"),
        (decode_metadata, {"metrics": [{"metric": "m", "type": "x"}]}, "type"),
        (decode_status, {"state": "asleep"}, "state"),
        (decode_status, {"kind": "check"}, "kind"),
        (decode_status, {"at": "yesterday"}, "at"),
        (decode_status, {"at": "2026-01-02T03:04:05"}, "timezone"),
        (decode_status, {"at": "9999-12-31T23:59:59-14:00"}, "after 9999"),
        (decode_status, {"at": 1e300}, "at"),
        (decode_status, {"epoch": "a\0b"}, "NUL"),
        (decode_status, {"epoch": 7}, "epoch"),
        (decode_status, {"interval_s": 0}, "interval_s"),
        (decode_status, {"interval_s": "NaN"}, "interval_s"),
        (decode_status, {"interval_s": "Infinity"}, "interval_s"),
        (decode_status, {"source": {"job": "j"}}, "instance is missing"),
        (decode_status, {"source": {"job": "j", "instance": "a\0"}}, "control character"),
        (decode_status, {"source": {"job": "j", "instance": ["i"]}}, r"source\.instance"),
        (decode_status, {"source": "web-1"}, "source"),
        (decode_transition, {"to_state": "FIRING"}, "to_state"),
        (decode_transition, {"at": None}, "at"),
        (decode_transition, {"active_at": "0001-01-01T00:00:00+14:00"}, "before the year 1"),
        (decode_transition, {"value": "many"}, "value"),
        (decode_transition, {"labels": {"a": 1}}, r"labels\.a"),
        (decode_transition, {"labels": {"a": "\0"}}, "NUL"),
        (decode_transition, {"annotations": {"\0": "a"}}, "NUL"),
        (decode_transition, {"id": "\0"}, "NUL"),
    ],
)
def test_a_field_that_cannot_be_kept_is_refused_by_its_name(
    decode: Decode, change: dict[str, Any], reason: str
) -> None:
    body = json.loads(WHOLE[decode]) | change
    with pytest.raises(Invalid, match=reason):
        decode(json.dumps(body).encode())


@pytest.mark.parametrize("decode", WHOLE, ids=lambda it: it.__name__)
def test_every_truncation_is_refused(decode: Decode) -> None:
    for end in range(len(WHOLE[decode])):
        with pytest.raises(Invalid):
            decode(WHOLE[decode][:end])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=10,
)


@given(st.data())
def test_no_field_raises_anything_else(data: st.DataObject) -> None:
    decode = data.draw(st.sampled_from([*WHOLE]))
    body = json.loads(WHOLE[decode])
    body[data.draw(st.sampled_from([*body]))] = data.draw(json_values)
    with contextlib.suppress(Invalid):
        decode(json.dumps(body).encode())


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_else(body: bytes) -> None:
    for decode in WHOLE:
        with contextlib.suppress(Invalid):
            decode(body)


def test_a_body_of_nothing_but_mistakes_is_refused_in_bounded_memory() -> None:
    mistakes = ",".join(f'"{n:x}":1' for n in range(20_000))
    body = b'{"labels": {' + mistakes.encode() + b"}}"
    assert MAX_JSON_BYTES * 0.6 < len(body) <= MAX_JSON_BYTES
    tracemalloc.start()
    with pytest.raises(Invalid):
        decode_transition(body)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * MAX_JSON_BYTES


# docs/reference/messages.md

REFERENCE = (Path(__file__).parents[2] / "docs" / "reference" / "messages.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", REFERENCE, re.DOTALL)


def blocks(language: str) -> list[str]:
    return [text for of, text in BLOCKS if of == language]


def test_the_messages_of_the_reference_are_real() -> None:
    of_samples, status, metadata, transition = (text.encode() for text in blocks("json"))
    assert samples.decode(of_samples, samples.SAMPLES_JSON).source["instance"] == "roof-1"
    assert decode_status(status).state == "started"
    assert decode_metadata(metadata).metrics[0].type == "histogram"
    assert decode_transition(transition).id == TRANSITION.id


def test_the_code_of_the_reference_reads_a_message() -> None:
    (code,) = blocks("python")
    names: dict[str, Any] = {}
    exec(code, names)
    golden = (GOLDEN / "samples_v1.msgpack").read_bytes()
    source = {"job": "node", "instance": "web-1"}
    assert list(names["samples"](golden)) == [
        (1_700_000_000_000_000, "node_load1", source, 0.5),
        (
            1_700_000_000_000_000,
            "node_cpu_seconds_total",
            {"cpu": "0", "mode": "idle", **source},
            1234.25,
        ),
    ]


def test_the_reference_names_the_exchanges_queues_and_limits_of_the_code() -> None:
    made = topology.topology()
    for name in [*(one.name for one in made.exchanges), *(one.name for one in made.queues)]:
        partition = re.fullmatch(r"evaluate\.([1-6])", name)
        assert partition or f"`{name}`" in REFERENCE
    numbers = {
        f"1 to {samples.MAX_FRAMES:,} frames",
        f"1 to {samples.MAX_ROWS:,}",
        f"after\n{topology.DELIVERY_LIMIT} deliveries",
        f"hold {topology.MAX_QUEUE_BYTES >> 30} GiB",
        f"| body | {topology.MAX_MESSAGE_BYTES >> 20} MiB |",
        f"{layouts.MAX_SERIES:,}, none of them twice; {layouts.MAX_DECODED_BYTES >> 20} MiB",
        f"| {layouts.MAX_LABELS} |",
        f"{layouts.MAX_NAME_CHARS} characters",
        f"{layouts.MAX_VALUE_CHARS:,} characters",
        f"at most {MAX_JSON_BYTES >> 10} KiB",
        f"ends after {topology.MAX_WORD_BYTES} bytes",
        f"`{ABSENT_BITS:016x}` is no value",
        f"`{STALE_BITS:016x}` is\nPrometheus' stale",
    }
    assert {said for said in numbers if said not in REFERENCE} == set()
