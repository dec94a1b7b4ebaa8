"""Reading samples of selected series: frames of the head, and what is wanted of sealed blocks."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from asyncpg import Record

from engine.promql.blocks import Indexes
from services.clock import HOUR_US
from services.frame_pieces import (
    History,
    Piece,
    SealedHour,
    SealedSpan,
    Span,
    head_piece,
    joined,
    sealed_pieces,
    spans,
)
from services.recent import Recent
from services.series_lookup import Selected

MAX_KNOWN_CELLS = 2_000_000
"""Instants and values that a process remembers, twice over: 8 bytes each."""

MAX_KNOWN_AT_ONCE = 50_000
"""A read of more values, a week of a series each 15 s, leaves none of them: it would drive out what
many small ones come back to."""

MAX_KNOWN_SERIES = 1_000
"""Of more series nothing is looked for."""

# Frames of recent hours as they are: a row is ten minutes of a layout, instants and arrays in
# sequence, so that neither side makes an object per frame. The order is mended by the reader.
# Sealed blocks: of each hour the groups of columns that are wanted. It goes layout by layout along
# the keys, whatever a planner thinks (`offset 0`): that might read a range of time of all layouts.
# Where the reader has them already, it is told so instead: a row without `start`.
# One statement, so that a reader never sees frames that are being sealed twice, or not at all; it
# also tells up to where what was dropped and what is registered, so that nobody need ask before.
SAMPLES = """
select place, null::timestamptz as start, count(*)::integer as rows, null::integer as span,
       string_agg(timestamptz_send(at), '') as at,
       string_agg(array_send(values[lower:upper]), '') as data,
       null::integer as before, null::integer[] as ends, null::bigint as version
from unnest($3::integer[], $4::integer[], $5::integer[], $6::integer[])
    as wanted (place, layout_id, lower, upper)
cross join lateral (
    select at, values from frames f
    where f.layout_id = wanted.layout_id and at > $1 and at <= $2 offset 0) as frame
group by place, date_bin('10 minutes', at, '1970-01-01 UTC')
union all
select place, start, coalesce(block.rows, stored.rows), span, at,
       substring(data from coalesce(ends[lower - 1], 0) + 1
                 for ends[upper] - coalesce(ends[lower - 1], 0)),
       coalesce(ends[lower - 1], 0), ends[lower:upper], stored.version
from unnest($7::integer[], $8::integer[], $9::integer[], $10::integer[], $11::integer[],
            $12::bigint[])
    as wanted (place, span, layout_id, lower, upper, known)
cross join lateral (
    select bit_xor(version) as version, sum(rows)::integer as rows from blocks b
    where b.layout_id = wanted.layout_id
      and start > $1 - interval '1 hour' and start < $2) as stored
left join lateral (
    select start, rows, at, data, ends from blocks b
    where b.layout_id = wanted.layout_id and stored.version is distinct from known
      and start > $1 - interval '1 hour' and start < $2 offset 0) as block on true
where stored.version is not null
union all
select -1, floor, null, null, convert_to(tier, 'UTF8'), null, null, null, null
from retention where isfinite(floor)
union all
select -1, null, null, null, uuid_send(state), null, null, null, null from registered
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


PLACES = 4
"""Which of the arguments says to what each of the sealed history belongs."""


def arguments_of(wanted: Sequence[Wanted]) -> list[list[int]]:
    """Those of SAMPLES after the range, but for the last."""
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


class Restored(NamedTuple):
    """The sealed history of a layout's columns in some hours. version: of all their blocks."""

    version: int
    piece: Piece


Key = tuple[int, bytes, int, int]
"""A layout, its columns, the first of the hours, and the one after the last."""


class Known:
    """Sealed history that was read lately: a panel that is refreshed finds here all that it shows
    of it, until another hour is sealed."""

    def __init__(self) -> None:
        self._restored: Recent[Key, Restored] = Recent(MAX_KNOWN_CELLS)

    def get(self, key: Key) -> Restored | None:
        return self._restored.get(key, _cells)

    def put(self, key: Key, restored: Restored) -> None:
        restored.piece.at.flags.writeable = restored.piece.values.flags.writeable = False
        self._restored.put(key, restored, _cells(restored))


def _cells(restored: Restored) -> int:
    return restored.piece.at.size + restored.piece.values.size


class Reading:
    """Samples of layouts in a range: what SAMPLES is asked, and what its answer stands for."""

    def __init__(self, wanted: Sequence[Wanted], start_us: int, end_us: int, known: Known) -> None:
        self._wanted, self._known = wanted, known
        self.rows: Sequence[Record] = ()
        """The answer."""
        hours = start_us // HOUR_US, -(-end_us // HOUR_US)
        few = sum(len(one.selected.columns) for one in wanted) <= MAX_KNOWN_SERIES
        self._keys = [
            (one.selected.layout_id, one.selected.positions.tobytes(), *hours)
            for one in (wanted if few else ())
        ]
        self._found = [known.get(key) for key in self._keys] or [None] * len(wanted)

    def versions(self, places: Sequence[int]) -> list[int | None]:
        """The last argument of SAMPLES, for these places."""
        found = self._found
        return [None if (one := found[place]) is None else one.version for place in places]

    def pieces(self) -> list[Piece]:
        """The samples of each layout; they may reach beyond the range. Raises Invalid."""
        head: defaultdict[int, list[Piece]] = defaultdict(list)
        hours: defaultdict[int, dict[datetime, SealedHour]] = defaultdict(dict)
        versions: dict[int, int] = {}
        old: dict[int, Piece] = {}
        for row in self.rows:
            place = row["place"]
            one = self._wanted[place]
            if row["span"] is None:
                width = one.upper - one.lower + 1
                head[place].append(head_piece(row["at"], row["data"], width, one.positions))
            elif row["start"] is None:
                known = self._found[place]
                assert known is not None, "its version was asked about"
                old[place] = known.piece
            else:
                versions[place] = row["version"]
                hour = hours[place].setdefault(row["start"], SealedHour(row["rows"], row["at"], []))
                part = SealedSpan(one.spans[row["span"]], row["data"], row["before"], row["ends"])
                hour.spans.append(part)
        unknown = [place for place in range(len(self._wanted)) if place not in old]
        histories = [
            History(
                [hour for _, hour in sorted(hours[place].items())],
                self._wanted[place].selected.width,
                len(self._wanted[place].selected.columns),
            )
            for place in unknown
        ]
        old.update(zip(unknown, sealed_pieces(histories), strict=True))
        self._remember(old, versions)
        return [joined(old[place], head[place]) for place in range(len(self._wanted))]

    def _remember(self, pieces: Mapping[int, Piece], versions: Mapping[int, int]) -> None:
        if self._keys and sum(pieces[place].values.size for place in versions) <= MAX_KNOWN_AT_ONCE:
            for place, version in versions.items():
                self._known.put(self._keys[place], Restored(version, pieces[place]))
