-- Alerts and their transitions, and what an evaluator needs to go on where another one stopped.

-- The rules that the evaluators run, as they were loaded; for readers.
create table rule_groups (
    position   integer primary key,     -- order of loading, from 0
    file       text not null,           -- "built-in", or the path of the file
    name       text not null,
    interval_s float8 not null,
    rules      jsonb not null,          -- [{"alert", "expr", "for_s", "keep_firing_for_s", "no_data_s", "labels", "annotations"}]
    loaded_at  timestamptz not null default now()
);

-- Alerts that are pending or firing; an inactive one has no row.
create table alerts (
    rule        text not null,          -- <group>/<alertname>
    fingerprint text not null,          -- of the labels
    instance    text not null,
    partition   integer not null,
    state       text not null check (state in ('pending', 'firing')),
    active_at   timestamptz not null,   -- since when the condition has held
    fired_at    timestamptz,
    kept_since  timestamptz,            -- since when keep_firing_for alone keeps it firing
    value       float8 not null,        -- of the last change of state, or up to a minute newer
    labels      jsonb not null,
    annotations jsonb not null,
    primary key (rule, fingerprint)
);
create index alerts_instance on alerts (instance);

-- Every change of state, for ever; also the outbox: a row without published_at is still to be sent.
create table transitions (
    id           text primary key,
    sequence     bigint generated always as identity unique,
    rule         text not null,
    alertname    text not null,
    fingerprint  text not null,
    severity     text not null,
    from_state   text not null check (from_state in ('inactive', 'pending', 'firing')),
    to_state     text not null check (to_state in ('inactive', 'pending', 'firing')),
    at           timestamptz not null,  -- event time
    active_at    timestamptz,
    value        float8,
    labels       jsonb not null,
    annotations  jsonb not null,
    expr         text not null,
    partition    integer not null,
    created_at   timestamptz not null default now(),
    published_at timestamptz
);
create index transitions_unpublished on transitions (partition, sequence) where published_at is null;
create index transitions_alert on transitions (fingerprint, sequence);

-- Who may write a partition's state: whoever raised the epoch last. A writer whose epoch is older has
-- been replaced, whatever it believes itself.
create table partitions (
    partition  integer primary key,
    epoch      bigint not null,
    owner      text not null,
    claimed_at timestamptz not null default now()
);

-- Evaluators that live, by their heartbeats.
create table evaluators (
    id      text primary key,
    seen_at timestamptz not null
);

-- How far each source has been evaluated. The newest message of the epoch is `seq`.
create table positions (
    instance    text not null,
    job         text not null,
    partition   integer not null,
    source      jsonb not null,
    epoch       text not null,
    seq         bigint not null,
    at          timestamptz not null,   -- event time
    received_at timestamptz not null,
    primary key (instance, job)
);
create index positions_partition on positions (partition);

-- What an evaluator remembers of recent frames: the columns that rules select, no longer than rules
-- look back. Saved with the position, so that after a restart it knows what it had seen, whatever
-- ingest has stored by then. `key` is a hash of instance, layout and columns.
create table window_layouts (
    key      bigint primary key,
    instance text not null,
    source   jsonb not null,
    layout   bytea not null,            -- as on the wire
    columns  bytea not null             -- int32 little-endian positions, from 0
);
create index window_layouts_instance on window_layouts (instance);

create table window_frames (
    key    bigint not null,
    at     bigint not null,             -- microseconds since 1970
    values bytea not null,              -- float64 little-endian, one per selected column
    primary key (key, at)
);
