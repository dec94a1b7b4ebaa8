#!/bin/sh
# Makes the stack's passwords on its first start, in a volume, so that none is ever in git or in
# `docker inspect`. A password that exists is kept; the files made from it are written at each start.
# `secrets.sh rotate` makes new passwords: docs/guides/compose.md says what to tell the servers then.
set -eu
umask 077
dir=/run/vervet
broker_group=10001   # the image's own group: all five services
database_group=10002 # given in compose.yaml to those services that use the database: not the agent

# put NAME OWNER MODE: standard input becomes the file, whole or not at all.
put() {
  cat >"$dir/.$1"
  chmod "$3" "$dir/.$1"
  chown "$2" "$dir/.$1"
  mv -f "$dir/.$1" "$dir/$1"
}

# password NAME: 192 random bits in hexadecimal, so that no URL or configuration needs escapes.
password() {
  [ -s "$dir/$1" ] || od -An -v -tx1 -N24 /dev/urandom | tr -d ' \n' | put "$1" root 400
  cat "$dir/$1"
}

[ "${1:-}" != rotate ] || rm -f "$dir/broker-password" "$dir/database-password"
broker=$(password broker-password)
database=$(password database-password)

# RabbitMQ takes its user from here at each start; its images read no password from a file.
put definitions.json rabbitmq 400 <<END
{
  "vhosts": [{ "name": "vervet" }],
  "users": [{ "name": "vervet", "password": "$broker", "tags": [] }],
  "permissions": [
    { "user": "vervet", "vhost": "vervet", "configure": ".*", "write": ".*", "read": ".*" }
  ]
}
END
printf 'amqp://vervet:%s@rabbitmq:5672/vervet' "$broker" | put broker-url "root:$broker_group" 440
printf 'postgresql://vervet:%s@timescaledb:5432/vervet' "$database" |
  put database-url "root:$database_group" 440
