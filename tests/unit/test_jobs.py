"""Which job is due, decided on what the database knows of it."""

from datetime import UTC, datetime, timedelta

import pytest

from services.clock import EPOCH
from services.database import Pool
from services.ingest.jobs import Job, OutOfTime, Progress, State, due_at, next_job

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
S, M, H = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)


async def nothing(_: Pool, __: datetime, ___: Progress) -> timedelta:
    return timedelta(0)


def job(name: str, every: timedelta = H) -> Job:
    return Job(name, every, M, nothing)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        pytest.param(State(), EPOCH, id="never ran: at once"),
        pytest.param(State(None, NOON, NOON + M), NOON + H, id="done: every hour from its start"),
        pytest.param(State(NOON + S, NOON, NOON + M), NOON + S, id="asked for: now"),
        pytest.param(State(NOON + S, NOON, NOON + M, 9), NOON + S, id="asked for in a pause"),
        pytest.param(State(None, NOON, NOON + M, 1), NOON + M + 10 * S, id="failed once"),
        pytest.param(State(None, NOON, NOON + M, 2), NOON + M + 20 * S, id="failed twice"),
        pytest.param(State(None, NOON, NOON + M, 99), NOON + 11 * M, id="failing for long"),
        pytest.param(State(None, NOON, None, 1), NOON + 10 * S, id="its first run was cut off"),
        pytest.param(State(None, NOON, NOON - H, 1), NOON + 10 * S, id="a later run was cut off"),
    ],
)
def test_a_job_is_due(state: State, expected: datetime) -> None:
    assert due_at(H, state) == expected


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        pytest.param({"a": NOON, "b": NOON}, None, id="none is due before its time"),
        pytest.param({"a": NOON, "b": NOON - H}, "b", id="due to the second"),
        pytest.param({"a": NOON - 2 * H, "b": NOON - 3 * H}, "b", id="the longest due goes first"),
        pytest.param({"a": NOON - 2 * H, "b": NOON - 2 * H}, "a", id="else in their order"),
    ],
)
def test_the_next_job(states: dict[str, datetime], expected: str | None) -> None:
    known = {name: State(None, started_at, started_at) for name, started_at in states.items()}
    found = next_job([job("a"), job("b")], known, NOON)
    assert (found and found.name) == expected


async def test_a_run_goes_on_while_it_has_time() -> None:
    progress = Progress(H)
    progress("1 of 2")
    assert progress.text == "1 of 2"


async def test_a_run_is_stopped_between_transactions_when_its_time_is_over() -> None:
    progress = Progress(timedelta(0))
    with pytest.raises(OutOfTime):
        progress("1 of 2")
    assert progress.text == "1 of 2"
