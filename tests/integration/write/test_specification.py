"""What remote write 1.0 asks of a receiver, sentence by sentence, beyond what test_write.py has.

https://prometheus.io/docs/specs/prw/remote_write_spec/
"""

import httpx
import pytest

from services.api.telling import REFUSED
from services.clock import now_us
from tests.processes import eventually
from tests.stack.remote_write import (
    HEADERS,
    compressed,
    encode_labels,
    encode_sample,
    time_series,
    varint,
)

AT_MS = now_us() // 1_000_000 * 1000 - 60_000
UP = {"__name__": "up", "instance": "a", "job": "node"}


async def post(client: httpx.AsyncClient, *fields: bytes) -> httpx.Response:
    body = compressed(b"".join(fields))
    return await client.post("/api/v1/write", content=body, headers=HEADERS)


async def values(client: httpx.AsyncClient, selector: str = "up") -> list[list[object]]:
    """Instants in ms and values of the only series."""
    query = {"query": f"{selector}[10m]", "time": str(AT_MS / 1000 + 60)}
    answer = await client.get("/api/v1/query", params=query)
    (series,) = answer.json()["data"]["result"] or [{"values": []}]
    return [[round(at * 1000), value] for at, value in series["values"]]


def field(number: int, content: bytes) -> bytes:
    return bytes((number << 3 | 2,)) + varint(len(content)) + content


def series(labels: bytes, *samples: tuple[float, int]) -> bytes:
    return time_series(labels, b"".join(encode_sample(*one) for one in samples))


GOOD = series(encode_labels(UP), (1.0, AT_MS))


async def test_an_empty_request_succeeds_as_senders_of_later_versions_probe_with_it(
    client: httpx.AsyncClient,
) -> None:
    answer = await post(client)
    assert (answer.status_code, answer.content) == (204, b"")


async def test_a_success_has_no_body(client: httpx.AsyncClient) -> None:
    answer = await post(client, GOOD)
    assert (answer.status_code, answer.content) == (204, b"")


async def test_framed_snappy_is_refused_for_good(client: httpx.AsyncClient) -> None:
    framed = b"\xff\x06\x00\x00sNaPpY" + b"\x01\x08\x00\x00" + bytes(8)
    answer = await client.post("/api/v1/write", content=framed, headers=HEADERS)
    assert answer.status_code == 400


async def test_only_a_post_writes(client: httpx.AsyncClient) -> None:
    assert (await client.get("/api/v1/write")).status_code == 405


@pytest.mark.parametrize(
    ("pairs", "told"),
    [
        ([("__name__", "x"), ("a", "1"), ("a", "1")], "stands twice"),
        ([("__name__", "x"), ("b", "1"), ("a", "2")], "labels are sent in order"),
        ([("a", "1"), ("__name__", "x")], "labels are sent in order"),
        ([("__name__", "x"), ("", "1")], "labels are sent in order"),
        ([], "no metric name"),
    ],
)
async def test_labels_that_break_the_rules_are_a_400_and_valid_samples_are_taken(
    client: httpx.AsyncClient, pairs: list[tuple[str, str]], told: str
) -> None:
    labels = b"".join(encode_labels({}) + _label(*pair) for pair in pairs)
    answer = await post(client, series(labels, (2.0, AT_MS)), GOOD)
    assert answer.status_code == 400
    assert told in answer.text
    assert await values(client) == [[AT_MS, "1"]]


def _label(name: str, value: str) -> bytes:
    return field(1, field(1, name.encode()) + field(2, value.encode()))


async def test_a_label_value_is_any_text_but_for_control_characters(
    client: httpx.AsyncClient,
) -> None:
    odd = 'é 漢字 😀 \u2028 " \\ {}'
    answer = await post(client, series(encode_labels({**UP, "odd": odd}), (1.0, AT_MS)))
    assert answer.status_code == 204
    told = await client.get("/api/v1/label/odd/values")
    assert told.json()["data"] == [odd]


async def test_samples_out_of_order_are_stored_in_order(client: httpx.AsyncClient) -> None:
    labels = encode_labels(UP)
    many = series(labels, (3.0, AT_MS + 2000), (1.0, AT_MS), (2.0, AT_MS + 1000))
    assert (await post(client, many)).status_code == 204
    assert (await post(client, series(labels, (0.5, AT_MS - 60_000)))).status_code == 204
    assert await values(client) == [
        [AT_MS - 60_000, "0.5"], [AT_MS, "1"], [AT_MS + 1000, "2"], [AT_MS + 2000, "3"],
    ]  # fmt: skip


async def test_a_series_that_stands_twice_in_a_request_is_one(client: httpx.AsyncClient) -> None:
    labels = encode_labels(UP)
    answer = await post(
        client, GOOD, series(labels, (2.0, AT_MS + 1000)), series(labels, (9.0, AT_MS))
    )
    assert answer.status_code == 204
    assert await values(client) == [[AT_MS, "1"], [AT_MS + 1000, "2"]]


async def test_a_series_without_samples_is_none(client: httpx.AsyncClient) -> None:
    assert (await post(client, time_series(encode_labels(UP), b""))).status_code == 204
    assert await values(client) == []


async def test_exemplars_are_left_out_and_their_samples_are_not(client: httpx.AsyncClient) -> None:
    exemplar = field(3, _label("trace_id", "abc") + encode_sample(1.0, AT_MS)[2:])
    labelled = time_series(encode_labels(UP), encode_sample(1.0, AT_MS) + exemplar)
    assert (await post(client, labelled)).status_code == 204
    assert await values(client) == [[AT_MS, "1"]]


async def test_native_histograms_are_a_400_that_is_not_retried_and_floats_are_taken(
    client: httpx.AsyncClient,
) -> None:
    histogram = time_series(encode_labels({**UP, "__name__": "h"}), field(4, b"\x08\x05"))
    answer = await post(client, histogram, GOOD)
    assert answer.status_code == 400
    assert "native histograms are not supported" in answer.text
    assert await values(client) == [[AT_MS, "1"]]


async def test_fields_of_later_versions_are_ignored(client: httpx.AsyncClient) -> None:
    later = field(9, b"later")
    labelled = time_series(encode_labels(UP), encode_sample(1.0, AT_MS) + field(15, b"x"))
    assert (await post(client, field(2, b"reserved"), labelled, later)).status_code == 204
    assert await values(client) == [[AT_MS, "1"]]


def described(metric: bytes, number: int, about: bytes) -> bytes:
    return field(3, bytes((8, number)) + field(2, metric) + field(4, about))


async def test_metadata_that_cannot_be_kept_is_counted_and_the_rest_is_kept(
    client: httpx.AsyncClient,
) -> None:
    before = REFUSED._value.get()
    answer = await post(
        client,
        described(b"good", 1, b"About."),
        *(described(name, 1, b"x") for name in (b"", b"a b", b"m" * 300, b"\xff")),
        described(b"nul", 1, b"a\0b"),
        described(b"future", 99, b"h" * 5000),
        GOOD,
    )
    assert answer.status_code == 204
    assert REFUSED._value.get() - before == 5

    async def told() -> bool:
        found = (await client.get("/api/v1/metadata")).json()["data"]
        return bool(
            found
            == {
                "future": [{"type": "unknown", "help": "h" * 4096, "unit": ""}],
                "good": [{"type": "counter", "help": "About.", "unit": ""}],
            }
        )

    await eventually(told)


async def test_metadata_that_changes_is_told_anew_and_what_was_told_is_not_told_again(
    client: httpx.AsyncClient,
) -> None:
    async def seen() -> list[str]:
        found = (await client.get("/api/v1/metadata", params={"metric": "m"})).json()["data"]
        return [one["help"] for one in found.get("m", [])]

    for about in (b"old", b"new", b"old"):
        assert (await post(client, described(b"m", 2, about))).status_code == 204
    assert await seen() == ["new", "old"]
