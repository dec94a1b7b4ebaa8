"""Expressions that hypothesis makes, answered as by a Prometheus that has the same samples.

VERVET_TEST_EXPRESSIONS: how many of each kind; `make compliance` asks for more.
"""

import asyncio
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from random import Random

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.promql import NAME
from schemas.layouts import Series
from schemas.topology import topology
from services.bus_memory import memory_bus
from services.database import open_pool
from services.ingest.batch import Layouts, Window, receive
from services.ingest.jobs import Progress
from services.ingest.sealing import seal
from services.ingest.store import Store
from tests import promqlgrammar, promqljudge, promqlqueries
from tests.builders import delivery, sample_message
from tests.integration.test_api import answers, serving
from tests.processes import eventually
from tests.promqljudge import Memory, Question
from tests.stack.peer_servers import prometheus_server
from tests.stack.session import Stack

EXPRESSIONS = int(os.environ.get("VERVET_TEST_EXPRESSIONS", "1500"))
SEED = 20
FIRST_US = promqljudge.FIRST_S * promqljudge.SECOND_US

randoms = st.randoms(use_true_random=False)
instants = st.integers(5, promqljudge.STEPS + 10).map(lambda n: n * promqljudge.STEP_S + 3)


@pytest.fixture(scope="module")
def prometheus(stack: Stack) -> Iterator[httpx.Client]:
    """A Prometheus that has the samples."""
    with prometheus_server(stack) as server:
        promqljudge.write(server.write_url, promqljudge.samples(SEED))
        with httpx.Client(base_url=server.url, trust_env=False, timeout=30) as client:
            yield client


@pytest.fixture(scope="module")
def memory() -> Memory:
    return Memory(promqljudge.samples(SEED))


def judge(question: Question, memory: Memory, prometheus: httpx.Client) -> None:
    ours = promqljudge.answered(question, memory)
    theirs = promqljudge.asked(prometheus, question)
    assert not promqljudge.difference(ours, theirs, question.text), question


@settings(max_examples=EXPRESSIONS)
@given(rng=randoms, at_s=instants)
def test_an_instant_query(rng: Random, at_s: int, memory: Memory, prometheus: httpx.Client) -> None:
    text = promqlgrammar.expression(rng, start_s=promqljudge.START_S)
    judge(Question(text, at_s), memory, prometheus)


@settings(max_examples=EXPRESSIONS // 3)
@given(rng=randoms, at_s=instants, step_s=st.sampled_from([5, 20, 65, 300]))
def test_a_range_query(
    rng: Random,
    at_s: int,
    step_s: int,
    memory: Memory,
    prometheus: httpx.Client,
) -> None:
    text = promqlgrammar.expression(rng, start_s=promqljudge.START_S)
    judge(Question(text, at_s, at_s + 12 * step_s, step_s), memory, prometheus)


@settings(max_examples=EXPRESSIONS // 3)
@given(rng=randoms, ranged=st.booleans())
def test_a_query_that_is_wrong(
    rng: Random, ranged: bool, memory: Memory, prometheus: httpx.Client
) -> None:
    text = promqlgrammar.wrong(rng, start_s=promqljudge.START_S)
    judge(Question(text, 303, 363 if ranged else None, 20), memory, prometheus)


async def stored(url: str, *, sealed: bool) -> None:
    """The samples in the database, a message per host; `sealed`: as history."""
    bounds = Window(timedelta(days=1), timedelta(days=1)).bounds_us(FIRST_US)
    messages = []
    for host in promqljudge.HOSTS:
        series = [one for one in promqljudge.samples(SEED) if one[0]["host"] == host]
        rows = list(zip(*(values for _, values in series), strict=True))
        messages.append(
            sample_message(
                *rows,
                instance=f"host-{host}",
                at_us=FIRST_US,
                step_us=promqljudge.STEP_S * promqljudge.SECOND_US,
                series=[described(labels) for labels, _ in series],
            )
        )
    async with open_pool(url) as pool:
        layouts = Layouts()
        await Store(pool).write([receive(delivery(m), m, layouts, bounds) for m in messages])
        if sealed:
            await seal(pool, datetime.now(UTC), Progress(timedelta(minutes=1)))
        assert bool(await pool.fetchval("select count(*) from frames")) is not sealed


def described(labels: Mapping[str, str]) -> Series:
    own = {name: value for name, value in labels.items() if name not in (NAME, "instance", "job")}
    return Series(labels[NAME], own, "counter" if "counter" in labels[NAME] else "gauge")


@pytest.mark.parametrize("sealed", [False, True], ids=["head", "sealed"])
async def test_queries_over_http_of_what_is_stored(
    sealed: bool, database_url: str, prometheus: httpx.Client
) -> None:
    await stored(database_url, sealed=sealed)
    async with memory_bus() as bus:
        await bus.declare(topology(1))
        async with serving(bus, database_url) as opened:
            await eventually(lambda: answers(opened, "/-/ready"))
            await asyncio.to_thread(judge_over_http, str(opened.base_url), prometheus)


def judge_over_http(url: str, prometheus: httpx.Client) -> None:
    with httpx.Client(base_url=url, trust_env=False, timeout=30) as client:

        @settings(max_examples=EXPRESSIONS // 20)
        @given(rng=randoms, at_s=instants, step_s=st.sampled_from([0, 20, 65]))
        def agrees(rng: Random, at_s: int, step_s: int) -> None:
            make = rng.choice([promqlgrammar.expression] * 4 + [promqlgrammar.wrong])
            text = make(rng, start_s=promqljudge.START_S)
            question = Question(text, at_s, at_s + 12 * step_s if step_s else None, step_s)
            ours = promqljudge.asked(client, question)
            theirs = promqljudge.asked(prometheus, question)
            assert not promqljudge.difference(ours, theirs, question.text), question

        agrees()


def test_every_way_to_write_an_operator_or_function(
    memory: Memory, prometheus: httpx.Client
) -> None:
    wrong = []
    for text in promqlqueries.queries():
        for question in (Question(text, 403), Question(text, 53, 713, 60)):
            ours = promqljudge.answered(question, memory)
            said = promqljudge.difference(ours, promqljudge.asked(prometheus, question), text)
            if said:
                wrong.append(f"{question}: {said}")
    assert not wrong, "\n".join(wrong)
