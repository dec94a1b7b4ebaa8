"""How long each tier of samples is kept: what may be set, and `vervet retention`, which sets it."""

import re
from collections.abc import Mapping
from datetime import MINYEAR, datetime, timedelta
from typing import NamedTuple

from schemas.durations import format_duration, parse_duration
from schemas.errors import Invalid
from services.clock import rfc3339
from services.database import Connection, Pool
from services.operators import operators_pool
from services.query import aligned

TABLES = {"raw": ("frames", "blocks"), "5m": ("rollups_5m",), "1h": ("rollups_1h",)}
"""The tables of each tier, from fine to coarse. Of the first, rows move to the second."""

MIN_RAW = timedelta(days=1)
"""Less is refused: hosts that were cut off for a night could never catch up."""

MIN_BYTES = 1 << 20

FOREVER = "forever"
UNBOUNDED = "none"

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kMGT]?)(i?)B?\Z")
_POWERS = {"": 0, "k": 1, "M": 2, "G": 3, "T": 4}


class Retention(NamedTuple):
    """By tier the span that is kept (None: for ever) and the instant before which all is dropped.

    max_bytes: bound on all tiers together, None for no bound.
    """

    keep: Mapping[str, timedelta | None]
    floor: Mapping[str, datetime]
    max_bytes: int | None


async def read_retention(connection: Connection | Pool) -> Retention:
    """What is set now."""
    rows = {row["tier"]: row for row in await connection.fetch("select * from retention")}
    return Retention(
        {tier: rows[tier]["keep"] for tier in TABLES},
        {tier: rows[tier]["floor"] for tier in TABLES},
        rows["raw"]["max_bytes"],
    )


def check(keep: Mapping[str, timedelta | None]) -> None:
    """Raises Invalid for spans that cannot be kept so."""
    raw = keep["raw"]
    if raw is not None and raw < MIN_RAW:
        raise Invalid(f"--raw: {format_duration(raw)}; expected at least {_shown(MIN_RAW)}")
    for fine, coarse in (("raw", "5m"), ("5m", "1h")):
        if _span(keep[coarse]) < _span(keep[fine]):
            raise Invalid(
                f"--{coarse}: {_shown(keep[coarse])} is shorter than the {_shown(keep[fine])} of "
                f"{fine}; expected at least as long"
            )


def _span(keep: timedelta | None) -> timedelta:
    return timedelta.max if keep is None else keep


def _shown(keep: timedelta | None) -> str:
    return FOREVER if keep is None else format_duration(keep)


def parse_keep(flag: str, text: str) -> timedelta | None:
    """A span, or None for "forever". Raises Invalid."""
    if text == FOREVER:
        return None
    try:
        return parse_duration(text)
    except ValueError as error:
        raise Invalid(f"--{flag}: {error}, nor {FOREVER!r}") from error


def parse_size(text: str) -> int | None:
    """Bytes of "50GB", "1.5TB" or "512MiB"; None for "none". Raises Invalid."""
    if text == UNBOUNDED:
        return None
    match = _SIZE.match(text)
    if match is None:
        raise Invalid(f"--max-size: {text[:40]!r} is not a size such as 50GB, nor {UNBOUNDED!r}")
    number, prefix, binary = match.groups()
    size: int = round(float(number) * (1024 if binary else 1000) ** _POWERS[prefix])
    if not MIN_BYTES <= size < 2**63:
        raise Invalid(f"--max-size: {text[:40]}; expected at least 1 MiB, and less than 2^63 bytes")
    return size


def show_size(size: int) -> str:
    """ "1.5 GB": three digits are enough for a person."""
    number, power = float(size), 0
    while number >= 999.5 and power < 4:
        number, power = number / 1000, power + 1
    return f"{number:.3g} {list(_POWERS)[power]}B"


async def answer(database_url: str, keep: Mapping[str, str | None], max_size: str | None) -> str:
    """Change what is given, and show what holds now.

    keep: texts by tier. Raises Invalid for what cannot be set, and Unable without our database.
    """
    spans = {tier: parse_keep(tier, text) for tier, text in keep.items() if text is not None}
    size = None if max_size is None else parse_size(max_size)
    async with (
        operators_pool(database_url) as pool,
        pool.acquire() as connection,
        connection.transaction(),
    ):
        await connection.execute("select from retention for update")
        await _change(connection, spans)
        if max_size is not None:
            await connection.execute("update retention set max_bytes = $1 where tier = 'raw'", size)
        return await _table(connection)


async def _change(connection: Connection, spans: Mapping[str, timedelta | None]) -> None:
    check({**(await read_retention(connection)).keep, **spans})
    for tier, keep in spans.items():
        await connection.execute("update retention set keep = $2 where tier = $1", tier, keep)


async def _table(connection: Connection) -> str:
    retention = await read_retention(connection)
    rows = [["tier", "kept", "dropped before", "size"]]
    total = 0
    for tier, tables in TABLES.items():
        size = await connection.fetchval(
            """select coalesce(sum(bytes), 0)::bigint
               from unnest($1::text[]) as parent cross join list_partitions(parent)""",
            list(tables),
        )
        total += size
        floor = retention.floor[tier]
        dropped = "nothing" if floor.year == MINYEAR else rfc3339(floor)
        rows.append([tier, _shown(retention.keep[tier]), dropped, show_size(size)])
    bound = UNBOUNDED if retention.max_bytes is None else show_size(retention.max_bytes)
    return f"{aligned(rows)}\n\n{show_size(total)} in all; bound: {bound}"
