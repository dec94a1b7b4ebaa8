"""The hosts that a benchmark speaks for: what each reads at a tick, and messages of it.

Values are those of a recording (recording.py), so that they weigh what real ones do; instants are a
second apart. Every system gets the same samples from here: ours as messages, peers as requests.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, repeat

import numpy as np

from bench.recording import Recording, read
from bench.replay import Part, Replay, resized
from schemas.layouts import Series
from schemas.samples import SAMPLES_MSGPACK, SampleMessage, encode, frame
from schemas.topology import PARTITION_HEADER, sample_key
from services.bus import Message
from tests.stack.remote_write import compressed, encode_labels, encode_sample, time_series, varint

STEP_MS = 1000
MOST_ROWS = 240
"""Rows of the recording that are used: Python's numbers take room."""

VALUE_BYTES = 8
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

    def series(self) -> list[Series]:
        """In the order of the parts."""
        return [one for part in self.parts for one in part.series]


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


class RemoteWrite:
    """A host's ticks as bodies of Prometheus remote write, one each."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._columns = np.concatenate([part.columns for part in load.parts])
        self._prefixes: dict[int, list[bytes]] = {}

    def body(self, host: int, tick: int) -> bytes:
        load = self._load
        at = b"\x10" + varint(load.at_ms(host, tick))
        if host not in self._prefixes:
            self._prefixes[host] = self._prefixes_of(host, len(at))
        packed = load.recording.values[load.row(host, tick)][self._columns].tobytes()
        values = [packed[at : at + VALUE_BYTES] for at in range(0, len(packed), VALUE_BYTES)]
        series = zip(self._prefixes[host], values, repeat(at), strict=False)
        return compressed(b"".join(chain.from_iterable(series)))

    def _prefixes_of(self, host: int, instant_bytes: int) -> list[bytes]:
        """What precedes the value, of each series: the same in every request."""
        sample = encode_sample(0.0, self._load.at_ms(host, 0))
        tail = VALUE_BYTES + instant_bytes
        return [
            time_series(encode_labels(labels), sample)[:-tail]
            for labels in full_labels(self._load.series(), self._load.source(host))
        ]


class Lines:
    """The same as InfluxDB's line protocol: a measurement per metric, its labels as tags."""

    def __init__(self, load: Load) -> None:
        self._load = load
        columns = np.concatenate([part.columns for part in load.parts])
        self._numbers = [
            [repr(value) for value in load.recording.values[row, columns].tolist()]
            for row in range(load.rows)
        ]
        self._prefixes: dict[int, list[str]] = {}

    def body(self, host: int, tick: int) -> bytes:
        load = self._load
        if host not in self._prefixes:
            labels = full_labels(load.series(), load.source(host))
            self._prefixes[host] = [line_prefix(one) for one in labels]
        end = f" {load.at_ms(host, tick)}\n"
        numbers = self._numbers[load.row(host, tick)]
        lines = zip(self._prefixes[host], numbers, repeat(end), strict=False)
        return "".join(chain.from_iterable(lines)).encode()


def full_labels(series: Sequence[Series], source: dict[str, str]) -> Iterator[dict[str, str]]:
    """All labels of each series, its name and its source's included."""
    for one in series:
        yield {"__name__": one.name, **one.labels, **source}


def line_prefix(labels: dict[str, str]) -> str:
    """A line up to its value; InfluxDB has no empty tags."""
    tags = (
        f",{name}={_escaped(value)}"
        for name, value in sorted(labels.items())
        if value and name != "__name__"
    )
    return f"{labels['__name__']}{''.join(tags)} value="


def _escaped(text: str) -> str:
    for character in ("\\", ",", "=", " "):
        text = text.replace(character, f"\\{character}")
    return text
