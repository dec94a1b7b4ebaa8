"""Reading samples of selected series: frames of the head, and what is wanted of sealed blocks."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from asyncpg import Record

from engine.promql.blocks import Indexes
from services.frame_pieces import (
    History,
    Known,
    Piece,
    SealedHour,
    SealedSpan,
    Span,
    head_piece,
    joined,
    sealed_pieces,
    spans,
)
from services.series_lookup import Selected

# Frames of recent hours as they are: a row is ten minutes of a layout, instants and arrays in
# sequence, so that neither side makes an object per frame. The order is mended by the reader.
# Sealed blocks: of each hour the groups of columns that are wanted. It goes layout by layout along
# the keys, whatever a planner thinks (`offset 0`): that might read a range of time of all layouts.
# One statement, so that a reader never sees frames that are being sealed twice, or not at all; it
# also tells up to where what was dropped and what is registered, so that nobody need ask before.
SAMPLES = """
select place, null::timestamptz as start, count(*)::integer as rows, null::integer as span,
       string_agg(timestamptz_send(at), '') as at,
       string_agg(array_send(values[lower:upper]), '') as data,
       null::integer as before, null::integer[] as ends
from unnest($3::integer[], $4::integer[], $5::integer[], $6::integer[])
    as wanted (place, layout_id, lower, upper)
cross join lateral (
    select at, values from frames f
    where f.layout_id = wanted.layout_id and at > $1 and at <= $2 offset 0) as frame
group by place, date_bin('10 minutes', at, '1970-01-01 UTC')
union all
select place, start, rows, span, at,
       substring(data from coalesce(ends[lower - 1], 0) + 1
                 for ends[upper] - coalesce(ends[lower - 1], 0)),
       coalesce(ends[lower - 1], 0), ends[lower:upper]
from unnest($7::integer[], $8::integer[], $9::integer[], $10::integer[], $11::integer[])
    as wanted (place, span, layout_id, lower, upper)
cross join lateral (
    select start, rows, at, data, ends from blocks b
    where b.layout_id = wanted.layout_id
      and start > $1 - interval '1 hour' and start < $2 offset 0) as block
union all
select -1, floor, null, null, convert_to(tier, 'UTF8'), null, null, null
from retention where isfinite(floor)
union all
select -1, null, null, null, uuid_send(state), null, null, null from registered
"""

COUNT = """
select coalesce(sum(width * (
    (select count(*) from frames f
     where f.layout_id = wanted.layout_id and at > $1 and at <= $2)
    + (select coalesce(sum(rows), 0) from blocks b
       where b.layout_id = wanted.layout_id
         and start > $1 - interval '1 hour' and start < $2))), 0)::bigint
from unnest($3::integer[], $4::integer[]) as wanted (layout_id, width)
"""


@dataclass(slots=True)
class Wanted:
    """What is read of one layout. lower, upper: places of the array, from 1, both included."""

    selected: Selected
    lower: int
    upper: int
    spans: list[Span]

    @property
    def positions(self) -> Indexes:
        """Which places of the slice are selected, from 0."""
        return self.selected.positions - (self.lower - 1)


def wanted_of(selected: Selected) -> Wanted:
    positions = selected.positions
    return Wanted(selected, int(positions.min()) + 1, int(positions.max()) + 1, spans(positions))


def arguments_of(wanted: Sequence[Wanted]) -> list[list[int]]:
    """Those of SAMPLES after the range."""
    every = [
        (place, number, span)
        for place, one in enumerate(wanted)
        for number, span in enumerate(one.spans)
    ]
    return [
        list(range(len(wanted))),
        [one.selected.layout_id for one in wanted],
        [one.lower for one in wanted],
        [one.upper for one in wanted],
        [place for place, _, _ in every],
        [number for _, number, _ in every],
        [wanted[place].selected.layout_id for place, _, _ in every],
        [span.lower for _, _, span in every],
        [span.upper for _, _, span in every],
    ]


def pieces_of(wanted: Sequence[Wanted], rows: Sequence[Record], known: Known) -> list[Piece]:
    """The samples of each layout, from the rows of SAMPLES; they may reach beyond the range."""
    head: defaultdict[int, list[Piece]] = defaultdict(list)
    hours: defaultdict[int, dict[datetime, SealedHour]] = defaultdict(dict)
    for row in rows:
        place = row["place"]
        one = wanted[place]
        if row["start"] is None:
            width = one.upper - one.lower + 1
            head[place].append(head_piece(row["at"], row["data"], width, one.positions))
            continue
        hour = hours[place].setdefault(row["start"], SealedHour(row["rows"], row["at"], []))
        part = SealedSpan(one.spans[row["span"]], row["data"], row["before"], row["ends"])
        hour.spans.append(part)
    histories = [
        History(
            [hour for _, hour in sorted(hours[place].items())],
            one.selected.width,
            len(one.selected.columns),
        )
        for place, one in enumerate(wanted)
    ]
    return [joined(old, head[place]) for place, old in enumerate(sealed_pieces(histories, known))]
