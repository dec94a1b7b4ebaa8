"""Remote write on a real database: samples that a Prometheus sends, stored once, in few layouts."""

import asyncio
import json
import random
import struct
from collections.abc import AsyncIterator, Sequence
from typing import Any

import asyncpg
import httpx
import pytest

from engine.promql import Matcher, MatchOp
from schemas.topology import topology
from schemas.values import ABSENT
from services.api.intake import LAYOUTS_AT_ONCE, Intake
from services.api.placement import OPEN_WIDTH, Placement, Source
from services.api.settings import ApiSettings
from services.bus import Bus, Message, Unavailable
from services.bus_rabbit import rabbit_bus
from services.clock import now_us
from services.database import Pool
from services.frames import Reader
from tests.api_rig import serving
from tests.processes import eventually
from tests.stack.broker import Broker
from tests.stack.remote_write import HEADERS, Sample, compressed, write_request

START_MS = now_us() // 1_000_000 * 1000 - 600_000
STALE = struct.unpack("<d", struct.pack("<Q", 0x7FF0_0000_0000_0002))[0]
ODD_NAN = struct.unpack("<d", struct.pack("<Q", 0x7FF8_0000_0000_1234))[0]
FOREVER_US = 1 << 60
TARGET = {"job": "node", "instance": "web-1:9100"}

Labels = dict[str, str]
Series = tuple[Labels, Sequence[Sample]]


def one(value: float, at_ms: int = START_MS, name: str = "m", **labels: str) -> Series:
    return {"__name__": name, **TARGET, **labels}, [(value, at_ms)]


def scrape(at_ms: int, count: int, **labels: str) -> list[Series]:
    return [
        ({"__name__": f"m_{n % 40}", **TARGET, "n": str(n), **labels}, [(n + at_ms / 7, at_ms)])
        for n in range(count)
    ]


async def post(client: httpx.AsyncClient, series: Sequence[Series], **headers: str) -> Any:
    body = write_request(series)
    return await client.post("/api/v1/write", content=body, headers={**HEADERS, **headers})


async def sent(client: httpx.AsyncClient, *requests: Sequence[Series]) -> None:
    for series in requests:
        answer = await post(client, series)
        assert answer.status_code == 204, answer.text


def cut(series: Sequence[Series], size: int) -> list[Sequence[Series]]:
    return [series[begin : begin + size] for begin in range(0, len(series), size)]


async def stored(pool: Pool) -> dict[tuple[str, int], list[bytes]]:
    """By series (as JSON) and instant in ms the bits of all values, stale markers included."""
    found: dict[tuple[str, int], list[bytes]] = {}
    async with Reader(pool).snapshot() as snapshot:
        for block in await snapshot.read([Matcher("x", MatchOp.EQUAL, "")], 0, FOREVER_US):
            for row, at_us in zip(block.values, block.at.tolist(), strict=True):
                for labels, value in zip(block.columns, row, strict=True):
                    if (packed := struct.pack(">d", value)) != struct.pack(">d", ABSENT):
                        place = (json.dumps(dict(labels), sort_keys=True), at_us // 1000)
                        found.setdefault(place, []).append(packed)
    return found


def expected(*requests: Sequence[Series]) -> dict[tuple[str, int], list[bytes]]:
    return {
        (json.dumps(labels, sort_keys=True), at_ms): [struct.pack(">d", value)]
        for series in requests
        for labels, samples in series
        for value, at_ms in samples
    }


async def layouts(pool: Pool) -> int:
    """How many layouts have frames."""
    count: int = await pool.fetchval("select count(distinct layout_id) from frames")
    return count


async def test_samples_are_stored_with_all_their_bits(
    client: httpx.AsyncClient, pool: Pool
) -> None:
    values = [0.0, -0.0, 1.5, float("inf"), float("-inf"), 5e-324, STALE, ODD_NAN]
    request = [one(value, n=str(n)) for n, value in enumerate(values)]
    await sent(client, request)
    assert await stored(pool) == expected(request)


async def test_a_request_that_comes_again_changes_nothing(
    client: httpx.AsyncClient, pool: Pool
) -> None:
    requests = cut(scrape(START_MS, 700), 250)
    await sent(client, *requests)
    before = await pool.fetch("select * from frames order by 1, 2")
    known = await pool.fetchval("select sum(messages) from agents")
    await sent(client, *requests)
    assert await pool.fetch("select * from frames order by 1, 2") == before
    assert await pool.fetchval("select sum(messages) from agents") == known
    assert await pool.fetchval("select sum(duplicates) from agents") == len(requests)


@pytest.mark.parametrize(("shards", "size"), [(1, 500), (1, 77), (4, 101), (7, 333)])
async def test_layouts_stay_few_wherever_requests_are_cut(
    bus: Bus, pool: Pool, database_url: str, shards: int, size: int
) -> None:
    """Series are spread over a sender's shards; each sends its own in batches, side by side."""
    order = random.Random(size)
    scrapes = [scrape(START_MS + 15_000 * n, 1500) for n in range(6)]
    for some in (scrapes[:3], scrapes[3:]):
        async with serving(bus, database_url) as client:  # restarted in between
            of_shard = [
                [series for one in some for series in one[shard::shards]] for shard in range(shards)
            ]
            lists = [cut(series, size - order.randrange(3)) for series in of_shard]
            await asyncio.gather(*(sent(client, *requests) for requests in lists))
    assert await stored(pool) == expected(*scrapes)
    # A narrow layout is one that the end of a shard's scrape left.
    assert await layouts(pool) <= 2 * (1500 / OPEN_WIDTH + shards)
    newest = await pool.fetchval(
        "select count(*) from frames where at = (select max(at) from frames)"
    )
    assert newest <= 1500 / OPEN_WIDTH + shards


async def test_series_that_come_one_by_one_are_put_together(
    client: httpx.AsyncClient, pool: Pool
) -> None:
    requests = [scrape(START_MS + 15_000 * n, n + 1) for n in range(60)]
    await sent(client, *requests)
    assert await stored(pool) == expected(*requests)
    newest = await pool.fetchval(
        "select count(*) from frames where at = (select max(at) from frames)"
    )
    assert newest <= 7


async def test_processes_that_learn_the_same_at_once_come_to_the_same_layouts(
    bus: Bus, pool: Pool, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.api.intake.LOOK_AGAIN_S", 0.0)
    first, *later = [scrape(START_MS + 15_000 * n, 400) for n in range(4)]
    async with serving(bus, database_url) as left, serving(bus, database_url) as right:
        await asyncio.gather(sent(left, first[:250]), sent(right, first[250:]))
        await asyncio.gather(sent(left, first[250:]), sent(right, first[:250]))
        for request in later:
            await sent(left, request[::2])
            await sent(right, request[1::2])
    assert await stored(pool) == expected(first, *later)
    newest = await pool.fetchval(
        "select count(*) from frames where at = (select max(at) from frames)"
    )
    assert newest <= 5


async def test_an_empty_label_is_none(client: httpx.AsyncClient, pool: Pool) -> None:
    request: list[Series] = [
        ({"__name__": "total"}, [(1.0, START_MS)]),
        ({"__name__": "of_job", "job": "node"}, [(2.0, START_MS)]),
    ]
    await sent(client, request)
    assert await stored(pool) == expected(request)
    for query in ('total{job=""}', 'total{instance!~".+"}'):
        asked = {"query": query, "time": str(START_MS / 1000)}
        answer = await client.get("/api/v1/query", params=asked)
        assert [row["metric"] for row in answer.json()["data"]["result"]] == [{"__name__": "total"}]


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ({"job": "node"}, "no metric name"),
        ({"__name__": "a b"}, "'a b' is not a metric name"),
        ({"__name__": "bad", "a-b": "c"}, "'a-b' is not a label name"),
        ({"__name__": "bad", "a": ""}, "label 'a' is empty"),
        ({"__name__": "bad", "a": "x\ny"}, "control character"),
        ({"__name__": "bad", "instance": "i" * 161}, "instance: longer than 160 bytes"),
        ({"__name__": "bad", "__meta": "x"}, "'__meta' is not a label name"),
    ],
)
async def test_a_series_that_breaks_the_rules_is_named_and_the_others_are_stored(
    client: httpx.AsyncClient, pool: Pool, labels: Labels, told: str
) -> None:
    good = [one(1.0, a="1"), one(2.0, a="2")]
    bad: Series = (labels, [(3.0, START_MS)])
    for _ in range(2):
        answer = await post(client, [good[0], bad, good[1]])
        assert answer.status_code == 400
        assert told in answer.text
        assert "1 samples refused, 2 stored" in answer.text
        assert answer.text.count("\n") == 1
    assert await stored(pool) == expected(good)


async def test_samples_too_far_from_now_are_refused_alone(
    client: httpx.AsyncClient, pool: Pool
) -> None:
    good = one(1.0)
    answer = await post(client, [one(2.0, 0), good, one(3.0, START_MS + 10**9), one(4.0, -(2**63))])
    assert answer.status_code == 400
    assert "3 samples refused, 1 stored" in answer.text
    assert "out of bounds" in answer.text
    assert await stored(pool) == expected([good])


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "application/json"}, 415),
        ({"Content-Type": "application/x-protobuf;proto=io.prometheus.write.v2.Request"}, 415),
        ({"Content-Type": "application/x-protobuf;proto=prometheus.WriteRequest"}, 204),
        ({"Content-Encoding": "zstd"}, 415),
        ({"X-Prometheus-Remote-Write-Version": "2.0.0"}, 400),
    ],
)
async def test_another_version_or_encoding_is_refused(
    client: httpx.AsyncClient, headers: dict[str, str], status: int
) -> None:
    assert (await post(client, [one(1.0)], **headers)).status_code == status


async def test_a_body_that_is_none_is_malformed(client: httpx.AsyncClient, pool: Pool) -> None:
    for body in (b"", b"text", compressed(b"\x0a\x05a")):
        answer = await client.post("/api/v1/write", content=body, headers=HEADERS)
        assert answer.status_code == 400, body
    assert await stored(pool) == {}


async def test_a_body_that_is_too_large_is_refused_at_once(
    bus: Bus, pool: Pool, database_url: str
) -> None:
    async with serving(bus, database_url, remote_write_max_bytes=100_000) as client:
        bomb = compressed(bytes(100_001))
        answer = await client.post("/api/v1/write", content=bomb, headers=HEADERS)
        assert (answer.status_code, len(bomb) < 50_000) == (413, True)
        answer = await client.post("/api/v1/write", content=bytes(100_001), headers=HEADERS)
        assert answer.status_code == 413

        async def endless() -> AsyncIterator[bytes]:
            for _ in range(100):
                yield bytes(10_000)

        answer = await client.post("/api/v1/write", content=endless(), headers=HEADERS)
        assert answer.status_code == 413


async def test_it_is_off_where_the_setting_says_so(bus: Bus, pool: Pool, database_url: str) -> None:
    async with serving(bus, database_url, remote_write=False) as client:
        answer = await post(client, [one(1.0)])
        assert (answer.status_code, "VERVET_REMOTE_WRITE" in answer.text) == (404, True)


@pytest.mark.parametrize(
    ("listen", "given", "taken"),
    [
        ("127.0.0.1:1", None, True),
        ("[::1]:1", None, True),
        ("localhost:1", None, True),
        ("0.0.0.0:1", None, False),
        ("monitor.example.org:1", None, False),
        ("0.0.0.0:1", True, True),
        ("127.0.0.1:1", False, False),
    ],
)
def test_it_is_on_by_default_where_only_this_machine_reaches_it(
    listen: str, given: bool | None, taken: bool
) -> None:
    assert ApiSettings(listen=listen, remote_write=given).takes_writes is taken


class Flaky:
    """A bus that has taken a message and says that it may not have."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.broken = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    async def publish(self, exchange: str, key: str, message: Message) -> None:
        await self._bus.publish(exchange, key, message)
        if self.broken:
            raise Unavailable("the broker went away")


async def test_it_is_to_be_sent_again_while_the_broker_is_away(
    bus: Bus, pool: Pool, database_url: str
) -> None:
    flaky = Flaky(bus)
    async with serving(flaky, database_url) as client:  # type: ignore[arg-type]
        request = scrape(START_MS, 300)
        flaky.broken = True
        answer = await post(client, request)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
        flaky.broken = False
        await sent(client, request)
        assert await stored(pool) == expected(request)
        (agent,) = (await client.get("/v1/agents")).json()["items"]
        assert (agent["missing"], agent["version"]) == (0, "remote write")


async def test_a_broker_that_blocks_or_is_away_has_requests_sent_again(
    own_broker: Broker, pool: Pool, database_url: str
) -> None:
    request = scrape(START_MS, 300)
    async with rabbit_bus(own_broker.url, name="api", publish_timeout_s=2.0) as bus:
        await bus.declare(topology(1))
        async with serving(bus, database_url) as client:
            await sent(client, request)
            own_broker.management("set_vm_memory_high_watermark", "0.000001")
            await eventually(lambda: refused(client, request))
            own_broker.management("set_vm_memory_high_watermark", "0.4")
            await eventually(lambda: taken(client, request))
            await asyncio.to_thread(own_broker.kill)
            await eventually(lambda: refused(client, request))
            await asyncio.to_thread(own_broker.start)
            await eventually(lambda: taken(client, request))


async def refused(client: httpx.AsyncClient, request: Sequence[Series]) -> bool:
    answer = await post(client, request)
    assert answer.status_code in (204, 503), answer.text
    return answer.status_code == 503 and "retry-after" in answer.headers


async def taken(client: httpx.AsyncClient, request: Sequence[Series]) -> bool:
    return (await post(client, request)).status_code == 204


async def test_more_requests_than_are_taken_at_once_are_to_be_sent_again(
    bus: Bus, pool: Pool, database_url: str
) -> None:
    async with serving(bus, database_url, remote_write_requests=2) as client:
        answers_ = await asyncio.gather(
            *(post(client, scrape(START_MS + n, 50)) for n in range(12))
        )
        codes = {answer.status_code for answer in answers_}
        assert codes == {204, 503}


async def test_a_target_that_ended_has_gone_and_one_that_fell_silent_has_not(
    client: httpx.AsyncClient, pool: Pool
) -> None:
    def target(instance: str, value: float, at_ms: int) -> Series:
        return {"__name__": "up", "job": "node", "instance": instance}, [(value, at_ms)]

    for n in range(4):
        await sent(client, [target(name, 1.0, START_MS + n * 60_000) for name in ("a", "b")])
    await sent(client, [target("a", STALE, START_MS + 240_000)])
    items = (await client.get("/v1/agents")).json()["items"]
    assert [(item["instance"], item["state"], item["interval_s"]) for item in items] == [
        ("a", "gone", 60.0),
        ("b", "silent", 60.0),
    ]
    await sent(client, [target("a", 1.0, now_us() // 1000)])
    items = (await client.get("/v1/agents")).json()["items"]
    assert items[0]["state"] == "up"


async def test_what_is_written_is_no_part_of_the_agents_proof(
    client: httpx.AsyncClient, pool: Pool
) -> None:
    await sent(client, scrape(START_MS, 100))
    assert (await client.get("/v1/pipeline")).json() == {
        "generated": 0,
        "stored": 0,
        "dropped": 0,
        "in_flight": 0,
    }


async def test_a_process_that_starts_goes_on_with_all_layouts_that_there_are(
    bus: Bus, pool: Pool, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More of them than are read at a time, of one source and of many."""
    monkeypatch.setattr("services.api.placement.MAX_WIDTH", 2)
    monkeypatch.setattr("services.api.placement.OPEN_WIDTH", 1)
    monkeypatch.setattr("services.api.intake.SOURCES_AT_ONCE", 40)

    def everything(at_ms: int) -> list[Series]:
        others = [one(1.0, at_ms, instance=f"host-{n}") for n in range(45)]
        return [*others[:30], *scrape(at_ms, 2 * 2 * LAYOUTS_AT_ONCE + 10), *others[30:]]

    requests = [everything(START_MS + 15_000 * n) for n in range(2)]
    for request in requests:
        async with serving(bus, database_url) as client:
            await sent(client, request)
    assert await stored(pool) == expected(*requests)
    assert await layouts(pool) == 45 + 2 * LAYOUTS_AT_ONCE + 5


async def test_series_are_learned_again_when_too_many_are_known(
    client: httpx.AsyncClient, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.api.intake.MAX_KNOWN", 100)
    requests = [scrape(START_MS + 15_000 * n, 150) for n in range(3)]
    await sent(client, *requests)
    assert await stored(pool) == expected(*requests)
    assert await layouts(pool) == 1


async def test_the_database_is_only_needed_for_series_that_are_new(
    bus: Bus, pool: Pool, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(bus, database_url) as client:
        requests = [scrape(START_MS + 15_000 * n, 150) for n in range(2)]
        await sent(client, requests[0])

        async def away(_: Intake, __: Placement, sources: Sequence[Source]) -> None:
            if sources:
                raise asyncpg.InterfaceError("away")

        monkeypatch.setattr("services.api.intake.Intake._recall", away)
        await sent(client, requests[1])
        answer = await post(client, scrape(START_MS + 30_000, 151))
        assert answer.status_code == 503
        monkeypatch.undo()
        await sent(client, scrape(START_MS + 30_000, 151))


async def test_looking_for_layouts_of_others_is_put_off_while_the_database_is_away(
    bus: Bus, pool: Pool, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.api.intake.LOOK_AGAIN_S", 0.0)
    async with serving(bus, database_url) as client:

        async def away(_: Intake, __: Placement, sources: Sequence[Source]) -> None:
            if sources:
                raise asyncpg.InterfaceError("away")

        await sent(client, scrape(START_MS, 150))
        monkeypatch.setattr("services.api.intake.Intake._recall", away)
        await sent(client, scrape(START_MS + 15_000, 150))
