"""The hosts that a benchmark speaks for: their layouts, and messages as an agent makes them."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from schemas.layouts import Series, encode_layout
from schemas.samples import SAMPLES_MSGPACK, SampleMessage, encode, frame
from schemas.topology import PARTITION_HEADER, sample_key
from services.bus import Message

HOSTS = 100
FRAMES = 10
"""An agent has a frame per collector, about ten, however many samples they hold."""

VARIANTS = 32
"""Different rows of numbers; the cost is in their count, hardly in their values."""

STEP_US = 1_000_000


@dataclass(frozen=True)
class Host:
    """One host. layouts: (collector, encoded layout). offset_us: its clock beside the others'."""

    source: dict[str, str]
    epoch: str
    layouts: tuple[tuple[str, bytes], ...]
    offset_us: int


class Fleet:
    """Hosts that take turns; each turn of one is a message with everything it read at a tick."""

    def __init__(self, samples: int, first_at_us: int, seed: int = 1) -> None:
        if samples % FRAMES:
            raise ValueError(f"{samples} samples are not {FRAMES} frames of one size")
        self._random = random.Random(seed)
        self._first_at_us = first_at_us
        self._made = 0
        width = samples // FRAMES
        layouts = tuple(
            (f"collector{number}", encode_layout(_series(number, width)))
            for number in range(FRAMES)
        )
        self._hosts = [self._host(number, layouts) for number in range(HOSTS)]
        self._rows = [[self._random.gauss(1e6, 1e5) for _ in range(width)] for _ in range(VARIANTS)]

    def messages(self, count: int) -> Iterator[tuple[str, Message]]:
        """The next messages with their routing keys. What is done in here is the agent's work."""
        for number in range(self._made, self._made + count):
            seq, turn = divmod(number, HOSTS)
            host = self._hosts[turn]
            self._made = number + 1
            at = [self._first_at_us + host.offset_us + seq * STEP_US]
            frames = tuple(
                frame(collector, layout, at, [self._rows[(number + index) % VARIANTS]])
                for index, (collector, layout) in enumerate(host.layouts)
            )
            made = SampleMessage(host.source, host.epoch, seq, frames)
            instance = host.source["instance"]
            yield (
                sample_key(host.source["job"], instance),
                Message(
                    encode(made), SAMPLES_MSGPACK, made.message_id, {PARTITION_HEADER: instance}
                ),
            )

    def _host(self, number: int, layouts: tuple[tuple[str, bytes], ...]) -> Host:
        source = {"job": "node", "instance": f"host-{number:04}"}
        epoch = f"{self._random.getrandbits(64):016x}"
        return Host(source, epoch, layouts, self._random.randrange(STEP_US))


def _series(frame_number: int, width: int) -> list[Series]:
    """Series with as many and as long labels as a collector's."""
    return [
        Series(
            f"node_bench_{frame_number}_seconds_total",
            {"cpu": str(number), "mode": "user"},
            "counter",
            "seconds",
        )
        for number in range(width)
    ]
