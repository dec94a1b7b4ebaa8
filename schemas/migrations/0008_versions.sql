-- A value that never comes again for each block. Who remembers the blocks of some hours asks whether
-- all of them still are what they were, and is sent them only if not (services/sample_reading.py).
alter table blocks add column version bigint not null
    default hashtextextended(gen_random_uuid()::text, 0);
