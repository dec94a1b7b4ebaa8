"""Reading stored frames: blocks of series by matchers and range, binary all the way.

The port between stores and the expression engine is `engine.promql.blocks.Block`; this is the
database's side of it.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.promql.blocks import NAME, Block, Columns
from engine.promql.errors import QueryError
from engine.promql.matchers import Matcher, MatchOp, matches
from services import clock
from services.database import Connection, Pool

MAX_SERIES = 50_000
"""Series that one selector may select; above it the expression is refused, at once."""

MAX_CELLS = 100_000_000
"""Values that one selector may read: 800 MB, the bound on a query's memory."""

NARROW = 4
"""Below one in NARROW columns, single values are sent instead of whole rows."""

_POSTGRES_EPOCH_US = 946_684_800_000_000
_HEADER_BYTES = 19
_TRAILER_BYTES = 2
_LAST_US = clock.microseconds(datetime(9999, 1, 1, tzinfo=UTC))


@dataclass(frozen=True, slots=True)
class Selected:
    """One column of one layout that a selector selects."""

    layout_id: int
    position: int
    labels: Mapping[str, str]


def _clamped(at_us: int) -> datetime:
    """The instant, or the nearest that PostgreSQL and datetime can hold."""
    return clock.instant(min(max(at_us, 0), _LAST_US))


async def read(pool: Pool, matchers: Sequence[Matcher], start_us: int, end_us: int) -> list[Block]:
    """Blocks of all series that match, with rows in start..end, both included; one per layout.

    Raises QueryError past MAX_SERIES or MAX_CELLS.
    """
    async with pool.acquire() as connection, connection.transaction(readonly=True):
        columns: defaultdict[int, list[Selected]] = defaultdict(list)
        for one in await select(connection, matchers):
            columns[one.layout_id].append(one)
        blocks, cells = [], 0
        for layout_id, selected in columns.items():
            block = await _read_layout(connection, layout_id, selected, start_us, end_us)
            cells += block.values.size
            if cells > MAX_CELLS:
                raise QueryError(f"the query reads more than {MAX_CELLS} samples; narrow it")
            if block.at.size:
                blocks.append(block)
        return blocks


async def select(connection: Connection, matchers: Sequence[Matcher]) -> list[Selected]:
    """The columns whose series match. Raises QueryError past MAX_SERIES."""
    where, arguments = series_condition(matchers)
    rows = await connection.fetch(
        f"""select layout_id, position, metric, labels
            from series join layout_series on series_id = id
            where {where} order by layout_id, position""",
        *arguments,
    )
    found = [
        Selected(row["layout_id"], row["position"], {NAME: row["metric"], **row["labels"]})
        for row in rows
    ]
    found = [one for one in found if matches(matchers, one.labels)]
    if len(found) > MAX_SERIES:
        raise QueryError(f"the query selects {len(found)} series; at most {MAX_SERIES}")
    return found


_PLAIN_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*\Z")


def series_condition(matchers: Sequence[Matcher]) -> tuple[str, list[Any]]:
    """SQL on `series` that holds for every series that matches, and its arguments.

    It may hold for more: regular expressions are decided in Python, on what this leaves.
    """
    parts: list[str] = ["true"]
    arguments: list[Any] = []
    equal: dict[str, str] = {}
    for one in matchers:
        if one.op is not MatchOp.EQUAL:
            continue
        if one.name == NAME:
            arguments.append(one.value)
            parts.append(f"metric = ${len(arguments)}")
        elif one.value:
            equal[one.name] = one.value
    if equal:
        arguments.append(equal)
        parts.append(f"labels @> ${len(arguments)}")
    return " and ".join(parts), arguments


async def _read_layout(
    connection: Connection, layout_id: int, selected: Sequence[Selected], start_us: int, end_us: int
) -> Block:
    width = await connection.fetchval("select width from layouts where id = $1", layout_id)
    narrow = len(selected) * NARROW < width
    cells = ", ".join(f"values[{one.position}]" for one in selected)
    data = bytearray()

    async def keep(chunk: bytes) -> None:
        data.extend(chunk)

    await connection.copy_from_query(
        f"""select at, {f"array[{cells}]" if narrow else "values"} from frames
            where layout_id = $1 and at >= $2 and at <= $3 order by at""",
        layout_id,
        _clamped(start_us),
        _clamped(end_us),
        output=keep,
        format="binary",
    )
    at, values = decode_copy(data, len(selected) if narrow else width)
    if not narrow:
        positions = [one.position - 1 for one in selected]
        values = values[:, positions]
    return Block(Columns([one.labels for one in selected]), at, values)


def decode_copy(data: bytearray, width: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """`at` (rows,) in µs since 1970 and `values` (rows, width) of binary COPY of (at, float8[])."""
    cell = np.dtype([("length", ">i4"), ("value", ">u8")])
    row = np.dtype(
        [
            ("fields", ">i2"),
            ("at_length", ">i4"),
            ("at", ">i8"),
            ("array", "V24"),
            ("cells", cell, (width,)),
        ]
    )
    body = memoryview(data)[_HEADER_BYTES : len(data) - _TRAILER_BYTES]
    rows = np.frombuffer(body, row)
    bits = np.ascontiguousarray(rows["cells"]["value"]).astype("<u8")
    return rows["at"].astype(np.int64) + _POSTGRES_EPOCH_US, bits.view(np.float64)
