#!/bin/sh
# Gives the broker and the database new passwords, and the services with them: no data is touched.
set -eu
docker compose run --rm -T secrets rotate
docker compose exec -T rabbitmq sh -c \
  'rabbitmqctl -q change_password vervet </run/vervet/broker-password >/dev/null'
docker compose exec -T timescaledb sh -c \
  'echo "ALTER ROLE vervet PASSWORD '"'\$(cat /run/vervet/database-password)'"'" | psql -q -U vervet'
docker compose restart agent ingest evaluator notifier api
