-- Sealed history: closed hours as compressed blocks, their rollups, and the jobs that make them.
--
-- An hour, like every span in here, is open on its left: it holds the instants after `start`, up to
-- and including its end. So a bucket that ends at 10:00 is what a query at 10:00 over 5 m looks at.

-- Which tables are in partitions, and of how many days, counted from 1970-01-01 UTC.
create table partitioned (
    parent text primary key,
    days   integer not null
);
insert into partitioned values ('frames', 1);

-- A table in partitions by `by`, each of so many days: a hypertable where TimescaleDB is loaded.
create function partition_table(parent text, by text, days integer) returns void
language plpgsql as $$
begin
    insert into partitioned values (parent, days);
    if exists (select from pg_extension where extname = 'timescaledb') then
        execute format('create table %I (like %I including all)', parent, parent || '_row');
        perform create_hypertable(parent::regclass, by::name, create_default_indexes => false,
                                  chunk_time_interval => days * interval '1 day');
    else
        execute format('create table %I (like %I including all) partition by range (%I)',
                       parent, parent || '_row', by);
    end if;
    execute format('drop table %I', parent || '_row');
end $$;

-- One row is a layout's hour: all its frames, in columns (services/sealed.py). Compressed already.
create table blocks_row (
    layout_id integer not null,
    start     timestamptz not null,     -- exclusive
    rows      integer not null,         -- instants
    at        bytea not null,           -- the instants
    data      bytea not null,           -- groups of columns, one after another
    ends      integer[] not null,       -- where each group ends in `data`, in bytes
    primary key (layout_id, start)
);
alter table blocks_row alter column at set storage external;
alter table blocks_row alter column data set storage external;
select partition_table('blocks', 'start', 1);

-- One row is a layout's hour in 12 buckets of 5 minutes. Arrays are series-major: the value of the
-- series at `position` (from 1) in bucket b (from 0) stands at (position - 1) * 12 + b + 1. A bucket
-- without samples has count and resets 0, and NaN elsewhere. Within a bucket a counter increased by
-- last - first + reset; from one bucket to the next it is from last to first. So that equal numbers
-- stand side by side and compress: where `mins` is NaN, the first sample is the least one, and where
-- `maxs` is NaN, the last is the greatest.
create table rollups_5m_row (
    layout_id integer not null,
    start     timestamptz not null,     -- exclusive, of the hour
    counts    integer[] not null,
    sums      float8[] not null,
    mins      float8[] not null,
    maxs      float8[] not null,
    firsts    float8[] not null,
    lasts     float8[] not null,
    resets    float8[] not null,        -- sum of what was reached at each reset
    primary key (layout_id, start)
);

-- Faster than PostgreSQL's own compression, at the same size; not every server was built with it.
do $$
declare
    name text;
begin
    foreach name in array array['counts', 'sums', 'mins', 'maxs', 'firsts', 'lasts', 'resets'] loop
        execute format('alter table rollups_5m_row alter column %I set compression lz4', name);
    end loop;
exception when feature_not_supported or invalid_parameter_value then
    null;
end $$;

-- The same: a layout's UTC day in 24 buckets of an hour.
create table rollups_1h_row (like rollups_5m_row including all);
select partition_table('rollups_5m', 'start', 7), partition_table('rollups_1h', 'start', 28);

-- Days of which an hour was sealed since their row in `rollups_1h` was computed, if it was at all.
-- A day that stands here is to be read from `rollups_5m`.
create table days_due (
    layout_id integer not null,
    start     timestamptz not null,     -- exclusive
    primary key (start, layout_id)
);

-- What a counter increased by within a bucket. PostgreSQL raises an error where floats overflow, and
-- one series near the largest number must not keep all others from being read.
create function rollup_increase(first float8, last float8, reset float8) returns float8
language sql immutable parallel safe as $$
    select case
        when greatest(abs(first), abs(last), reset) < 4e307 then last - first + reset
        when last::numeric - first::numeric + reset::numeric = 'NaN' then 'NaN'
        when last::numeric - first::numeric + reset::numeric > 1.79e308 then 'Infinity'
        when last::numeric - first::numeric + reset::numeric < -1.79e308 then '-Infinity'
        else (last::numeric - first::numeric + reset::numeric)::float8
    end
$$;

-- For plain SQL, as `samples` is for recent frames. `at` is a bucket's end; `start` is when its row
-- begins: a condition on it lets the server skip what is older.
create view rollup_5m as
select r.start + b.bucket * interval '5 minutes' as at, s.metric, s.labels, b.count, b.sum,
       case when b.min = 'NaN' then b.first else b.min end as min,
       case when b.max = 'NaN' then b.last else b.max end as max,
       b.first, b.last, rollup_increase(b.first, b.last, b.reset) as increase, r.start
from rollups_5m r
join layout_series l on l.layout_id = r.layout_id
join series s on s.id = l.series_id
cross join lateral (select l.position * 12 - 11 as low, l.position * 12 as high) p
cross join lateral unnest(
    r.counts[p.low:p.high], r.sums[p.low:p.high], r.mins[p.low:p.high], r.maxs[p.low:p.high],
    r.firsts[p.low:p.high], r.lasts[p.low:p.high], r.resets[p.low:p.high]
) with ordinality as b (count, sum, min, max, first, last, reset, bucket)
where b.count > 0;

create view rollup_1h as
select r.start + b.bucket * interval '1 hour' as at, s.metric, s.labels, b.count, b.sum,
       case when b.min = 'NaN' then b.first else b.min end as min,
       case when b.max = 'NaN' then b.last else b.max end as max,
       b.first, b.last, rollup_increase(b.first, b.last, b.reset) as increase, r.start
from rollups_1h r
join layout_series l on l.layout_id = r.layout_id
join series s on s.id = l.series_id
cross join lateral (select l.position * 24 - 23 as low, l.position * 24 as high) p
cross join lateral unnest(
    r.counts[p.low:p.high], r.sums[p.low:p.high], r.mins[p.low:p.high], r.maxs[p.low:p.high],
    r.firsts[p.low:p.high], r.lasts[p.low:p.high], r.resets[p.low:p.high]
) with ordinality as b (count, sum, min, max, first, last, reset, bucket)
where b.count > 0;

-- Makes the partition that holds an instant; a no-op on a hypertable, which makes its own.
-- Attaching a finished table locks out neither readers nor writers.
drop function ensure_partition(date);
create function ensure_partition(parent text, instant timestamptz) returns void
language plpgsql as $$
declare
    span    interval := (select days * interval '1 day' from partitioned p where p.parent = $1);
    lower   timestamptz := date_bin(span, instant, '1970-01-01 UTC');
    name    text := parent || '_' || to_char(lower at time zone 'UTC', 'YYYYMMDD');
begin
    if to_regclass(name) is not null
       or not exists (select from pg_partitioned_table where partrelid = parent::regclass) then
        return;
    end if;
    perform pg_advisory_xact_lock(hashtext('vervet.partitions'));
    begin
        execute format('create table %I (like %I including all)', name, parent);
    exception when duplicate_table then
        return;  -- who held the lock before us made it; names looked up before are remembered
    end;
    execute format('alter table %I attach partition %I for values from (%L) to (%L)',
                   parent, name, lower, lower + span);
end $$;

-- How long each tier is kept. Changed at run time: the jobs read it at every run.
create table retention (
    tier      text primary key check (tier in ('raw', '5m', '1h')),
    keep      interval,                 -- null: for ever
    max_bytes bigint,                   -- on the row of raw, of all tiers together; null: no bound
    floor     timestamptz not null default '-infinity'  -- what is older was dropped, and stays so
);
insert into retention (tier, keep) values ('raw', '15 days'), ('5m', '90 days'), ('1h', '730 days');

-- The scheduled jobs (services/ingest/jobs.py): what ran last, how it went, how far it has come.
create table jobs (
    name        text primary key,
    every_s     float8 not null,
    owner       text not null,          -- the worker that ran it last
    requested_at timestamptz,           -- to be run as soon as it can be
    started_at  timestamptz,
    finished_at timestamptz,            -- before started_at while it runs
    succeeded_at timestamptz,
    duration_s  float8,
    lag_s       float8,                 -- age of the oldest work that it has left
    failures    integer not null default 0, -- runs begun since the last one that got on
    progress    text not null default '',
    error       text not null default ''
);

-- The partitions of a table, or its chunks; each holds lower <= `by` < upper.
create function list_partitions(parent text)
returns table (name text, lower timestamptz, upper timestamptz, bytes bigint)
language plpgsql as $$
begin
    if exists (select from pg_partitioned_table where partrelid = parent::regclass) then
        return query
        select format('%I', relname), bounds[1]::timestamptz, bounds[2]::timestamptz,
               coalesce(pg_total_relation_size(oid), 0)
        from pg_inherits join pg_class on oid = inhrelid
        cross join regexp_match(pg_get_expr(relpartbound, oid),
                                $bounds$FROM \('(.+)'\) TO \('(.+)'\)$bounds$) as bounds
        where inhparent = parent::regclass and bounds is not null;
    else
        return query execute $chunks$
            select format('%I.%I', chunk_schema, chunk_name), range_start, range_end,
                   coalesce(pg_total_relation_size(
                       to_regclass(format('%I.%I', chunk_schema, chunk_name))), 0)
            from timescaledb_information.chunks
            where hypertable_schema = current_schema() and hypertable_name = $1
        $chunks$ using parent;
    end if;
end $$;

-- Drops the partition that begins at `lower`. To be called with the table locked, and with a short
-- lock_timeout: whoever comes while this waits for the lock waits as long.
create function drop_partition(parent text, lower timestamptz) returns void
language plpgsql as $$
declare
    one record;
begin
    select * into strict one from list_partitions(parent) p where p.lower = $2;
    if exists (select from pg_partitioned_table where partrelid = parent::regclass) then
        execute 'drop table ' || one.name;
    else
        perform drop_chunks(parent::regclass, newer_than => one.lower, older_than => one.upper);
    end if;
end $$;

-- Grows by one with every transaction that collects unused layouts. A worker that finds it changed
-- after it wrote rows looks its layouts up again (services/ingest/unused.py).
create table layouts_collected (
    singleton boolean primary key default true check (singleton),
    times     bigint not null default 0
);
insert into layouts_collected default values;

-- In `frames` an absent cell and the end of a series are numbers that no one measures
-- (schemas/values.py, STORED_…): a dump writes every NaN as NaN, and would make samples of them.
create or replace function lacks_any(stored float8[], arrived float8[]) returns boolean
language sql immutable as $$
    select exists (
        select from unnest(stored, arrived) as cell (stored, arrived)
        where cell.stored = -1.760446914172133e308 and cell.arrived <> -1.760446914172133e308)
$$;

create or replace function merge_absent(stored float8[], arrived float8[]) returns float8[]
language sql immutable as $$
    select array_agg(case when cell.stored = -1.760446914172133e308
                          then cell.arrived else cell.stored end order by position)
    from unnest(stored, arrived) with ordinality as cell (stored, arrived, position)
$$;

create or replace view samples as
select f.at, s.metric, s.labels, v.value
from frames f
cross join lateral unnest(f.values) with ordinality as v(value, position)
join layout_series l on l.layout_id = f.layout_id and l.position = v.position
join series s on s.id = l.series_id
where v.value not in (-1.760446914172133e308, -1.7604469141721333e308);

update frames set values = (
    select array_agg(case float8send(value) when '\x7ff8564552564554' then -1.760446914172133e308
                                            when '\x7ff0000000000002' then -1.7604469141721333e308
                                            else value end order by position)
    from unnest(values) with ordinality as cell (value, position))
where 'NaN' = any(values);
