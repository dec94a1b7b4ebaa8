-- What metrics are, as senders of samples that are no agents tell it (an agent tells it with a layout).

create table metric_metadata (
    hash    bytea primary key,          -- of what follows but the instant
    metric  text not null,              -- a family: http_seconds, whose series are http_seconds_bucket …
    type    text not null,
    help    text not null,
    unit    text not null,
    told_at timestamptz not null        -- last; what is told of a metric may change
);
create index metric_metadata_metric on metric_metadata (metric, told_at);
