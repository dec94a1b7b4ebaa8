"""Answering queries: so many at once, read on the loop; what is much work is computed in threads.

A query is stopped when its time is over and when its client goes away: the statement that runs in
the database at once, the computation at its next check (engine/promql/limits.py).
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from threading import Event
from typing import Any, TypeVar

from fastapi import Request

from engine.promql import Block, Matrix, Query, QueryError, Result, Select, Vector
from engine.promql.limits import Limits
from services import frames
from services.api.costs import Costs, Read
from services.api.errors import Busy, Canceled, TimedOut, Unprocessable
from services.api.settings import ApiSettings
from services.api.weighing import is_little
from services.frames import Reader

T = TypeVar("T")
Check = Callable[[], None]
"""Raises where a computation is to end."""


class _Stopped(Exception):
    """The computation was told to end: nobody waits for its result any more."""


class Turns:
    """Bounds the queries that are answered at once, and those that wait for their turn."""

    def __init__(self, concurrency: int, queue: int) -> None:
        self._concurrency, self._queue = concurrency, queue
        self._free = asyncio.Semaphore(concurrency)
        self._present = 0
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="query")

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Holds one of the places. Raises Busy where none is left to wait in."""
        if self._present >= self._concurrency + self._queue:
            raise Busy(
                f"{self._concurrency} queries are answered at once, and {self._queue} may wait"
                " (query_concurrency, query_queue): all places are taken"
            )
        self._present += 1
        try:
            async with self._free:
                yield
        finally:
            self._present -= 1

    def are_free(self) -> bool:
        """Whether no query is answered."""
        return not self._present

    async def compute(self, work: Callable[[Check], T]) -> T:
        """The result of `work` in a thread. Where the caller is cancelled, its next check raises.

        Raises Unprocessable for what can't be computed.
        """
        stop = Event()

        def check() -> None:
            if stop.is_set():
                raise _Stopped

        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, computed, work, check)
        finally:
            stop.set()

    def close(self) -> None:
        """No computation starts any more; those that run are left to end."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def computed(work: Callable[[Check], T], check: Check) -> T:
    """The result of `work`. Raises Unprocessable for what can't be computed."""
    try:
        return work(check)
    except QueryError as error:
        raise Unprocessable(str(error)) from error
    except OverflowError as error:
        raise Unprocessable("an instant or a duration is out of range") from error
    except MemoryError as error:
        raise Unprocessable("the query needs more memory than there is") from error


@dataclass(frozen=True, slots=True)
class Asked:
    """A query with its steps, in µs. step_us is 0 for one instant, which is start and end."""

    query: Query
    start_us: int
    end_us: int
    step_us: int = 0

    @property
    def steps(self) -> int:
        return (self.end_us - self.start_us) // self.step_us + 1 if self.step_us else 1

    @property
    def on_grid(self) -> bool:
        """Whether rollups of samples may serve as well as these: so long, and in such steps."""
        long = self.end_us - self.start_us >= frames.WORTH_ROLLUPS_US
        return long and self.start_us % GRID_US == 0 and self.step_us % GRID_US == 0

    def answer(self, blocks: dict[Select, list[Block]], limits: Limits) -> Result:
        """The result, from what was read. Raises QueryError."""
        if self.step_us:
            return self.query.range(self.start_us, self.end_us, self.step_us, blocks, limits)
        return self.query.instant(self.start_us, blocks, limits)


GRID_US = 300_000_000
"""Buckets of the finer rollups."""


def limits_of(settings: ApiSettings, check: Check) -> Limits:
    """The settings' bounds of one evaluation."""
    return Limits(steps=settings.max_points, cells=settings.query_max_samples, check=check)


async def evaluate(
    turns: Turns,
    reader: Reader,
    settings: ApiSettings,
    asked: Asked,
    timeout: timedelta,
    present: Callable[[Result, Costs, Check], T],
) -> T:
    """What `present` makes of the result, in the thread that computed it, or here if that is
    little work.

    Raises Unprocessable, TimedOut, Busy.
    """
    costs = Costs()
    begun = False
    try:
        limits_of(settings, _go_on).check_steps(asked.steps)
        began = time.perf_counter()
        async with asyncio.timeout(timeout / _SECOND), turns.turn():
            begun = True
            costs.phases["queue"] = time.perf_counter() - began
            with costs.phase("read"):
                ready, blocks = await _read(reader, settings, asked, costs)

            def work(check: Check) -> T:
                with costs.phase("evaluate"):
                    result = ready.answer(blocks, limits_of(settings, check))
                    blocks.clear()
                    check_size(result, settings.query_max_answer)
                return present(result, costs, check)

            if is_little(ready.query.tree, asked.steps, asked.step_us, costs.reads):
                return computed(work, _go_on)
            return await turns.compute(work)
    except QueryError as error:
        raise Unprocessable(str(error)) from error
    except TimeoutError as error:
        place = "expression evaluation" if begun else "query queue"
        raise TimedOut(f"query timed out in {place} (query_timeout)") from error


@asynccontextmanager
async def bounded(settings: ApiSettings) -> AsyncIterator[None]:
    """Ends what is read in it when it takes too long. Raises TimedOut, and Unprocessable for
    what is past another bound."""
    try:
        async with asyncio.timeout(settings.query_timeout / _SECOND):
            yield
    except QueryError as error:
        raise Unprocessable(str(error)) from error
    except TimeoutError as error:
        raise TimedOut("query timed out (query_timeout)") from error


_SECOND = timedelta(seconds=1)


def _go_on() -> None:
    """Where there is nothing to stop yet."""


def check_size(result: Result, most: int) -> None:
    """Raises QueryError where an answer would be too large to be sent."""
    samples = result.values.size if isinstance(result, Vector | Matrix) else 1
    if samples > most:
        raise QueryError(
            f"an answer of {samples:,} samples; at most {most:,} (query_max_answer):"
            " aggregate, or use a longer step"
        )


async def _read(
    reader: Reader, settings: ApiSettings, asked: Asked, costs: Costs
) -> tuple[Asked, dict[Select, list[Block]]]:
    """The blocks of every selector, and what to ask of them: where rollups stand in for samples,
    it is put in other terms. Raises QueryError past the bounds on series and samples."""
    blocks: dict[Select, list[Block]] = {}
    most = frames.Limits(settings.query_max_series, settings.query_max_samples)
    selects = asked.query.selects(asked.start_us, asked.end_us)
    async with reader.snapshot(most, alone=len(selects) < 2) as snapshot:
        if selects and (asked.on_grid or await snapshot.lacks(min(s.start_us for s in selects))):
            asked = replace(asked, query=asked.query.over_rollups(on_grid=asked.on_grid))
            selects = asked.query.selects(asked.start_us, asked.end_us)
        for select in selects:
            began, before = time.perf_counter(), snapshot.samples.copy()
            found = await snapshot.read_select(select)
            tiers = snapshot.samples - before
            costs.reads.append(_read_of(select, found, tiers, time.perf_counter() - began))
            blocks[select] = found
        costs.notes += snapshot.notes
    return asked, blocks


def _read_of(
    select: Select, blocks: Sequence[Block], tiers: Mapping[str, int], seconds: float
) -> Read:
    return Read(
        select,
        series=sum(len(block.labels) for block in blocks),
        layouts=len(blocks),
        instants=sum(block.at.size for block in blocks),
        samples=sum(tiers.values()),
        tiers=tiers,
        seconds=seconds,
    )


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client goes away. Raises Canceled then.

    The request's body must have been read.
    """
    running = asyncio.ensure_future(work)
    try:
        await asyncio.wait({running}, timeout=UNNOTICED_S)
        if not running.done():
            await _unless_disconnected(request, running)
        return running.result()
    finally:
        if not running.done():
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


UNNOTICED_S = 0.05
"""A client that goes away sooner is not noticed: to watch costs as much as a small answer."""


async def _unless_disconnected(request: Request, running: "asyncio.Future[Any]") -> None:
    """Returns when it is done. Raises Canceled when the client goes away first."""
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({running, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            raise Canceled("the client went away")
    finally:
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
