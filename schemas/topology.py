"""The broker's topology as data: `vervet migrate` declares it, services check it."""

from dataclasses import dataclass, field
from typing import Literal

INTAKE = "vervet.intake"
"""Where samples are published. A fanout: all that is ours takes everything, and matching the words
of keys for it would cost the broker a tenth more (docs/adr/0003-bus.md)."""

SAMPLES = "vervet.samples"
"""Where others subscribe to samples, by topic."""

EVALUATE = "vervet.evaluate"
EVENTS = "vervet.events"
ALERTS = "vervet.alerts"
CONTROL = "vervet.control"
DEAD = "vervet.dead"

INGEST_QUEUE = "ingest"
NOTIFY_QUEUE = "notify"
FLEET_QUEUE = "fleet"
DEAD_QUEUE = "dead"

PARTITION_HEADER = "instance"
"""Header whose value chooses the evaluator's partition; every sample message carries it."""

DEFAULT_PARTITIONS = 8
"""Upper bound of evaluators that share the work. Changing it moves hosts between partitions."""

DELIVERY_LIMIT = 10
"""Deliveries of a message before it is poison. Set always: 3.10 has no limit, 4.x has 20."""

MAX_QUEUE_BYTES = 4 * 1024**3
"""A full queue refuses publishes (reject-publish), so the agents' spools hold the rest."""

MAX_MESSAGE_BYTES = 1024**2
"""Largest body that an agent makes and a consumer accepts; RabbitMQ 4 itself allows 16 MiB."""


@dataclass(frozen=True)
class Exchange:
    """An exchange. `hash_header` is set for a consistent-hash exchange."""

    name: str
    kind: Literal["topic", "fanout", "x-consistent-hash"]
    hash_header: str | None = None


@dataclass(frozen=True)
class Queue:
    """A durable quorum queue. `single_active`: one consumer at a time gets messages, in order."""

    name: str
    single_active: bool = False
    dead_letters: bool = True


@dataclass(frozen=True)
class Binding:
    """Routes `exchange` to a queue or an exchange. For a hash exchange, `key` is a weight."""

    exchange: str
    target: str
    key: str = "#"
    to_exchange: bool = False


@dataclass(frozen=True)
class Topology:
    """All that a broker must hold before a service starts."""

    exchanges: tuple[Exchange, ...] = ()
    queues: tuple[Queue, ...] = ()
    bindings: tuple[Binding, ...] = field(default=())


def partition_queue(partition: int) -> str:
    """Name of the queue of one evaluator partition, counted from 0."""
    return f"evaluate.{partition}"


def topology(partitions: int = DEFAULT_PARTITIONS) -> Topology:
    """The whole topology for a number of evaluator partitions."""
    evaluate = tuple(Queue(partition_queue(p), single_active=True) for p in range(partitions))
    return Topology(
        exchanges=(
            Exchange(INTAKE, "fanout"),
            Exchange(SAMPLES, "topic"),
            Exchange(EVALUATE, "x-consistent-hash", hash_header=PARTITION_HEADER),
            Exchange(EVENTS, "topic"),
            Exchange(ALERTS, "topic"),
            Exchange(CONTROL, "topic"),
            Exchange(DEAD, "fanout"),
        ),
        queues=(
            Queue(INGEST_QUEUE),
            *evaluate,
            Queue(NOTIFY_QUEUE),
            Queue(FLEET_QUEUE),
            Queue(DEAD_QUEUE, dead_letters=False),
        ),
        bindings=(
            Binding(INTAKE, INGEST_QUEUE),
            Binding(INTAKE, EVALUATE, to_exchange=True),
            Binding(INTAKE, SAMPLES, to_exchange=True),
            *(Binding(EVALUATE, queue.name, key="1") for queue in evaluate),
            Binding(ALERTS, NOTIFY_QUEUE),
            Binding(EVENTS, FLEET_QUEUE, key="agent.#"),
            Binding(EVENTS, FLEET_QUEUE, key="metrics.#"),
            Binding(DEAD, DEAD_QUEUE),
        ),
    )


MAX_WORD_BYTES = 80
"""Longest word of a routing key, so that three and a state fit into AMQP's 255 bytes."""

_NOT_IN_WORDS = str.maketrans(".*#", "___")


def key_word(text: str) -> str:
    """One word of a routing key: what has a meaning there (`.`, `*`, `#`) becomes `_`."""
    word = text.translate(_NOT_IN_WORDS)
    if len(word) * 4 > MAX_WORD_BYTES:
        word = word.encode(errors="replace")[:MAX_WORD_BYTES].decode(errors="ignore")
    return word or "_"


def sample_key(job: str, instance: str) -> str:
    """Routing key of a sample message: `<job>.<instance>`."""
    return f"{key_word(job)}.{key_word(instance)}"


def alert_key(severity: str, state: str, instance: str, alertname: str) -> str:
    """Routing key of a transition: `<severity>.<state>.<instance>.<alertname>`."""
    return ".".join(key_word(word or "none") for word in (severity, state, instance, alertname))
