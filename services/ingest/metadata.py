"""What ingest keeps of metrics: their types, helps and units, as others told them."""

from schemas.metadata import MetadataTold
from services.database import Pool

# In the order of hashes: workers that keep the same at once wait for one another.
SAVE = """
insert into metric_metadata as known (hash, metric, type, help, unit, told_at)
select distinct on (hash) *, $6::timestamptz
from unnest($1::bytea[], $2::text[], $3::text[], $4::text[], $5::text[])
    as m (hash, metric, type, help, unit)
order by hash
on conflict (hash) do update set told_at = excluded.told_at where known.told_at < excluded.told_at
"""


async def save_metadata(pool: Pool, told: MetadataTold) -> None:
    """Keep what was told; again, or older, is a no-op."""
    metrics = told.metrics
    await pool.execute(
        SAVE,
        [one.hash for one in metrics],
        [one.metric for one in metrics],
        [one.type for one in metrics],
        [one.help for one in metrics],
        [one.unit for one in metrics],
        told.at,
    )
