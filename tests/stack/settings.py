"""What the servers for tests are set to, whichever way they run."""

from collections.abc import Mapping

ROLE = "vervet"
PLUGINS = "[rabbitmq_management,rabbitmq_consistent_hash_exchange]."

# Nothing here weakens what a commit means to a test: synchronous_commit stays on, and what was
# written before kill -9 is in the kernel's hands. Without fsync only the machine's crash loses it.
SERVER_SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "on",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_connections": "200",
    "log_checkpoints": "off",
    "timezone": "UTC",
}
# What a benchmark measures has to be what a machine's crash would leave as well.
DURABLE_SETTINGS = {"fsync": "on", "full_page_writes": "on"}
PLAIN_SETTINGS = {"shared_preload_libraries": ""}
TIMESCALE_SETTINGS = {
    "shared_preload_libraries": "timescaledb",
    "timescaledb.telemetry_level": "off",
    # One for the launcher and one for each database that has the extension.
    "max_worker_processes": "48",
    "timescaledb.max_background_workers": "32",
}


def postgres_options(settings: Mapping[str, str]) -> list[str]:
    """Return the settings as options of the `postgres` command."""
    return [word for item in settings.items() for word in ("-c", "=".join(item))]
