-- The notifier: alerts as routed, groups with their timers, the ledger of deliveries, the inbox.

-- The newest state of each alert, as its transitions told it. Older or repeated ones change nothing.
create table notify_alerts (
    id          bigint generated always as identity primary key,
    rule        text not null,
    fingerprint text not null,
    firing      boolean not null,
    at          timestamptz not null,   -- event time of the newest transition
    starts_at   timestamptz,
    ends_at     timestamptz,
    labels      jsonb not null,
    annotations jsonb not null,
    expr        text not null,
    unique (rule, fingerprint)
);
create index notify_alerts_firing on notify_alerts (id) where firing;
create index notify_alerts_ended on notify_alerts (at) where not firing;

-- A group of alerts that one receiver is told of together. It lives until all its ends are told.
create table notify_groups (
    id              bigint generated always as identity primary key,
    identity        bytea not null unique,  -- hash of route, receiver and group labels
    receiver        text not null,
    group_key       text not null,          -- Alertmanager's name of it
    group_labels    jsonb not null,
    group_interval  interval not null,
    repeat_interval interval not null,
    flushed_at      timestamptz,
    due_at          timestamptz,            -- null: nothing to do until something changes
    retired         boolean not null default false  -- no route of the document leads here any more
);
create index notify_groups_due on notify_groups (due_at) where due_at is not null;

create table notify_members (
    group_id bigint not null references notify_groups on delete cascade,
    alert_id bigint not null references notify_alerts,
    primary key (group_id, alert_id)
);
create index notify_members_alert on notify_members (alert_id);

-- What each channel of a receiver knows of a group (services/notifier/decision.py, Told).
create table notify_told (
    group_id bigint not null references notify_groups on delete cascade,
    target   text not null,
    firing   bigint[] not null,
    doubtful bigint[] not null,
    sends    integer not null,
    at       timestamptz,
    primary key (group_id, target)
);

-- Alertmanager's rhythm: a change waits for the next multiple of the interval since the last flush.
create function next_flush(flushed_at timestamptz, every interval, now timestamptz)
returns timestamptz language sql immutable as $$
    select flushed_at + every * greatest(
        1, ceil(extract(epoch from now - flushed_at) / extract(epoch from every)))::float8
$$;

-- The ledger: every notification that was decided, why, and what became of it. The row is written
-- before the first attempt, so that a repeat after a crash carries the same id.
create table deliveries (
    id          text primary key,
    sequence    bigint generated always as identity unique,
    group_id    bigint not null,        -- outlives its group
    group_key   text not null,
    receiver    text not null,
    channel     text not null,
    target      text not null,          -- <receiver>/<channel>/<position in the receiver>
    status      text not null check (status in ('firing', 'resolved')),
    reason      text not null,
    state       text not null default 'pending' check (state in ('pending', 'sent', 'failed')),
    permanent   boolean not null default false,
    attempts    integer not null default 0,
    doubtful    boolean not null default false, -- an attempt may have reached the receiver
    error       text,
    digest      text not null,          -- of what it says
    firing      bigint[] not null,
    resolved    bigint[] not null,
    payload     jsonb,                  -- the notification; null once it is sent or failed
    created_at  timestamptz not null,
    due_at      timestamptz,            -- of the next attempt; null once it is sent or failed
    lease       uuid,
    lease_until timestamptz,
    sent_at     timestamptz
);
-- One at a time for a group and channel keeps their order.
create unique index deliveries_pending on deliveries (group_id, target) where state = 'pending';
create index deliveries_due on deliveries (target, due_at) where state = 'pending';
create index deliveries_created on deliveries (created_at);

create table inbox (
    id       text primary key,          -- of the delivery
    sequence bigint generated always as identity unique,
    at       timestamptz not null,
    receiver text not null,
    status   text not null,
    title    text not null,
    body     text not null,
    labels   jsonb not null,
    alerts   jsonb not null,
    read     boolean not null default false
);
create index inbox_at on inbox (at);

-- The routing document that the groups were made by: a notifier with another one routes anew.
create table notify_routing (
    singleton  boolean primary key default true check (singleton),
    digest     text not null,
    applied_at timestamptz not null
);
