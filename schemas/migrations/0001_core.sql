-- Series, layouts and frames; agents and what they say of themselves.

create table series (
    id         bigint generated always as identity primary key,
    hash       bytea not null unique,
    metric     text not null,
    labels     jsonb not null,          -- all of them, the source's (job, instance) included
    type       text not null,
    unit       text not null,
    created_at timestamptz not null default now()
);
create index series_metric on series (metric);
create index series_labels on series using gin (labels jsonb_path_ops);

create table layouts (
    id         integer generated always as identity primary key,
    hash       bytea not null unique,
    source     jsonb not null,
    width      integer not null,
    created_at timestamptz not null default now()
);

create table layout_series (
    layout_id integer not null references layouts,
    position  integer not null,         -- from 1, the index into frames.values
    series_id bigint not null references series,
    primary key (layout_id, position)
);
create index layout_series_series on layout_series (series_id);

-- One row is all values of a layout at one instant. No foreign key to layouts: a hypertable with one
-- deadlocks when it makes a chunk. The primary key is what makes a redelivered frame harmless.
do $$
begin
    if current_setting('timescaledb.disable_load', true) is not null then
        create extension if not exists timescaledb;
        create table frames (
            layout_id integer not null,
            at        timestamptz not null,
            values    float8[] not null,
            primary key (layout_id, at)
        );
        perform create_hypertable('frames', 'at', chunk_time_interval => interval '1 day',
                                  create_default_indexes => false);
    else
        create table frames (
            layout_id integer not null,
            at        timestamptz not null,
            values    float8[] not null,
            primary key (layout_id, at)
        ) partition by range (at);
    end if;
end $$;

-- Values are kept uncompressed: recent frames are read often, history is compressed when sealed.
alter table frames alter column values set storage external;

-- Makes the daily partition that holds an instant; a no-op on a hypertable, which makes its own.
-- Attaching a finished table locks out neither readers nor writers.
create function ensure_partition(day date) returns void language plpgsql as $$
declare
    name text := 'frames_' || to_char(day, 'YYYYMMDD');
begin
    if to_regclass(name) is not null
       or not exists (select from pg_partitioned_table where partrelid = 'frames'::regclass) then
        return;
    end if;
    perform pg_advisory_xact_lock(hashtext('vervet.partitions'));
    begin
        execute format('create table %I (like frames including all)', name);
    exception when duplicate_table then
        return;  -- who held the lock before us made it; names looked up before are remembered
    end;
    execute format('alter table frames attach partition %I for values from (%L) to (%L)',
                   name, day::timestamp at time zone 'UTC', (day + 1)::timestamp at time zone 'UTC');
end $$;

-- True where `stored` has an absent cell for which `arrived` has a value.
create function lacks_any(stored float8[], arrived float8[]) returns boolean
language sql immutable as $$
    select exists (
        select from unnest(stored, arrived) as cell (stored, arrived)
        where float8send(cell.stored) = '\x7ff8564552564554'
          and float8send(cell.arrived) <> '\x7ff8564552564554')
$$;

-- `stored` with its absent cells filled from `arrived`; bits are kept.
create function merge_absent(stored float8[], arrived float8[]) returns float8[]
language sql immutable as $$
    select array_agg(case when float8send(cell.stored) = '\x7ff8564552564554'
                          then cell.arrived else cell.stored end order by position)
    from unnest(stored, arrived) with ordinality as cell (stored, arrived, position)
$$;

-- A cell without a sample holds a NaN of fixed bits (schemas/values.py); so does a series' end.
create view samples as
select f.at, s.metric, s.labels, v.value
from frames f
cross join lateral unnest(f.values) with ordinality as v(value, position)
join layout_series l on l.layout_id = f.layout_id and l.position = v.position
join series s on s.id = l.series_id
where float8send(v.value) not in ('\x7ff8564552564554', '\x7ff0000000000002');

create table agents (
    job         text not null,
    instance    text not null,
    epoch       text not null,
    source      jsonb not null,
    first_seq   bigint not null,
    last_seq    bigint not null,
    messages    bigint not null,        -- that stored at least one new frame
    samples     bigint not null,
    last_samples bigint not null,      -- in the message `last_seq`
    duplicates  bigint not null,        -- messages that came again
    last_at     timestamptz not null,   -- event time of the newest sample
    received_at timestamptz not null,
    primary key (job, instance, epoch)
);

create table agent_status (
    job        text not null,
    instance   text not null,
    epoch      text not null,
    state      text not null check (state in ('started', 'stopping')),
    at         timestamptz not null,
    version    text not null,
    interval_s float8 not null,
    source     jsonb not null,
    primary key (job, instance)
);
