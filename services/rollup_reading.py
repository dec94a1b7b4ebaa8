"""Reading rollups in place of samples that retention has dropped."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from asyncpg import Record

from services import clock
from services.database import Connection
from services.frame_pieces import Piece
from services.rollup_pieces import ARRAYS, COARSE, FINE, Buckets, Tier, buckets_of, stand_in
from services.sample_reading import Wanted

NEVER_US = -(2**62)
"""A floor below which nothing was dropped."""


class Floors(NamedTuple):
    """Up to where samples, and rollups of 5 minutes, were dropped: µs since 1970."""

    raw_us: int = NEVER_US
    fine_us: int = NEVER_US


FLOORS = """
select tier, (extract(epoch from floor) * 1000000)::bigint as floor_us
from retention where isfinite(floor)
"""


async def read_floors(connection: Connection) -> Floors:
    """What was dropped."""
    return floors_of({row["tier"]: row["floor_us"] for row in await connection.fetch(FLOORS)})


def floors_of(known: Mapping[str, int]) -> Floors:
    """By tier up to where it was dropped, µs; a tier of which nothing was has none."""
    raw_us = known.get("raw", NEVER_US)
    return Floors(raw_us, min(raw_us, known.get("5m", NEVER_US)))


class Part(NamedTuple):
    """A tier, and the range start_us < bucket's end <= end_us for which it answers."""

    tier: Tier
    start_us: int
    end_us: int


def parts_of(floors: Floors, start_us: int, end_us: int) -> list[Part]:
    """Which tiers answer for what of a range, the oldest first; samples answer for the rest."""
    fine = Part(FINE, max(start_us, floors.fine_us), min(end_us, floors.raw_us))
    coarse = Part(COARSE, start_us, min(end_us, floors.fine_us))
    return [one for one in (coarse, fine) if one.start_us < one.end_us]


# The oldest frame that is not sealed, of each layout.
UNSEALED = """
select (extract(epoch from min(first.at)) * 1000000)::bigint
from unnest($3::integer[]) as wanted (layout_id)
cross join lateral (
    select at from frames f where f.layout_id = wanted.layout_id and at > $1 and at <= $2
    order by at limit 1) as first
"""


async def sealed_until(
    connection: Connection, wanted: Sequence[Wanted], start_us: int, end_us: int
) -> int:
    """Up to where in a range the rollups of these layouts tell all that their samples do."""
    first_us: int | None = await connection.fetchval(
        UNSEALED,
        clock.clamped(start_us),
        clock.clamped(end_us),
        [one.selected.layout_id for one in wanted],
    )
    last_us = end_us if first_us is None else min(first_us - 1, end_us)
    return last_us // FINE.row_us * FINE.row_us


async def read_rows(
    connection: Connection, part: Part, column: str, wanted: Sequence[Wanted]
) -> list[Record]:
    """Rows of a tier: place in `wanted`, start in µs, counts, and the arrays of `column`."""
    buckets = part.tier.buckets
    names = ("counts", *ARRAYS[column])
    arrays = ", ".join(
        f"array_send({name}[(lower - 1) * {buckets} + 1 : upper * {buckets}])" for name in names
    )
    return await connection.fetch(
        f"""select place, (extract(epoch from start) * 1000000)::bigint as start_us, {arrays}
            from unnest($3::integer[], $4::integer[], $5::integer[], $6::integer[])
                as wanted (place, layout_id, lower, upper)
            cross join lateral (
                select start, {", ".join(names)} from {part.tier.table} r
                where r.layout_id = wanted.layout_id and start >= $1 and start < $2 offset 0
            ) as row""",
        clock.clamped(part.start_us - part.tier.row_us),
        clock.clamped(part.end_us),
        list(range(len(wanted))),
        [one.selected.layout_id for one in wanted],
        [one.lower for one in wanted],
        [one.upper for one in wanted],
    )


async def count_series(connection: Connection, part: Part, wanted: Sequence[Wanted]) -> int:
    """Over all rows of a tier that would be read: how many wanted series each tells of."""
    count: int = await connection.fetchval(
        f"""select coalesce(sum(series * (
                select count(*) from {part.tier.table} r
                where r.layout_id = wanted.layout_id and start >= $1 and start < $2)), 0)::bigint
            from unnest($3::integer[], $4::integer[]) as wanted (layout_id, series)""",
        clock.clamped(part.start_us - part.tier.row_us),
        clock.clamped(part.end_us),
        [one.selected.layout_id for one in wanted],
        [len(one.selected.columns) for one in wanted],
    )
    return count


def pieces_of(
    read: Sequence[tuple[Part, Sequence[Record]]],
    column: str,
    window_us: int,
    wanted: Sequence[Wanted],
) -> dict[int, Piece]:
    """By place in `wanted` what stands in for the samples, where there are rollups.

    Where a series moved from one layout to another within a bucket, both have a part of it: that of
    the newer layout comes after the other's, by a microsecond each.
    """
    ids = sorted({one.selected.layout_id for one in wanted}, reverse=True)
    earlier_us = {layout_id: rank for rank, layout_id in enumerate(ids)}
    tiers: defaultdict[int, list[Buckets]] = defaultdict(list)
    for part, rows in read:
        of_place: defaultdict[int, list[Record]] = defaultdict(list)
        for row in rows:
            of_place[row["place"]].append(row)
        for place, some in of_place.items():
            one = wanted[place]
            arrays = [tuple(row)[2:] for row in some]
            starts = [row["start_us"] for row in some]
            width = one.upper - one.lower + 1
            tiers[place].append(
                buckets_of(part.tier, part.end_us, starts, arrays, width, one.positions)
            )
    found = {}
    for place, of_tiers in tiers.items():
        piece = stand_in(column, of_tiers, window_us)
        shift_us = earlier_us[wanted[place].selected.layout_id]
        found[place] = Piece(piece.at - shift_us, piece.values)
    return found
