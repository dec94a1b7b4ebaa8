"""The hosts that a benchmark speaks for: what each reads at a tick, and messages of it.

Values are those of a recording (recording.py), so that they weigh what real ones do; instants are a
second apart. Every system gets the same samples from here: ours as messages, peers as requests.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bench.recording import Recording, read
from bench.replay import Part, Piece, Replay, resized
from schemas.samples import SAMPLES_MSGPACK, SampleMessage, encode, frame
from schemas.topology import PARTITION_HEADER, sample_key
from services.bus import Message

STEP_MS = 1000
MOST_ROWS = 240
"""Rows of the recording that are used: Python's numbers take room."""

JOB = "node"


@dataclass(frozen=True)
class Load:
    """`hosts` hosts of `samples` series, whose first tick is at first_ms or up to a step later."""

    samples: int
    hosts: int
    first_ms: int
    recording: Recording

    @staticmethod
    def of(samples: int, hosts: int, first_ms: int) -> "Load":
        """The load out of the recording that comes with the benchmarks."""
        return Load(samples, hosts, first_ms, resized(read(), samples))

    def source(self, host: int) -> dict[str, str]:
        return {"job": JOB, "instance": f"host-{host:05}"}

    def at_ms(self, host: int, tick: int) -> int:
        return self.first_ms + host * STEP_MS // self.hosts + tick * STEP_MS

    def row(self, host: int, tick: int) -> int:
        """Which row of the recording a host reads at a tick; each begins at its own."""
        return (host * 7 + tick) % self.rows

    @cached_property
    def rows(self) -> int:
        return min(MOST_ROWS, len(self.recording.at_ms))

    @cached_property
    def parts(self) -> list[Part]:
        return [part for _, part in Replay(self.recording, 0).parts]

    def pieces(self, host: int, tick: int) -> Iterator[Piece]:
        """What a host reads at a tick."""
        at_ms = np.array([self.at_ms(host, tick)])
        values = self.recording.values[self.row(host, tick)][np.newaxis]
        for part in self.parts:
            yield Piece(part, at_ms, values[:, part.columns])


class Fleet:
    """Hosts that take turns; each turn of one is a message with everything it read at a tick."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._made = 0
        values = load.recording.values[: load.rows]
        self._rows: list[list[list[float]]] = [
            [values[row, part.columns].tolist() for part in load.parts] for row in range(load.rows)
        ]

    def messages(self, count: int) -> Iterator[tuple[str, Message]]:
        """The next messages with their routing keys. What is done in here is the agent's work."""
        load = self._load
        for number in range(self._made, self._made + count):
            seq, host = divmod(number, load.hosts)
            self._made = number + 1
            at = [load.at_ms(host, seq) * 1000]
            row = self._rows[load.row(host, seq)]
            frames = tuple(
                frame(part.collector, part.encoded, at, [values])
                for part, values in zip(load.parts, row, strict=True)
            )
            source = load.source(host)
            made = SampleMessage(source, f"{host:016x}", seq, frames)
            instance = source["instance"]
            yield (
                sample_key(source["job"], instance),
                Message(
                    encode(made), SAMPLES_MSGPACK, made.message_id, {PARTITION_HEADER: instance}
                ),
            )
