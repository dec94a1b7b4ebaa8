"""Expressions that hypothesis makes, answered as by a Prometheus that has the same samples.

VERVET_TEST_EXPRESSIONS: how many of each kind; `make compliance` asks for more.
"""

import os
from collections.abc import Iterator

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import promqlgrammar, promqljudge
from tests.promqljudge import Memory, Question
from tests.stack.peer_servers import prometheus_server
from tests.stack.session import Stack

EXPRESSIONS = int(os.environ.get("VERVET_TEST_EXPRESSIONS", "3000"))
SEED = 20

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
    assert not promqljudge.difference(ours, theirs), question


@settings(max_examples=EXPRESSIONS)
@given(rng=randoms, at_s=instants)
def test_an_instant_query(
    rng: promqlgrammar.Random, at_s: int, memory: Memory, prometheus: httpx.Client
) -> None:
    text = promqlgrammar.expression(rng, start_s=promqljudge.START_S)
    judge(Question(text, at_s), memory, prometheus)


@settings(max_examples=EXPRESSIONS // 3)
@given(rng=randoms, at_s=instants, step_s=st.sampled_from([5, 20, 65, 300]))
def test_a_range_query(
    rng: promqlgrammar.Random,
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
    rng: promqlgrammar.Random, ranged: bool, memory: Memory, prometheus: httpx.Client
) -> None:
    text = promqlgrammar.wrong(rng, start_s=promqljudge.START_S)
    judge(Question(text, 303, 363 if ranged else None, 20), memory, prometheus)
