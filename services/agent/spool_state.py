"""What the spool must remember besides its records: identity, next number, and the balance.

Two slots in one preallocated file are written in turn, so that a write cut short leaves the one
before it, and writing needs no new disk space.
"""

import os
import zlib
from pathlib import Path

import msgspec

SLOT_BYTES = 16 * 1024
"""A slot has room for the numbers of everything that can be settled out of order."""

_HEAD_BYTES = 8


class Count(msgspec.Struct, array_like=True):
    """Messages, and the samples in them."""

    messages: int = 0
    samples: int = 0

    def add(self, messages: int, samples: int) -> None:
        self.messages += messages
        self.samples += samples

    def copy(self) -> "Count":
        return Count(self.messages, self.samples)


class State(msgspec.Struct):
    """The spool's books, cumulative since it was made: generated = confirmed + dropped + waiting.

    next_seq: number of the next message. cursor: every record below it is settled; `done` are the
    settled ones at or above it. dropped: by reason.
    """

    epoch: str
    next_seq: int = 1
    cursor: int = 1
    done: list[int] = []
    generated: Count = msgspec.field(default_factory=Count)
    confirmed: Count = msgspec.field(default_factory=Count)
    dropped: dict[str, Count] = {}
    turn: int = 0

    def drop(self, reason: str, messages: int, samples: int) -> None:
        """Count messages that will never be delivered."""
        self.dropped.setdefault(reason, Count()).add(messages, samples)

    def waiting(self) -> Count:
        """What was generated and is neither confirmed nor dropped."""
        settled = [self.confirmed, *self.dropped.values()]
        return Count(
            self.generated.messages - sum(count.messages for count in settled),
            self.generated.samples - sum(count.samples for count in settled),
        )


class StateFile:
    """The file of the two slots. `write` does not wait for the disk; `sync` does."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        size = os.fstat(self._fd).st_size
        while size < 2 * SLOT_BYTES:
            size += os.pwrite(self._fd, bytes(2 * SLOT_BYTES - size), size)
        os.fsync(self._fd)

    def read(self) -> State | None:
        """The newer of the whole slots; None when neither is."""
        slots = [self._slot(0), self._slot(1)]
        return max((slot for slot in slots if slot), key=lambda state: state.turn, default=None)

    def write(self, state: State) -> None:
        """Keep `state` in the older slot. Raises OSError."""
        state.turn += 1
        body = msgspec.json.encode(state)
        head = len(body).to_bytes(4, "little") + zlib.crc32(body).to_bytes(4, "little")
        if len(body) > SLOT_BYTES - _HEAD_BYTES:
            raise ValueError(f"spool state of {len(body)} bytes; at most {SLOT_BYTES}")
        os.pwrite(self._fd, head + body, state.turn % 2 * SLOT_BYTES)

    def sync(self) -> None:
        """Returns once the disk has what was written. Raises OSError."""
        os.fdatasync(self._fd)

    def close(self) -> None:
        os.close(self._fd)

    def _slot(self, number: int) -> State | None:
        slot = os.pread(self._fd, SLOT_BYTES, number * SLOT_BYTES)
        length, crc = (int.from_bytes(slot[at : at + 4], "little") for at in (0, 4))
        body = slot[_HEAD_BYTES : _HEAD_BYTES + length]
        if not body or len(body) != length or zlib.crc32(body) != crc:
            return None
        return msgspec.json.decode(body, type=State)
