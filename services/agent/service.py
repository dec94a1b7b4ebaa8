"""The agent: reads this host on its ticks, keeps what it read in the spool, publishes the spool."""

import asyncio
import itertools
import time
from functools import partial
from typing import Literal

import structlog

from schemas.durations import format_duration
from schemas.events import EVENT_JSON, AgentStatus, encode_status
from schemas.topology import EVENTS
from services.agent.collectors import AgentFacts, Host, load
from services.agent.exposition import exposed
from services.agent.outgoing import compose
from services.agent.publisher import Publisher, first_of
from services.agent.runner import Runner, Station
from services.agent.schedule import Schedule, splay_ns
from services.agent.settings import AgentSettings
from services.agent.spool import NO_SPACE, SpoolInUse
from services.agent.store import Store, open_store
from services.bus import BusError, Message, Refused
from services.bus_none import NoBus
from services.clock import instant, now_us, rfc3339
from services.runtime import Context, Unable, backoff_s, version

log = structlog.get_logger("vervet.agent")

DRAIN_S = 1.0
"""What publishing may take after the agent was told to stop; the spool keeps the rest."""

GOODBYE_S = 0.8
"""What saying goodbye may take."""

SECOND_NS = 1_000_000_000


async def serve(settings: AgentSettings, context: Context) -> None:
    """Run the agent. Raises Unable where its spool cannot be used."""
    facts = AgentFacts()
    host = Host(settings.rootfs, facts)
    stations = choose_stations(settings)
    log.info(
        "agent starts",
        instance=settings.instance,
        interval=format_duration(settings.interval),
        collectors=" ".join(stations),
    )
    store = await _open_store(settings, context, facts)
    if store is None:
        return
    runner = Runner(stations, host)
    try:
        with exposed(host):
            async with asyncio.TaskGroup() as group:
                reading = group.create_task(
                    _read(settings, context, facts, stations, runner, store), name="read"
                )
                if isinstance(context.bus, NoBus):
                    log.warning("no broker URL: what is read stays in the spool, nothing is sent")
                else:
                    publishing = _publish(settings, context, facts, store)
                    group.create_task(publishing, name="publish")
                await context.stopping.wait()
                await asyncio.wait({reading}, timeout=DRAIN_S)
                reading.cancel()  # a collector hangs; what was read at this tick has no number yet
    finally:
        runner.rest()
        await store.close()
    log.info("agent stopped", waiting_messages=_waiting(facts))


def choose_stations(settings: AgentSettings) -> dict[str, Station]:
    """The collectors that are enabled and read on this platform, with their settings."""
    options = settings.options()
    chosen = {}
    for name, collector in load().items():
        if not options[name].enabled:
            continue
        if why := collector.skipped():
            log.info("collector skipped", collector=name, reason=why)
            continue
        usual = max(collector.interval or settings.interval, settings.interval)
        chosen[name] = Station(collector, options[name], options[name].interval or usual)
    return chosen


async def _open_store(settings: AgentSettings, context: Context, facts: AgentFacts) -> Store | None:
    """The spool; None when told to stop before there was one. Waits while the disk is full; what a
    person has to mend is Unable."""
    directory = settings.spool()
    for attempt in itertools.count():
        try:
            store = await open_store(
                directory,
                facts,
                max_bytes=settings.spool_max_bytes,
                max_age=settings.spool_max_age,
            )
            break
        except SpoolInUse as error:
            raise Unable(f"the spool {error}; stop that one or set --spool-directory") from error
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise Unable(
                    f"no spool: {error}; set --spool-directory to one that this user can write"
                ) from error
            if context.health.waiting("spool", str(error)):
                log.warning("waiting for disk space", reason=str(error))
            await first_of(context.stopping, timeout_s=backoff_s(attempt))
            if context.stopping.is_set():
                return None
    context.health.ready("spool")
    log.info("spool opened", directory=str(directory), waiting_messages=_waiting(facts))
    return store


def _waiting(facts: AgentFacts) -> int:
    return facts.spool.waiting.messages if facts.spool else 0


async def _read(
    settings: AgentSettings,
    context: Context,
    facts: AgentFacts,
    stations: dict[str, Station],
    runner: Runner,
    store: Store,
) -> None:
    """Read what is due at each tick and store it as one message, until told to stop."""
    intervals = {
        name: int(station.interval.total_seconds() * SECOND_NS)
        for name, station in stations.items()
    }
    shift_ns = splay_ns(settings.instance, min(intervals.values()))
    schedule = Schedule(intervals, time.monotonic_ns() + shift_ns)
    while not context.stopping.is_set():
        now_ns = time.monotonic_ns()
        if now_ns < schedule.next_ns():
            wait_s = (schedule.next_ns() - now_ns) / SECOND_NS
            await first_of(context.stopping, timeout_s=wait_s)
            continue
        names, skipped = schedule.due(now_ns)
        facts.missed_ticks += skipped
        at_us = now_us()
        columns = await runner.tick(names, at_us)
        await store.append(partial(compose, columns, settings.source, at_us, settings.format))


async def _publish(
    settings: AgentSettings, context: Context, facts: AgentFacts, store: Store
) -> None:
    """Say hello, publish until told to stop, publish what can be, say goodbye."""
    async with asyncio.TaskGroup() as group:
        hello = group.create_task(_say_hello(settings, context, store.epoch), name="hello")
        publisher = group.create_task(Publisher(store, context, facts).run(), name="publisher")
        await context.stopping.wait()
        hello.cancel()
        await asyncio.wait({publisher}, timeout=DRAIN_S)
        publisher.cancel()
    try:
        async with asyncio.timeout(GOODBYE_S):
            await _say(_status("stopping", settings, store.epoch), context)
    except (TimeoutError, BusError) as error:
        log.info("stopped without a goodbye", reason=str(error) or "the broker did not answer")


async def _say_hello(settings: AgentSettings, context: Context, epoch: str) -> None:
    status = _status("started", settings, epoch)
    for attempt in itertools.count():
        try:
            await _say(status, context)
        except Refused as error:
            log.error("hello refused", reason=str(error))
            return
        except BusError as error:
            if context.health.waiting("broker", str(error)):
                log.warning("waiting for the broker", reason=str(error))
            await asyncio.sleep(backoff_s(attempt))
        else:
            context.health.ready("broker")
            return


def _status(
    state: Literal["started", "stopping"], settings: AgentSettings, epoch: str
) -> AgentStatus:
    return AgentStatus(
        state=state,
        source=settings.source,
        epoch=epoch,
        at=instant(now_us()),
        version=version(),
        interval_s=settings.interval.total_seconds(),
    )


async def _say(status: AgentStatus, context: Context) -> None:
    name = "/".join((status.source["instance"], status.epoch, status.state, rfc3339(status.at)))
    message = Message(encode_status(status), EVENT_JSON, name)
    await context.bus.publish(EVENTS, status.routing_key, message)
