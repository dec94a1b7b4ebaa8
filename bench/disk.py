"""The benchmark `disk`: bytes that a stored sample takes, once each system has compacted it.

Hours of several hosts, replayed from a recording, all of them closed. Ours is sealed by its own
jobs, then vacuumed, as autovacuum would; VictoriaMetrics is told to merge, Prometheus to write a
snapshot, which turns its head into a block too, InfluxDB to compact what has been cold for seconds.
Write-ahead logs are told apart: their size is set by configuration, not by what is stored.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import httpx

from bench.figures import Figure, Options
from bench.history import History, Ours, fill_peer, ours
from bench.peers import get, had
from bench.processes import await_idle
from bench.recording import read
from bench.replay import JITTER_MS, Replay
from tests.stack.peer_servers import (
    PeerServer,
    influxdb_server,
    prometheus_server,
    victoria_metrics_server,
)
from tests.stack.process import Say
from tests.stack.session import Stack

BENCH = "disk"
SYSTEM = "vervet"
HOSTS, HOURS = 3, 24
FULL_HOSTS, FULL_HOURS = 10, 48
HOUR_S = 3600
COMPACT_TIMEOUT_S = 300.0
MOST_BY_PEER = {"victoria-metrics": 1.0, "prometheus": 0.7}

INFLUX_COLD = {
    "INFLUXDB_DATA_CACHE_SNAPSHOT_WRITE_COLD_DURATION": "2s",
    "INFLUXDB_DATA_COMPACT_FULL_WRITE_COLD_DURATION": "2s",
}
"""Its defaults are 10 minutes and 4 hours: it would come to the same later."""

RELATIONS = """
with recursive roots as (
    select c.oid, c.oid as root from pg_class c
    where c.relkind in ('r', 'p') and c.relnamespace = 'public'::regnamespace
      and not exists (select from pg_inherits where inhrelid = c.oid)
    union all
    select i.inhrelid, roots.root from roots join pg_inherits i on i.inhparent = roots.oid
)
select root::regclass::text as name,
       sum(pg_indexes_size(c.oid))::bigint as indexes,
       sum(coalesce(pg_total_relation_size(nullif(c.reltoastrelid, 0)), 0))::bigint as toast,
       sum(pg_total_relation_size(c.oid))::bigint as total
from roots join pg_class c using (oid) where c.relkind = 'r'
group by root
"""
"""Sizes by table, those of its partitions or chunks included."""

WAL_BYTES = "select coalesce(sum(size), 0)::bigint from pg_ls_waldir()"

BLOCK_BYTES = """
select coalesce(sum(octet_length(at) + octet_length(data) + 4 * cardinality(ends)), 0)::bigint
from blocks
"""
"""What sealing made, without what PostgreSQL adds to keep it."""

PARTS = {
    "head": ("frames",),
    "history": ("blocks",),
    "rollups": ("rollups_5m", "rollups_1h"),
    "series": ("series", "layouts", "layout_series", "shapes", "layout_shapes"),
}
"""What is what of our tables; all others together are `other`."""

RAW = ("head", "history", "series", "other")
"""What holds the samples and finds them; rollups are what no peer keeps."""


@dataclass(frozen=True)
class Used:
    """Bytes by part; those in `apart` are not in the sum. cpu_s: what compacting took, if known."""

    parts: Mapping[str, int]
    apart: Mapping[str, int]
    cpu_s: float | None = None


async def measure(stack: Stack, say: Say, options: Options) -> list[Figure]:
    """Every system once, since bytes repeat: with ticks to the millisecond, then as they come.

    Prometheus' own scraper moves instants to where they should be, if they are within 2 ms of it:
    a sample takes it two bytes less then. Others' instants are what they are.
    """
    hosts, hours = (FULL_HOSTS, FULL_HOURS) if options.full else (HOSTS, HOURS)
    compared = (SYSTEM, *MOST_BY_PEER)
    figures = await _round(stack, say, compared, hosts, hours, 0)
    figures += await _round(stack, say, compared, hosts, hours, JITTER_MS)
    others = [system for system in PEERS if system not in compared]
    return figures + await _round(stack, say, others, hosts if options.full else 1, hours, 0)


async def _round(
    stack: Stack, say: Say, systems: Iterable[str], hosts: int, hours: int, jitter_ms: int
) -> list[Figure]:
    """The same history in each of the systems."""
    replay = Replay(read(), 0, jitter_ms)
    ticks = hours * HOUR_S * 1000 // replay.interval_ms
    history = History.of_whole_days(replay, hosts, ticks)
    samples = history.samples()
    parameters = {
        "hosts": hosts, "hours": hours, "interval_s": replay.interval_ms / 1000,
        "jitter_ms": jitter_ms, "samples": samples,
    }  # fmt: skip
    say(f"{BENCH}: {samples:,} samples of {hosts} hosts over {hours} h, jitter {jitter_ms} ms")
    used = {
        system: await (
            _ours(stack, history, say) if system == SYSTEM else _peer(stack, system, history, say)
        )
        for system in systems
        if system == SYSTEM or had(stack, system, say)
    }
    return figures_of(used, samples, parameters)


def figures_of(
    used: Mapping[str, Used], samples: int, parameters: Mapping[str, int | float]
) -> list[Figure]:
    """Bytes per sample by system and part, and ours by the peers'."""
    figures = []
    for system, one in used.items():

        def figure(name: str, value: float, unit: str, system: str = system, **more: str) -> Figure:
            return Figure(BENCH, system, name, (value,), unit, {**parameters, **more})

        total = sum(one.parts.values()) / samples
        figures.append(figure("bytes_per_sample", total, "B"))
        for part, size in {**one.parts, **one.apart}.items():
            figures.append(figure("bytes_per_sample_of", size / samples, "B", part=part))
        if one.cpu_s is not None:
            figures.append(figure("compact_cpu_us_per_sample", one.cpu_s / samples * 1e6, "µs"))
    if SYSTEM not in used:
        return figures
    own = used[SYSTEM].parts
    kinds = {"bytes": sum(own.values()), "raw_bytes": sum(own.get(part, 0) for part in RAW)}
    for system, target in MOST_BY_PEER.items():
        if system in used:
            theirs = sum(used[system].parts.values())
            for kind, size in kinds.items():
                name = f"{kind}_by_{system.replace('-', '_')}"
                about = dict(parameters)
                figures.append(
                    Figure(BENCH, SYSTEM, name, (size / theirs,), "ratio", about, target)
                )
    return figures


async def _ours(stack: Stack, history: History, say: Say) -> Used:
    async with ours(stack) as store:
        empty, _ = await sizes(store)
        say(f"{BENCH}: vervet: filling")
        await store.fill(history, say)
        say(f"{BENCH}: vervet: sealing")
        cpu_s = await store.seal(history)
        found, apart = await sizes(store)
        parts = {part: size - empty[part] for part, size in found.items()}
        return Used(parts, {**apart, "empty tables": sum(empty.values())}, cpu_s)


async def sizes(store: Ours) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes by part, and what stands apart."""
    rows = await store.admin.fetch(RELATIONS)
    tables = {row["name"]: row["total"] for row in rows}
    inside = {f"{what}, included": sum(row[what] for row in rows) for what in ("indexes", "toast")}
    parts = {
        part: sum(tables.pop(name) for name in names if name in tables)
        for part, names in PARTS.items()
    }
    parts["other"] = sum(tables.values())
    inside["blocks themselves, included"] = await store.admin.fetchval(BLOCK_BYTES)
    wal = await store.admin.fetchval(WAL_BYTES)
    return parts, {**inside, "wal": wal}


async def _peer(stack: Stack, system: str, history: History, say: Say) -> Used:
    kind = PEERS[system]
    with kind.serve(stack) as server:
        say(f"{BENCH}: {system}: filling")
        await fill_peer(system, server, history, say)
        say(f"{BENCH}: {system}: compacting")
        await asyncio.to_thread(kind.compact, server)
        await await_idle(server.pid, COMPACT_TIMEOUT_S)
        return await asyncio.to_thread(kind.used, server)


def bytes_of(folder: Path) -> int:
    """Bytes that all files below a folder occupy; what is preallocated and empty does not."""
    files = (path.stat() for path in folder.rglob("*") if path.is_file())
    return sum(min(one.st_size, one.st_blocks * 512) for one in files)


def _merge(server: PeerServer) -> None:
    get(f"{server.url}/internal/force_flush")
    get(f"{server.url}/internal/force_merge")


def _victoria_metrics(server: PeerServer) -> Used:
    parts = {"data": bytes_of(server.data / "data"), "indexes": bytes_of(server.data / "indexdb")}
    return Used(parts, {})


def _snapshot(server: PeerServer) -> None:
    url = f"{server.url}/api/v1/admin/tsdb/snapshot"
    httpx.post(url, timeout=COMPACT_TIMEOUT_S, trust_env=False).raise_for_status()


def _prometheus(server: PeerServer) -> Used:
    (snapshot,) = (server.data / "snapshots").iterdir()
    total = bytes_of(snapshot)
    indexes = sum(path.stat().st_size for path in snapshot.glob("*/index"))
    apart = {
        "wal": bytes_of(server.data / "wal"),
        "head chunks": bytes_of(server.data / "chunks_head"),
    }
    return Used({"data": total - indexes, "indexes": indexes}, apart)


def _influxdb(server: PeerServer) -> Used:
    total = bytes_of(server.data / "data") + bytes_of(server.data / "meta")
    return Used({"data": total}, {"wal": bytes_of(server.data / "wal")})


@dataclass(frozen=True)
class Kind:
    """A peer: how it is started, told to compact, and looked at."""

    serve: Callable[[Stack], AbstractContextManager[PeerServer]]
    compact: Callable[[PeerServer], None]
    used: Callable[[PeerServer], Used]


PEERS: Mapping[str, Kind] = {
    "victoria-metrics": Kind(victoria_metrics_server, _merge, _victoria_metrics),
    "prometheus": Kind(prometheus_server, _snapshot, _prometheus),
    "influxdb": Kind(lambda stack: influxdb_server(stack, INFLUX_COLD), lambda _: None, _influxdb),
}
