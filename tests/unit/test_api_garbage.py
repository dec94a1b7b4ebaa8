"""Objects that only hold each other are looked for when nobody waits for an answer."""

import asyncio
import gc
import weakref
from collections.abc import Iterator

import pytest

from services.api import garbage
from tests.processes import eventually


class Ring:
    """Holds itself."""

    def __init__(self) -> None:
        self.ring = self


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(garbage, "EVERY_S", 0.01)
    yield
    assert gc.get_threshold() == garbage.USUAL


async def test_a_ring_goes_in_a_pause_and_not_before() -> None:
    idle = False
    async with asyncio.TaskGroup() as group:
        task = group.create_task(garbage.collect_in_pauses(lambda: idle))
        await eventually(lambda: gc.get_freeze_count() > 0)
        held = Ring()
        gc.collect(1)  # from here on it is no young object
        ring = weakref.ref(held)
        del held
        before = gc.get_stats()[2]["collections"]
        made = [[number] for number in range(500_000)]
        assert gc.get_stats()[2]["collections"] == before
        assert ring() is not None
        idle = True
        await eventually(lambda: ring() is None)
        assert len(made) == 500_000
        task.cancel()


async def test_it_is_looked_for_at_last_though_something_is_always_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(garbage, "PATIENCE_S", 0.05)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(garbage.collect_in_pauses(lambda: False))
        await eventually(lambda: gc.get_freeze_count() > 0)
        ring = weakref.ref(Ring())
        await eventually(lambda: ring() is None)
        task.cancel()


async def test_what_is_kept_is_not_looked_through_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "LONG_S", 0.0)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(garbage.collect_in_pauses(lambda: True))
        await eventually(lambda: gc.get_freeze_count() > 0)
        before = gc.get_freeze_count()
        kept = [[number] for number in range(100_000)]
        await eventually(lambda: gc.get_freeze_count() >= before + len(kept))
        task.cancel()
    assert gc.get_freeze_count() == 0
