-- Finding series by matchers, without touching each of them: a selector is decided on metrics, on
-- sources and on shapes, of which there are few, however many series there are.

-- The label sets of a metric's series within a layout, without the labels of the layout's source.
-- Hosts that expose the same have the same shape.
create table shapes (
    id     integer generated always as identity primary key,
    hash   bytea not null unique,
    metric text not null,
    type   text not null,
    unit   text not null,
    labels jsonb not null,              -- [{name: value, …}, …]
    names  text[] not null              -- of all these labels
);
create index shapes_metric on shapes (metric, id);
create index shapes_labels on shapes using gin (labels jsonb_path_ops);

create function shape_hash(metric text, type text, unit text, labels jsonb) returns bytea
language sql stable as $$
    select sha256(convert_to(jsonb_build_array(metric, type, unit, labels)::text, 'UTF8'))
$$;

create function label_names(labels jsonb) returns text[] language sql immutable as $$
    select array(select distinct name
                 from jsonb_array_elements(labels) as one, jsonb_object_keys(one) as name
                 order by name)
$$;

create table layout_shapes (
    metric    text not null,
    layout_id integer not null references layouts on delete cascade,
    shape_id  integer not null references shapes,
    first     integer not null,         -- position of the first of the shape's series, from 1
    length    integer not null,         -- series
    positions integer[],                -- null: they follow one another
    primary key (metric, layout_id)
);
create index layout_shapes_layout on layout_shapes (layout_id);
create index layout_shapes_shape on layout_shapes (shape_id);

create index layouts_source on layouts using gin (source jsonb_path_ops);

-- What matchers were decided on before; a million series cost it more than their frames.
drop index series_labels;

-- What is registered, as a value that never comes again. Every transaction that registers layouts or
-- collects them makes another, and holds the row until it ends: two snapshots that see the same
-- value see the same layouts (services/selections.py).
create table registered (
    singleton boolean primary key default true check (singleton),
    state     uuid not null default gen_random_uuid()
);
insert into registered default values;

create function registered_anew() returns trigger language plpgsql as $$
begin
    update registered set state = gen_random_uuid();
    return null;
end $$;
create trigger registered_anew after insert or delete or truncate on layout_shapes
for each statement execute function registered_anew();

create temporary table members on commit drop as
select layout_id, metric, (array_agg(type order by position))[1] as type,
       (array_agg(unit order by position))[1] as unit,
       array_agg(position order by position) as positions,
       jsonb_agg(labels - array(select jsonb_object_keys(source)) order by position) as labels
from layout_series join series on series.id = series_id join layouts on layouts.id = layout_id
group by layout_id, metric;

insert into shapes (hash, metric, type, unit, labels, names)
select distinct on (1) shape_hash(metric, type, unit, labels), metric, type, unit, labels,
       label_names(labels)
from members;

insert into layout_shapes (metric, layout_id, shape_id, first, length, positions)
select metric, layout_id, shapes.id, positions[1], cardinality(positions),
       case when positions[cardinality(positions)] - positions[1] >= cardinality(positions)
            then positions end
from members join shapes using (metric)
where shapes.hash = shape_hash(metric, members.type, members.unit, members.labels);
