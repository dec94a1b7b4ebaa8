"""A batch: decoded messages on their way into one transaction. Pure, without I/O.

A message is checked here, whole, before anything of it is stored, so that what cannot be stored is
known one message at a time.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas.errors import Invalid
from schemas.layouts import Series, decode_layout, layout_hash
from schemas.samples import Frame, SampleMessage, from_little, present_labels
from schemas.values import ABSENT_BITS
from services.bus import Delivery
from services.cells import to_stored
from services.clock import DAY_US, POSTGRES_EPOCH_US, rfc3339
from services.ingest.copying import ARRAY_BYTES, COPY_HEADER, COPY_TRAILER, FLOAT8_OID, row_type
from services.ingest.settings import IngestSettings

MAX_CACHED_LAYOUTS = 100_000
"""Layouts that a worker remembers by their bytes; a host has about ten."""

_MICROSECOND = timedelta(microseconds=1)


@dataclass(slots=True)
class Layout:
    """A layout as this worker knows it; `id` is None until the database has given one.

    as_of: how often layouts had been collected when the id was looked up (store.py).
    """

    source: Mapping[str, str]
    series: tuple[Series, ...]
    hash: bytes
    id: int | None = None
    as_of: int = -1
    width: int = field(init=False)

    def __post_init__(self) -> None:
        self.width = len(self.series)


Labels = frozenset[tuple[str, str]]


class Layouts:
    """Layouts by source and wire bytes, so that each is decoded once."""

    def __init__(self) -> None:
        self._sources: dict[Labels, dict[bytes, Layout]] = {}
        self._count = 0

    def of(self, labels: Labels) -> dict[bytes, Layout]:
        """What is known of the source with these labels, by wire bytes."""
        known = self._sources.get(labels)
        if known is None:
            known = self._sources[labels] = {}
        return known

    def learn(self, labels: Labels, data: bytes) -> Layout:
        """The layout of these bytes, of the source with these labels; `of` knows it from now on.
        Raises Invalid when they are none."""
        series = decode_layout(data)
        source = present_labels(dict(labels))
        made = Layout(source, series, layout_hash(source, series))
        self._count += 1
        if self._count > MAX_CACHED_LAYOUTS:
            self._sources.clear()
            self._count = 1
        self._sources.setdefault(labels, {})[data] = made
        return made


class Rows(msgspec.Struct, frozen=True, gc=False):
    """One frame, checked: `at` µs since 1970, `values` (rows, width) float64 bytes.

    Instants are ints: a frame has one as a rule, and an array costs microseconds to make and ask.
    """

    layout: Layout
    at: tuple[int, ...]
    values: bytes


@dataclass(slots=True)
class Received:
    """One message, checked and ready to be stored. at: all instants of its frames, µs."""

    delivery: Delivery
    source: Mapping[str, str]
    epoch: str
    seq: int
    frames: list[Rows]
    samples: int
    at: set[int]


class Batch:
    """Messages for one transaction."""

    def __init__(self) -> None:
        self.messages: list[Received] = []
        self._samples = 0
        self._rows = 0
        self._bytes = 0

    def add(self, one: Received) -> None:
        self.messages.append(one)
        self._samples += one.samples
        self._rows += sum(len(rows.at) for rows in one.frames)
        self._bytes += len(one.delivery.message.body)

    def is_full(self, settings: IngestSettings) -> bool:
        """Also when it holds half of what the broker lends: the other half is gathered while this
        one is written."""
        return (
            self._samples >= settings.batch_samples
            or self._rows >= settings.batch_rows
            or self._bytes >= settings.batch_bytes
            or len(self.messages) * 2 >= settings.prefetch
        )


@dataclass(frozen=True)
class Window:
    """Which instants are believed, as spans around the receiver's clock."""

    max_age: timedelta
    max_ahead: timedelta

    def bounds_us(self, now_us: int) -> tuple[int, int]:
        return now_us - self.max_age // _MICROSECOND, now_us + self.max_ahead // _MICROSECOND


def receive(
    delivery: Delivery, message: SampleMessage, layouts: Layouts, bounds_us: tuple[int, int]
) -> Received:
    """Check a decoded message against its layouts. Raises Invalid with the reason."""
    frames: list[Rows] = []
    samples, instants = 0, set[int]()
    labels = frozenset(message.source.items())
    known = layouts.of(labels)
    before = b""
    at: tuple[int, ...] = ()
    for frame in message.frames:
        if frame.at != before:  # the frames of a message are of one instant, as a rule
            before, at = frame.at, _instants(frame, bounds_us)
            instants.update(at)
        layout = known.get(frame.layout) or layouts.learn(labels, frame.layout)
        if len(frame.values) != 8 * len(at) * layout.width:
            raise Invalid(
                f"frame {frame.collector}: values: {len(frame.values)} bytes; expected "
                f"{len(at)} rows of {layout.width} float64"
            )
        samples += len(frame.values) // 8 - _absent(frame.values)
        frames.append(Rows(layout, at, frame.values))
    return Received(delivery, message.source, message.epoch, message.seq, frames, samples, instants)


def _instants(frame: Frame, bounds_us: tuple[int, int]) -> tuple[int, ...]:
    at = tuple(from_little("q", frame.at))
    if len(set(at)) != len(at):
        raise Invalid(f"frame {frame.collector}: at: an instant stands twice")
    for wrong in (at_us for at_us in at if not bounds_us[0] <= at_us <= bounds_us[1]):
        raise Invalid(f"frame {frame.collector}: at: {_shown(wrong)} is too far from now")
    return at


_ABSENT = ABSENT_BITS.to_bytes(8, "little")


def _absent(values: bytes) -> int:
    """How many of these float64 are absent. Few frames have any, so bytes are searched first."""
    if _ABSENT not in values:
        return 0
    return int(np.count_nonzero(np.frombuffer(values, "<u8") == ABSENT_BITS))


def _shown(at_us: int) -> str:
    try:
        return rfc3339(at_us)
    except OverflowError:
        return f"{at_us} µs"


@dataclass(slots=True)
class Progress:
    """What a batch adds to one agent's row: messages that are new and ones that came again."""

    source: Mapping[str, str]
    first_seq: int
    last_seq: int
    last_at_us: int
    last_samples: int
    messages: int = 0
    samples: int = 0
    duplicates: int = 0


Key = tuple[str, str, str]
RowKey = tuple[int, int]


def progress(batch: Sequence[Received], known: set[RowKey]) -> dict[Key, Progress]:
    """Per (job, instance, epoch), sorted. `known` holds (layout id, at µs) that were stored before.

    A message counts as a duplicate when all its rows were known, or came twice in this batch.
    """
    agents: dict[Key, Progress] = {}
    seen: set[tuple[str, str, int]] = set()
    for one in batch:
        key = (one.source["job"], one.source["instance"], one.epoch)
        last_at_us = max(one.at)
        agent = agents.get(key)
        if agent is None:
            agent = agents[key] = Progress(one.source, one.seq, one.seq, last_at_us, one.samples)
        agent.first_seq = min(agent.first_seq, one.seq)
        if one.seq > agent.last_seq:
            agent.last_seq, agent.last_samples = one.seq, one.samples
        agent.last_at_us = max(agent.last_at_us, last_at_us)
        identity = (one.source["instance"], one.epoch, one.seq)
        if identity in seen or (known and _all_known(one, known)):
            agent.duplicates += 1
        else:
            agent.messages += 1
            agent.samples += one.samples
        seen.add(identity)
    return dict(sorted(agents.items()))


def _all_known(one: Received, known: set[RowKey]) -> bool:
    return all((rows.layout.id, at) in known for rows in one.frames for at in rows.at)


def _encode_rows(
    layouts: NDArray[np.int32], at: NDArray[np.int64], bits: NDArray[np.uint64]
) -> memoryview:
    """Rows of one width. bits: (rows, width), of float64."""
    width = bits.shape[1]
    rows = np.empty(at.size, row_type(("values", ">u8", width)))
    rows["fields"], rows["layout_bytes"], rows["at_bytes"] = 3, 4, 8
    rows["layout"], rows["at"] = layouts, at - POSTGRES_EPOCH_US
    rows["values_bytes"] = ARRAY_BYTES + 12 * width
    rows["values_head"] = 1, 0, FLOAT8_OID, width, 1
    rows["values"]["bytes"], rows["values"]["value"] = 8, bits
    return rows.view(np.uint8).data


def encode_copy(frames: Sequence[Rows]) -> bytes:
    """Binary COPY of (layout_id, at, values) rows; no Python object per sample is made.

    They stand in the order of (width, layout_id, at): all who write take the same, or two with the
    same rows would wait for each other.
    """
    by_width: defaultdict[int, list[Rows]] = defaultdict(list)
    for rows in frames:
        by_width[rows.layout.width].append(rows)
    parts: list[bytes | memoryview] = [COPY_HEADER]
    for width, alike in sorted(by_width.items()):
        layouts = np.array([one.layout.id for one in alike for _ in one.at], np.int32)
        at = np.array([instant for one in alike for instant in one.at], np.int64)
        # Bits, not numbers, are copied: a conversion of float64 could change a NaN's payload.
        bits = np.frombuffer(b"".join([one.values for one in alike]), "<u8").reshape(-1, width)
        order = np.lexsort((at, layouts))
        parts.append(_encode_rows(layouts[order], at[order], to_stored(bits[order])))
    parts.append(COPY_TRAILER)
    return b"".join(parts)


def passes(batch: Sequence[Received]) -> list[list[Rows]]:
    """The batch's frames in groups that hold no (layout, at) twice: one statement can merge into
    a row only once. Nearly always one group."""
    frames = [rows for one in batch for rows in one.frames]
    keys = [(rows.layout.id, at) for rows in frames for at in rows.at]
    return [frames] if len(set(keys)) == len(keys) else _apart(frames)


def _apart(frames: Sequence[Rows]) -> list[list[Rows]]:
    groups: list[list[Rows]] = []
    taken: list[set[RowKey]] = []
    for rows in frames:
        keys = {(rows.layout.id or 0, at) for at in rows.at}
        place = next((i for i, seen in enumerate(taken) if seen.isdisjoint(keys)), len(groups))
        if place == len(groups):
            groups.append([])
            taken.append(set())
        groups[place].append(rows)
        taken[place] |= keys
    return groups


def days(batch: Sequence[Received]) -> set[int]:
    """Days since 1970 (UTC) that the batch has rows in."""
    return {at // DAY_US for one in batch for at in one.at}
