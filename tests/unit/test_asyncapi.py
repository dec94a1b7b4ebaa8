"""schemas/asyncapi.yaml says what the code does: exchanges, keys, payloads, examples."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import msgspec
import pytest
from ruamel.yaml import YAML

from schemas import samples, topology
from schemas.errors import Invalid
from schemas.events import EVENT_JSON, AgentStatus, decode_status, encode_status
from schemas.layouts import Series, decode_layout
from schemas.metadata import METADATA_JSON, MetadataTold, decode_metadata, encode_metadata
from schemas.samples import SAMPLES_JSON, SAMPLES_MSGPACK, SampleMessage, decode, encode
from schemas.transitions import (
    TRANSITION_JSON,
    AlertState,
    Transition,
    decode_transition,
    encode_transition,
    fingerprint,
    transition_id,
)
from services.bus import MAX_REASON, Delivery, Message, dead_letter

FILE = Path(__file__).parents[2] / "schemas" / "asyncapi.yaml"
DOCUMENT: dict[str, Any] = YAML(typ="safe").load(FILE.read_text())
CHANNELS: dict[str, Any] = DOCUMENT["channels"]
MESSAGES: dict[str, Any] = DOCUMENT["components"]["messages"]
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]
TOPOLOGY = topology.topology()


def exchange(channel: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = channel["bindings"]["amqp"]["exchange"]
    return found


def test_every_exchange_is_a_channel() -> None:
    documented = {
        (
            exchange(channel)["name"],
            exchange(channel).get("type", channel.get("x-exchange-type")),
            channel.get("x-exchange-arguments", {}).get("hash-header"),
        )
        for channel in CHANNELS.values()
    }
    assert documented == {(one.name, one.kind, one.hash_header) for one in TOPOLOGY.exchanges}


def test_exchanges_outlive_the_broker() -> None:
    for channel in CHANNELS.values():
        assert exchange(channel)["durable"]
        assert not exchange(channel)["autoDelete"]


def test_every_binding_is_documented() -> None:
    documented = {
        (exchange(channel)["name"], name, binding["key"])
        for channel in CHANNELS.values()
        for binding in channel.get("x-bindings", ())
        for name in targets(binding)
    }
    assert documented == {(one.exchange, one.target, one.key) for one in TOPOLOGY.bindings}


def targets(binding: dict[str, str]) -> Iterator[str]:
    name = binding.get("queue") or binding["exchange"]
    if "{partition}" not in name:
        yield name
    else:
        for partition in range(topology.DEFAULT_PARTITIONS):
            yield name.format(partition=partition)


def test_a_channel_is_reserved_as_long_as_nothing_is_published_there() -> None:
    reserved = {name for name, channel in CHANNELS.items() if channel.get("x-reserved")}
    assert reserved == {"control"}
    assert not any(CHANNELS[name]["messages"] for name in reserved)


STATUS = AgentStatus.model_validate(MESSAGES["agentStatus"]["examples"][0]["payload"])
METADATA = MetadataTold.model_validate(MESSAGES["metadata"]["examples"][0]["payload"])
TRANSITION = Transition.model_validate(MESSAGES["transition"]["examples"][0]["payload"])


@pytest.mark.parametrize(
    ("channel", "words", "key"),
    [
        ("intake", {"job": "node", "instance": "web-1"}, topology.sample_key("node", "web-1")),
        ("samples", {"job": "node", "instance": "web-1"}, topology.sample_key("node", "web-1")),
        ("evaluate", {"job": "node", "instance": "web-1"}, topology.sample_key("node", "web-1")),
        ("events", {"kind": "agent", "instance": "web-1", "name": "status"}, STATUS.routing_key),
        (
            "events",
            {"kind": "metrics", "instance": "none", "name": "metadata"},
            METADATA.routing_key,
        ),
        (
            "alerts",
            {
                "severity": "warning",
                "state": "firing",
                "instance": "web-1",
                "alertname": "HighLoad",
            },
            TRANSITION.routing_key,
        ),
    ],
)
def test_an_address_is_the_routing_key(channel: str, words: dict[str, str], key: str) -> None:
    assert CHANNELS[channel]["address"].format(**words) == key
    assert words.keys() == CHANNELS[channel]["parameters"].keys()


def test_the_words_of_a_key_that_can_be_listed_are() -> None:
    states = CHANNELS["alerts"]["parameters"]["state"]["enum"]
    assert states == [state.value for state in AlertState]


# Payloads: the document may describe and bound what the code's own schema only types.

NOTES = {
    *("title", "description", "examples"),
    *("minItems", "maxItems", "minLength", "maxLength", "minimum", "maximum", "exclusiveMinimum"),
}


def bare(schema: Any) -> Any:
    """A schema without what only explains or bounds it."""
    if isinstance(schema, list):
        return [bare(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: {key: bare(one) for key, one in value.items()}
        if name == "properties"
        else bare(value)
        for name, value in schema.items()
        if name not in NOTES
    }


PUBLIC_NAMES = {
    "_JsonMessage": "JsonSampleMessage",
    "_JsonFrame": "JsonFrame",
    "_JsonSeries": "JsonSeries",
}
REFERENCE = "#/components/schemas/{name}"


def generated() -> dict[str, Any]:
    """The schemas that msgspec and pydantic make of the code's types, by their public names."""
    types = [SampleMessage, samples._JsonMessage, Series]
    _, found = msgspec.json.schema_components(types, ref_template=REFERENCE)
    for model in (AgentStatus, MetadataTold, Transition):
        made = model.model_json_schema(ref_template=REFERENCE.replace("name", "model"))
        found |= made.pop("$defs", {})
        found[model.__name__] = made
    text = json.dumps(found)
    for private, public in PUBLIC_NAMES.items():
        text = text.replace(f'"{private}"', f'"{public}"')
        text = text.replace(f"/{private}", f"/{public}")
    renamed: dict[str, Any] = json.loads(text)
    return renamed


@pytest.mark.parametrize("name", sorted(generated()))
def test_a_payloads_schema_is_that_of_its_type(name: str) -> None:
    assert bare(SCHEMAS[name]) == bare(generated()[name])


def test_no_schema_is_left_that_no_type_has() -> None:
    of_headers = {"SampleHeaders", "DeadLetterHeaders", "BrokerHeaders"}
    assert SCHEMAS.keys() - generated().keys() - of_headers == {"Layout"}
    assert SCHEMAS["Layout"]["items"] == {"$ref": REFERENCE.format(name="Series")}


@pytest.mark.parametrize("name", ["SampleMessage", "JsonSampleMessage"])
def test_the_bounds_are_those_of_the_decoder(name: str) -> None:
    properties = SCHEMAS[name]["properties"]
    assert properties["frames"]["maxItems"] == samples.MAX_FRAMES
    assert properties["v"]["default"] == samples.VERSION
    body = json.loads((Path(__file__).parent / "golden" / "samples_v1.json").read_bytes())
    limits = {"epoch": properties["epoch"]["maxLength"], "seq": properties["seq"]["maximum"]}
    allowed = {"epoch": "e" * limits["epoch"], "seq": limits["seq"]}
    assert decode(json.dumps(body | allowed).encode(), SAMPLES_JSON)
    for beyond in ({"epoch": "e" * (limits["epoch"] + 1)}, {"seq": limits["seq"] + 1}):
        with pytest.raises(Invalid):
            decode(json.dumps(body | beyond).encode(), SAMPLES_JSON)


# Examples.


def from_messagepack(payload: Any) -> bytes:
    """The example's body: base64 stands for what is binary in MessagePack."""
    return encode(msgspec.convert(payload, SampleMessage))


DECODERS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "samples": (SAMPLES_MSGPACK, lambda it: decode(from_messagepack(it), SAMPLES_MSGPACK)),
    "samplesJson": (SAMPLES_JSON, lambda it: decode(json.dumps(it).encode(), SAMPLES_JSON)),
    "agentStatus": (EVENT_JSON, lambda it: decode_status(json.dumps(it).encode())),
    "metadata": (METADATA_JSON, lambda it: decode_metadata(json.dumps(it).encode())),
    "transition": (TRANSITION_JSON, lambda it: decode_transition(json.dumps(it).encode())),
}


def examples() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, message in MESSAGES.items():
        for example in message.get("examples", ()):
            yield name, example


@pytest.mark.parametrize(("name", "example"), [*examples()])
def test_an_example_has_the_form_that_it_is_an_example_of(
    name: str, example: dict[str, Any]
) -> None:
    for part in example.keys() - {"name"}:
        schema = {**MESSAGES[name][part], "components": DOCUMENT["components"]}
        jsonschema.validate(example[part], schema)


@pytest.mark.parametrize("name", DECODERS)
def test_the_real_decoder_takes_the_examples(name: str) -> None:
    content_type, decoded = DECODERS[name]
    assert MESSAGES[name]["contentType"] == content_type
    for example in MESSAGES[name]["examples"]:
        assert decoded(example["payload"])


def test_the_example_of_samples_says_what_the_golden_message_says() -> None:
    example = decode(
        from_messagepack(MESSAGES["samples"]["examples"][0]["payload"]), SAMPLES_MSGPACK
    )
    golden = decode(
        (Path(__file__).parent / "golden" / "samples_v1.msgpack").read_bytes(), SAMPLES_MSGPACK
    )
    assert (example.source, example.epoch, example.seq) == (
        golden.source,
        golden.epoch,
        golden.seq,
    )
    assert example.frames[0].values == golden.frames[0].values
    assert decode_layout(example.frames[0].layout) == decode_layout(golden.frames[0].layout)


def test_what_we_encode_has_the_documented_form() -> None:
    encoded = {
        "AgentStatus": encode_status(STATUS),
        "MetadataTold": encode_metadata(METADATA),
        "Transition": encode_transition(TRANSITION),
    }
    for name, body in encoded.items():
        schema = {"$ref": REFERENCE.format(name=name), "components": DOCUMENT["components"]}
        jsonschema.validate(json.loads(body), schema)


def test_the_identities_in_the_example_of_a_transition_are_real() -> None:
    assert TRANSITION.fingerprint == fingerprint(TRANSITION.labels)
    assert TRANSITION.id == transition_id(
        TRANSITION.rule, TRANSITION.fingerprint, TRANSITION.to_state, TRANSITION.at
    )


def test_a_dead_letter_has_the_documented_headers() -> None:
    delivery = Delivery(Message(b"x", "text/plain", "id", {"instance": "i"}), "e", "k", False, 1)
    letter = dead_letter(delivery, "q", "r" * 1000)
    schema = SCHEMAS["DeadLetterHeaders"]
    assert letter.headers.keys() - {"instance"} == set(schema["required"])
    assert schema["properties"]["x-reason"]["maxLength"] == MAX_REASON
    jsonschema.validate(dict(letter.headers), schema)


def test_every_reference_points_at_something() -> None:
    for reference in references(DOCUMENT):
        found: Any = DOCUMENT
        for part in reference.removeprefix("#/").split("/"):
            found = found[part]
        assert found, reference


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)
