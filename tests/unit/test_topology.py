"""The topology as data, and the words of routing keys."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import topology as broker
from schemas.topology import (
    DEFAULT_PARTITIONS,
    MAX_WORD_BYTES,
    Binding,
    alert_key,
    key_word,
    partition_queue,
    sample_key,
    topology,
)
from services.bus import MAX_NAME_BYTES


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("web-1", "web-1"),
        ("db.example.org:5432", "db_example_org:5432"),
        ("*", "_"),
        ("a#b*c", "a_b_c"),
        ("", "_"),
        ("x" * 200, "x" * 80),
        ("語" * 200, "語" * 26),
        ("Größe 1", "Größe 1"),
    ],
)
def test_a_word_of_a_key_has_no_character_that_means_something_there(text: str, word: str) -> None:
    assert key_word(text) == word


@given(st.text())
def test_any_text_is_one_word(text: str) -> None:
    word = key_word(text)
    assert 1 <= len(word.encode(errors="replace")) <= MAX_WORD_BYTES
    assert not set(word) & set(".*#")
    assert key_word(word) == word


def test_a_sample_key_has_job_and_instance() -> None:
    assert sample_key("node", "web-1.example.org") == "node.web-1_example_org"


def test_an_alert_key_has_a_word_for_what_is_missing() -> None:
    assert alert_key("critical", "firing", "web-1", "HighLoad") == "critical.firing.web-1.HighLoad"
    assert alert_key("", "inactive", "", "Dead.Man") == "none.inactive.none.Dead_Man"


@given(st.text(), st.text(), st.text(), st.text())
def test_an_alert_key_always_has_four_words(
    severity: str, state: str, instance: str, alertname: str
) -> None:
    words = alert_key(severity, state, instance, alertname).split(".")
    assert len(words) == 4
    assert all(words)


@given(st.lists(st.text(max_size=300), min_size=3, max_size=3))
def test_a_key_fits_into_what_amqp_carries(labels: list[str]) -> None:
    severity, instance, alertname = labels
    for key in (sample_key(*labels[:2]), alert_key(severity, "inactive", instance, alertname)):
        assert len(key.encode(errors="replace")) <= MAX_NAME_BYTES


@pytest.mark.parametrize("partitions", [1, 3, DEFAULT_PARTITIONS])
def test_every_partition_has_a_queue_that_one_consumer_at_a_time_reads(partitions: int) -> None:
    made = topology(partitions)
    names = [partition_queue(number) for number in range(partitions)]
    assert [one.name for one in made.queues if one.single_active] == names
    fed = [one for one in made.bindings if one.exchange == broker.EVALUATE]
    assert fed == [Binding(broker.EVALUATE, name, key="1") for name in names]


def test_samples_go_to_ingest_and_to_the_partitions() -> None:
    fed = {one for one in topology().bindings if one.exchange == broker.INTAKE}
    assert fed == {
        Binding(broker.INTAKE, broker.INGEST_QUEUE),
        Binding(broker.INTAKE, broker.EVALUATE, to_exchange=True),
        Binding(broker.INTAKE, broker.SAMPLES, to_exchange=True),
    }


def test_partitions_are_chosen_by_the_header_that_every_sample_message_has() -> None:
    (hashing,) = (one for one in topology().exchanges if one.kind == "x-consistent-hash")
    assert (hashing.name, hashing.hash_header) == (broker.EVALUATE, broker.PARTITION_HEADER)


def test_names_are_declared_once() -> None:
    made = topology()
    for names in ([one.name for one in made.exchanges], [one.name for one in made.queues]):
        assert len(names) == len(set(names))


def test_bindings_join_what_is_declared() -> None:
    made = topology()
    exchanges = {one.name for one in made.exchanges}
    queues = {one.name for one in made.queues}
    for one in made.bindings:
        assert one.exchange in exchanges
        assert one.target in (exchanges if one.to_exchange else queues)


def test_no_queue_is_without_a_binding() -> None:
    made = topology()
    assert {one.name for one in made.queues} == {
        one.target for one in made.bindings if not one.to_exchange
    }


def test_dead_letters_end_where_they_are() -> None:
    assert [one.name for one in topology().queues if not one.dead_letters] == [broker.DEAD_QUEUE]
