"""The agent itself: its spool's books, and what it costs. Also shown on its /metrics."""

from collections.abc import Iterator

import psutil

from services.agent.collectors import Host, Options, Reading, collector, counter, gauge
from services.agent.spool import REASONS
from services.agent.spool_state import Count

UP = gauge("up", "1: this instance's agent reads and publishes.")
AGENT_UP = gauge("vervet_agent_up", "1, with every message.")
GENERATED = counter(
    "vervet_agent_samples_generated_total", "Samples made since the spool was: all that follows."
)
PUBLISHED = counter(
    "vervet_agent_samples_published_total", "Samples that the broker confirmed to have stored."
)
DROPPED = counter(
    "vervet_agent_samples_dropped_total", "Samples that will never be delivered.", "reason"
)
MESSAGES_PUBLISHED = counter(
    "vervet_agent_messages_published_total", "Messages that the broker confirmed to have stored."
)
MESSAGES_DROPPED = counter(
    "vervet_agent_messages_dropped_total", "Messages that will never be delivered.", "reason"
)
SEQ = gauge("vervet_agent_message_seq", "Number of the last message in the spool's epoch.")
SPOOL_SAMPLES = gauge("vervet_agent_spool_samples", "Samples that wait for a confirmation.")
SPOOL_MESSAGES = gauge("vervet_agent_spool_messages", "Messages that wait for a confirmation.")
SPOOL_BYTES = gauge("vervet_agent_spool_bytes", "Disk space of the spool's segments.")
SPOOL_AGE = gauge("vervet_agent_spool_oldest_age_seconds", "Age of the oldest waiting message.")
FAILURES = counter(
    "vervet_agent_publish_failures_total", "Publishes that were not confirmed.", "reason"
)
MISSED = counter("vervet_agent_missed_ticks_total", "Ticks that were due while one was late.")
CPU = counter("vervet_agent_cpu_seconds_total", "CPU time of the agent's process.")
RESIDENT = gauge("vervet_agent_resident_bytes", "Resident memory of the agent's process.")

_process = psutil.Process()


@collector("agent", platforms=("linux", "darwin", "win32"))
def agent(host: Host, options: Options) -> Iterator[Reading]:
    facts = host.agent
    yield UP(1)
    yield AGENT_UP(1)
    yield MISSED(facts.missed_ticks)
    for reason, count in facts.publish_failures.items():
        yield FAILURES(count, reason)
    times = _process.cpu_times()
    yield CPU(times.user + times.system)
    yield RESIDENT(_process.memory_info().rss)
    if (books := facts.spool) is None:
        return
    yield SEQ(books.last_seq)
    yield GENERATED(books.generated.samples)
    yield PUBLISHED(books.confirmed.samples)
    yield MESSAGES_PUBLISHED(books.confirmed.messages)
    for reason in REASONS:
        dropped = books.dropped.get(reason, Count())
        yield DROPPED(dropped.samples, reason)
        yield MESSAGES_DROPPED(dropped.messages, reason)
    yield SPOOL_SAMPLES(books.waiting.samples)
    yield SPOOL_MESSAGES(books.waiting.messages)
    yield SPOOL_BYTES(books.disk_bytes)
    oldest_s = facts.now_s() - books.oldest_at_us / 1e6 if books.oldest_at_us else 0.0
    yield SPOOL_AGE(max(0.0, oldest_s))
