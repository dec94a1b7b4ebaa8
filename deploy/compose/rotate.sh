#!/bin/sh
# Gives the broker and the database new passwords, and the services with them: no data is touched.
set -eu
docker compose run --rm -T secrets rotate
docker compose exec -T rabbitmq rabbitmqctl -q import_definitions /run/vervet/definitions.json
docker compose exec -T timescaledb sh -c \
  'echo "ALTER ROLE vervet PASSWORD '"'\$(cat /run/vervet/database-password)'"'" | psql -q -U vervet'
docker compose restart agent ingest evaluator notifier api
