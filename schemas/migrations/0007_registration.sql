-- Looking each series of a new layout up again, for these keys, was more than half of what its rows
-- cost. Registration takes the ids from the tables themselves, and what is unused is collected while
-- nobody registers (services/ingest/unused.py).
alter table layout_series drop constraint layout_series_layout_id_fkey;
alter table layout_series drop constraint layout_series_series_id_fkey;
