"""`vervet export`: raw samples in bulk, as OpenMetrics, CSV or Parquet.

They go out hour by hour, and within an hour some instances at a time, so that memory is bounded
whatever the range; the samples of a series stand in order of time. Each read is one snapshot.
"""

import os
import re
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, NamedTuple

from engine.promql.blocks import Block, dense_parts, distinct_blocks
from engine.promql.errors import QueryError
from engine.promql.matchers import MAX_PATTERN_CHARS, Matcher, MatchOp
from engine.promql.nodes import Selector
from engine.promql.parsing import parse_tree
from schemas.errors import Invalid
from services.clock import DAY_US, HOUR_US, clamped, instant, microseconds, now_us, rfc3339
from services.database import Pool
from services.export_formats import Format, Writer, pyarrow, writer
from services.frames import DEFAULT_LIMITS, PLANS, Reader
from services.operators import operators_pool
from services.runtime import Unable

BATCH_SERIES = 2000
"""Series of an hour that are read at once: 58 MB at a sample a second."""

PROGRESS_S = 5.0
"""Between two lines of progress."""

STDOUT = Path("-")


class Request(NamedTuple):
    """What to export: samples of the series that match, at start_us <= at < end_us."""

    matchers: tuple[Matcher, ...]
    start_us: int
    end_us: int
    form: Format
    output: Path


def request(selector: str, start: str, end: str | None, form: Format, output: Path) -> Request:
    """From what a person gave. Raises Invalid."""
    start_us = _instant_us("--start", start)
    end_us = now_us() if end is None else _instant_us("--end", end)
    if end is None and end_us <= start_us:
        raise Invalid(f"--start: {rfc3339(start_us)} is not in the past")
    if end_us <= start_us:
        raise Invalid(f"--end: {rfc3339(end_us)} is not after --start, {rfc3339(start_us)}")
    if form == "parquet":
        pyarrow()
        if output == STDOUT:
            raise Invalid("--output: Parquet needs a file")
    return Request(_matchers(selector), start_us, end_us, form, output)


def _matchers(selector: str) -> tuple[Matcher, ...]:
    try:
        tree = parse_tree(selector)
    except QueryError as error:
        raise Invalid(f"{selector}: {error}") from error
    if not isinstance(tree, Selector) or tree != Selector(tree.matchers):
        raise Invalid(f'{selector}: expected a selector such as up{{job="node"}}')
    return tree.matchers


def _instant_us(flag: str, text: str) -> int:
    """Of unix seconds, a date, or a date and time, UTC unless it says otherwise."""
    try:
        number = re.fullmatch(r"\d{1,11}(\.\d+)?", text)
        moment = (
            datetime.fromtimestamp(float(text), UTC) if number else datetime.fromisoformat(text)
        )
        return microseconds(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
    except (ValueError, OverflowError) as error:
        raise Invalid(
            f"{flag}: read {text!r}; expected 2026-01-31T10:00:00Z or unix seconds"
        ) from error


async def export(asked: Request, database_url: str) -> None:
    """Writes the file; it is there once it is whole. Raises Invalid and Unable."""
    try:
        async with operators_pool(database_url, read_only=True, settings=PLANS) as pool:
            await _export(asked, pool)
    except QueryError as error:
        raise Invalid(str(error)) from error


async def _export(asked: Request, pool: Pool) -> None:
    source = Source(pool, asked.matchers)
    batches = await source.batches()
    names = set() if asked.form == "openmetrics" else await source.label_names(batches)
    progress = Progress()
    with _whole(asked.output) as file:
        with _writing(asked.output):
            sink = writer(asked.form, file, names)
        async for start_us, end_us in source.hours(asked.start_us - 1, asked.end_us - 1):
            for batch in batches:
                for block in await source.read(batch, start_us, end_us):
                    with _writing(asked.output):
                        progress.count(_written(sink, block), end_us)
        with _writing(asked.output):
            sink.finish()
    progress.tell(f"exported {progress.samples:,} samples")


def _written(sink: Writer, block: Block) -> int:
    """Writes a block's samples, stale markers left out; how many."""
    samples = 0
    for indexes, at, values in dense_parts(block, keep_stale=False):
        columns = block.columns if indexes is None else [block.columns[i] for i in indexes]
        sink.write(columns, at, values)
        samples += values.size
    return samples


# Stops at the first row that it finds.
ANY_SAMPLE = """
select exists (select from frames where at > $1 and at <= $2)
    or exists (select from blocks where start > $1 - interval '1 hour' and start < $2)
"""

# What is stored lies between the outermost partitions; a block holds up to its upper end.
STORED = """
select min(lower), max(upper)
from unnest(array['frames', 'blocks']) as parent cross join list_partitions(parent)
having count(*) > 0
"""


def _cut(start_us: int, end_us: int, span_us: int) -> Iterator[tuple[int, int]]:
    """A range, open on the left, cut at the multiples of a span."""
    while start_us < end_us:
        until_us = min((start_us // span_us + 1) * span_us, end_us)
        yield start_us, until_us
        start_us = until_us


Batch = tuple[Matcher, ...]


class Source:
    """The samples of the series that match, some instances at a time."""

    def __init__(self, pool: Pool, matchers: Sequence[Matcher]) -> None:
        self._pool = pool
        self._matchers = tuple(matchers)
        self._reader = Reader(pool)

    async def batches(self) -> list[Batch]:
        """Matchers that part the series by instance, each of up to about BATCH_SERIES."""
        widths: dict[str, int] = {}
        for row in await self._pool.fetch("select source, width from layouts"):
            source: Mapping[str, str] = row["source"]
            if all(one.accepts(source[one.name]) for one in self._matchers if one.name in source):
                name = source.get("instance", "")  # a recording rule has none
                widths[name] = widths.get(name, 0) + row["width"]
        return list(_batches(widths))

    async def hours(self, start_us: int, end_us: int) -> AsyncIterator[tuple[int, int]]:
        """Hours (or what is in the range of them), open on the left, of days that have samples."""
        for lower, upper in await self._pool.fetch(STORED):
            start_us = max(start_us, microseconds(lower) - 1)
            end_us = min(end_us, microseconds(upper))
        for day in _cut(start_us, end_us, DAY_US):
            if await self._pool.fetchval(ANY_SAMPLE, clamped(day[0]), clamped(day[1])):
                for hour in _cut(*day, HOUR_US):
                    yield hour

    async def label_names(self, batches: Sequence[Batch]) -> set[str]:
        """Names of all labels of the series that match."""
        names: set[str] = set()
        for batch in batches:
            async with self._reader.snapshot() as snapshot:
                found = await snapshot.catalogue.matches(
                    snapshot.connection, (*self._matchers, *batch)
                )
            for one in found:
                names.update(one.source.labels, *(one.shape[place] for place in one.places))
        return names - {"__name__"}

    async def read(self, batch: Batch, start_us: int, end_us: int) -> list[Block]:
        """Blocks of which no two hold the same series, start_us < at <= end_us."""
        limits = DEFAULT_LIMITS._replace(series=sys.maxsize)
        async with self._reader.snapshot(limits) as snapshot:
            blocks = await snapshot.read((*self._matchers, *batch), start_us, end_us)
        return distinct_blocks(blocks)


def _batches(widths: Mapping[str, int]) -> Iterator[Batch]:
    names: list[str] = []
    series = chars = 0
    for name in sorted(widths):
        length = len(re.escape(name)) + 1
        if names and (series + widths[name] > BATCH_SERIES or chars + length > MAX_PATTERN_CHARS):
            yield _of_instances(names)
            names, series, chars = [], 0, 0
        names.append(name)
        series, chars = series + widths[name], chars + length
    if names:
        yield _of_instances(names)


def _of_instances(names: Sequence[str]) -> Batch:
    if len(names) == 1:
        return (Matcher("instance", MatchOp.EQUAL, names[0]),)
    return (Matcher("instance", MatchOp.REGEX, "|".join(map(re.escape, names))),)


@contextmanager
def _whole(output: Path) -> Iterator[IO[bytes]]:
    """A file that has its name once all is written; a broken export leaves none.

    What is no file, such as a pipe, is written to as it is.
    """
    if output == STDOUT:
        yield sys.stdout.buffer
        with _writing(output):
            sys.stdout.buffer.flush()
        return
    if output.exists() and not output.is_file():
        with _closing(output, output) as file:
            yield file
        return
    partial = output.with_name(f"{output.name}.partial")
    try:
        with _closing(partial, output) as file:
            yield file
            with _writing(output):
                file.flush()
                os.fsync(file.fileno())
        with _writing(output):
            partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _closing(path: Path, output: Path) -> Iterator[IO[bytes]]:
    """A file that is written to, on behalf of `output`."""
    with _writing(output):
        file = path.open("wb")
    try:
        yield file
    finally:
        with _writing(output):
            file.close()  # writes what is left


@contextmanager
def _writing(output: Path) -> Iterator[None]:
    """Tells errors of the file from those of the database."""
    try:
        yield
    except BrokenPipeError as error:
        # Python flushes it once more at its end, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise Unable("nobody reads the output any more") from error
    except OSError as error:
        raise Unable(f"{output}: {error.strerror or error}") from error


class Progress:
    """Tells on stderr how far a long export has come."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.samples = 0
        self._clock = clock
        self._told_at = clock()

    def count(self, samples: int, until_us: int) -> None:
        self.samples += samples
        if self._clock() - self._told_at >= PROGRESS_S:
            self.tell(f"{self.samples:,} samples, up to {instant(until_us):%Y-%m-%d %H:%M}")

    def tell(self, text: str) -> None:
        self._told_at = self._clock()
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
