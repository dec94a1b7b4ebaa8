"""Messages that come again after their hour was sealed: gone from `frames`, but in its block."""

from collections import defaultdict
from collections.abc import Sequence
from datetime import timedelta

from services.clock import HOUR_US, instant, microseconds
from services.database import Connection
from services.ingest.batch import Received, RowKey
from services.ingest.hours import Key, hour_of
from services.ingest.sealing import SEAL_AFTER
from services.unsealing import unseal_instants

MAYBE_SEALED_US = SEAL_AFTER // 2 // timedelta(microseconds=1)
"""An hour that ended so long ago is looked up. Less than SEAL_AFTER: workers' clocks differ."""

INSTANTS = """
select b.layout_id, b.start, b.rows, b.at
from unnest($1::int[], $2::timestamptz[]) as hour (layout_id, start)
join blocks b on b.layout_id = hour.layout_id and b.start = hour.start
where b.start >= $3 and b.start <= $4
"""


async def sealed_rows(
    connection: Connection, batch: Sequence[Received], now_us: int
) -> set[RowKey]:
    """Those rows of a batch that stand in sealed blocks. To be asked after the rows were merged
    into `frames`, in that transaction: from then on sealing can't take them to a block unseen."""
    closed_us = (now_us - MAYBE_SEALED_US) // HOUR_US * HOUR_US
    hours: defaultdict[Key, set[int]] = defaultdict(set)
    for one in batch:
        if min(one.at) > closed_us:  # nearly always
            continue
        for rows in one.frames:
            if min(rows.at) <= closed_us and rows.layout.id is not None:
                for at_us in rows.at:
                    hours[rows.layout.id, hour_of(at_us)].add(at_us)
    if not hours:
        return set()
    starts = [instant(start_us) for _, start_us in hours]
    layouts = [layout_id for layout_id, _ in hours]
    known: set[RowKey] = set()
    for row in await connection.fetch(INSTANTS, layouts, starts, min(starts), max(starts)):
        arrived = hours[row["layout_id"], microseconds(row["start"])]
        stored = unseal_instants(row["at"], row["rows"]).tolist()
        known |= {(row["layout_id"], at_us) for at_us in arrived.intersection(stored)}
    return known
