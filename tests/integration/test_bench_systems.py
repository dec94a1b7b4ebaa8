"""The benchmarks' systems at their smallest: each takes the same samples and gives them back.

Figures of such runs mean nothing; that nothing is lost on the way, and that ours answers as
Prometheus does, is checked within.
"""

import asyncio

import pytest

from bench import disk, ingest, query
from bench.history import History, ours
from bench.recording import read
from bench.replay import Replay, resized
from tests.stack.session import Stack

pytestmark = [pytest.mark.broker, pytest.mark.database]

SERIES = 110


def say(_line: str) -> None:
    """A test has nothing to tell meanwhile."""


def history(hours: int) -> History:
    replay = Replay(query.labelled(resized(read(), SERIES)), 0, stretch=3)
    return History.of_whole_days(replay, 1, hours * query.HOUR_S * 1000 // replay.interval_ms)


@pytest.mark.parametrize("system", ["vervet", *ingest.PEERS])
async def test_a_run_of_ingest_stores_what_was_sent(stack: Stack, system: str) -> None:
    queues = "all" if system == "vervet" else ""
    one = ingest.Contender(system, 50, 200, queues)
    async with ingest.opened(stack, one, runs=1) as opened:
        run = await opened.run(20)
    assert run.samples == 20 * 50


async def test_history_is_sealed_and_answered_as_prometheus_answers(stack: Stack) -> None:
    stored = history(hours=2)
    asked = [one for one in query.questions() if one.span == "1h"]
    async with (
        query.filled(stack, "vervet", stored, say) as vervet,
        query.filled(stack, "prometheus", stored, say) as prometheus,
    ):
        for question in asked:
            await query.agree([vervet, prometheus], question, stored.end_ms / 1000)
        cost = await asyncio.to_thread(query.ask, vervet, asked[0], stored.end_ms / 1000)
    assert cost.latency_ms > 0


async def test_the_bytes_of_sealed_history_are_told_by_part(stack: Stack) -> None:
    async with ours(stack) as store:
        stored = history(hours=1)
        await store.fill(stored, say)
        filled, _ = await disk.sizes(store)
        await store.seal(stored)
        parts, apart = await disk.sizes(store)
    assert filled["head"] > stored.samples() * 8
    assert parts["head"] < filled["head"] / 10
    assert 0 < parts["history"] < stored.samples() * 8
    assert apart["wal"] > 0
