"""The spool: messages on disk from the tick that made them until the broker confirmed them.

Append-only segment files of records with a CRC, and a small file of state. What was appended is on
the disk when `append` returns; only then may its number be used. Beyond its bounds in bytes and
age, and when the disk is full, the oldest segment goes, and what was in it is counted. One thread
at a time calls a Spool.
"""

import errno
import fcntl
import os
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import structlog

from services.agent.records import Record, pack, scan
from services.agent.spool_state import Count, State, StateFile

log = structlog.get_logger("vervet.agent.spool")

SEGMENT_BYTES = 256 * 1024
"""Size of a segment: what goes at once when room is needed. Some minutes of an agent's work."""

SEGMENTS_AT_LEAST = 8
"""Parts of the bounds: a small or short spool has smaller segments, and drops less at once."""

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)

FULL, OLD, REFUSED = "full", "age", "refused"
DAMAGED = "damaged"
"""Torn by a crash, bits flipped, or file gone: generated, and not found again."""
UNWRITABLE = "unwritable"
"""The disk failed otherwise than by being full."""

REASONS = (FULL, OLD, REFUSED, DAMAGED, UNWRITABLE)


class SpoolInUse(Exception):
    """Another agent has this spool open."""


@dataclass(frozen=True)
class Bounds:
    """What a spool may hold: bytes on disk, and the age of a message in microseconds."""

    max_bytes: int
    max_age_us: int

    @property
    def segment_bytes(self) -> int:
        return min(SEGMENT_BYTES, self.max_bytes // SEGMENTS_AT_LEAST)

    @property
    def segment_age_us(self) -> int:
        return self.max_age_us // SEGMENTS_AT_LEAST


@dataclass(eq=False)
class _Segment:
    """A file of records. `size`: bytes that were stored whole. `unread`: owed and not yet taken."""

    path: Path
    first_seq: int
    first_at_us: int
    last_seq: int
    last_at_us: int
    size: int = 0
    unread: Count = field(default_factory=Count)

    def add(self, record: Record) -> None:
        self.last_seq, self.last_at_us = record.seq, record.at_us
        self.unread.add(1, record.samples)


@dataclass(frozen=True)
class SpoolStats:
    """A spool's books at one instant; counts are cumulative since it was made."""

    epoch: str
    last_seq: int
    generated: Count
    confirmed: Count
    dropped: dict[str, Count]
    waiting: Count
    disk_bytes: int
    oldest_at_us: int | None


def open_spool(directory: Path, *, max_bytes: int, max_age: timedelta) -> "Spool":
    """The spool in `directory`, made when there is none. Raises SpoolInUse, OSError."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = _lock(directory)
    bounds = Bounds(max_bytes, int(max_age.total_seconds() * 1_000_000))
    return Spool(directory, StateFile(directory / "state"), lock, bounds)


class Spool:
    """An open spool; nobody else has it open. Made by `open_spool`."""

    def __init__(self, directory: Path, file: StateFile, lock: int, bounds: Bounds) -> None:
        self._directory = directory
        self._file = file
        self._lock = lock
        self._bounds = bounds
        self._state = file.read() or State(epoch=secrets.token_hex(8))
        self._done = set(self._state.done)  # settled, at or above the cursor
        self._in_flight: dict[int, Record] = {}
        self._segments: list[_Segment] = []
        self._writing = -1  # descriptor of the last segment; -1 when a new one is due
        self._recover()
        self._reading = 0  # index of the segment that is read, and the offset in it
        self._offset = 0
        self._read_seq = self._state.cursor

    @property
    def epoch(self) -> str:
        """Random identity of this spool; a number is unique within it."""
        return self._state.epoch

    @property
    def next_seq(self) -> int:
        """The number of the message that is appended next."""
        return self._state.next_seq

    def append(self, records: Sequence[Record], now_us: int) -> bool:
        """Store records, numbered from `next_seq` on, all or none; one wait for the disk.

        False when they could not be stored and are counted as dropped: their numbers stay unused.
        """
        self._expire(now_us)
        samples = sum(record.samples for record in records)
        self._state.generated.add(len(records), samples)
        if reason := self._store(records, now_us):
            self._state.drop(reason, len(records), samples)
        else:
            self._state.next_seq = records[-1].seq + 1
        self._save()
        return reason is None

    def take(self, window: int, max_bytes: int) -> list[Record]:
        """The next records in order; they are then in flight until `settle`.

        All numbers in flight lie within `window`, and together they hold about `max_bytes`.
        """
        taken: list[Record] = []
        room = max_bytes - sum(len(record.payload) for record in self._in_flight.values())
        while (segment := self._readable()) is not None:
            start = self._offset
            for item, end in scan(self._read(segment)):
                if isinstance(item, Record) and self._is_owed(item.seq):
                    oldest = min(self._in_flight, default=item.seq)
                    if room <= 0 or item.seq >= oldest + window:
                        return taken
                    room -= len(item.payload)
                    self._in_flight[item.seq] = item
                    segment.unread.add(-1, -item.samples)
                    self._read_seq = item.seq + 1
                    taken.append(item)
                self._offset = start + end
            self._offset = segment.size
        return taken

    def settle(self, confirmed: Collection[int], refused: Collection[int] = ()) -> None:
        """Let records in flight go: the broker has them, or will never take them."""
        for seq in confirmed:
            self._state.confirmed.add(1, self._in_flight.pop(seq).samples)
        for seq in refused:
            self._state.drop(REFUSED, 1, self._in_flight.pop(seq).samples)
        self._done.update(confirmed, refused)
        self._advance()
        last = self._segments[-1] if self._writing >= 0 else None
        cursor = self._state.cursor
        finished = [s for s in self._segments if s is not last and s.last_seq < cursor]
        if finished:
            self._remove(finished, DAMAGED)
        else:
            self._save()

    def stats(self) -> SpoolStats:
        """The books, and what the spool holds."""
        state = self._state
        ages = [record.at_us for record in self._in_flight.values()]
        ages += [s.first_at_us for s in self._segments if s.unread.messages][:1]
        return SpoolStats(
            epoch=state.epoch,
            last_seq=state.next_seq - 1,
            generated=state.generated.copy(),
            confirmed=state.confirmed.copy(),
            dropped={reason: count.copy() for reason, count in state.dropped.items()},
            waiting=state.waiting(),
            disk_bytes=self._disk_bytes(),
            oldest_at_us=min(ages, default=None),
        )

    def close(self) -> None:
        """Keep the state and let the spool go; what is in flight will be taken again."""
        self._save(durable=True)
        self._end_segment()
        self._file.close()
        os.close(self._lock)

    # ---- opening

    def _recover(self) -> None:
        """Find what the files hold, and count as dropped what they should hold and don't."""
        state, next_seq = self._state, self._state.next_seq
        settled, damaged = [], 0
        for path in sorted(self._directory.glob("*.segment")):
            data = _content(path)
            items = [item for item, _ in scan(data)]
            records = [item for item in items if isinstance(item, Record)]
            damaged += sum(item.size for item in items if not isinstance(item, Record))
            owed = [record for record in records if self._is_owed(record.seq)]
            if not owed:
                settled.append(path)
                continue
            first = owed[0]
            segment = _Segment(path, first.seq, first.at_us, first.seq, first.at_us, len(data))
            for record in owed:
                segment.add(record)
                if record.seq >= next_seq:  # stored, and killed before the state was
                    state.generated.add(1, record.samples)
            self._segments.append(segment)
            state.next_seq = max(state.next_seq, segment.last_seq + 1)
        lost = state.waiting()
        for segment in self._segments:
            lost.add(-segment.unread.messages, -segment.unread.samples)
        if lost.messages > 0:
            state.drop(DAMAGED, lost.messages, lost.samples)
        if lost.messages > 0 or damaged:
            log.warning("the spool was damaged", dropped_messages=lost.messages, bytes=damaged)
        self._save(durable=True)
        for path in settled:
            path.unlink()
        _sync_directory(self._directory)

    # ---- writing

    def _store(self, records: Sequence[Record], now_us: int) -> str | None:
        """Write and wait for the disk. None when stored, else the reason why not."""
        data = b"".join(pack(record) for record in records)
        while self._segments and self._disk_bytes() + len(data) > self._bounds.max_bytes:
            self._remove(self._segments[:1], FULL)
        while True:
            try:
                self._write(records, data, now_us)
                return None
            except OSError as error:
                self._undo_write()
                if error.errno not in NO_SPACE:
                    log.error("cannot write to the spool", error=str(error))
                    return UNWRITABLE
                if not self._segments:
                    log.error("no room for one message", directory=str(self._directory))
                    return FULL
                self._remove(self._segments[:1], FULL)

    def _write(self, records: Sequence[Record], data: bytes, now_us: int) -> None:
        bounds = self._bounds
        if self._writing >= 0:
            last = self._segments[-1]
            if (
                last.size + len(data) > bounds.segment_bytes
                or last.first_at_us < now_us - bounds.segment_age_us
            ):
                self._end_segment()
        if self._writing < 0:
            self._begin_segment(records[0])
        write_all(self._writing, data)
        os.fdatasync(self._writing)
        segment = self._segments[-1]
        segment.size += len(data)
        for record in records:
            segment.add(record)

    def _begin_segment(self, first: Record) -> None:
        path = self._directory / f"{first.seq:020d}.segment"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self._writing = os.open(path, flags, 0o600)
        self._segments.append(_Segment(path, first.seq, first.at_us, first.seq - 1, first.at_us))
        _sync_directory(self._directory)

    def _end_segment(self) -> None:
        if self._writing >= 0:
            os.close(self._writing)
            self._writing = -1

    def _undo_write(self) -> None:
        """After a write that failed: cut off what it left, and go on in a new segment."""
        if self._writing < 0:
            return
        segment = self._segments[-1]
        os.ftruncate(self._writing, segment.size)
        self._end_segment()
        if not segment.size:
            self._segments.pop().path.unlink()

    def _expire(self, now_us: int) -> None:
        limit = now_us - self._bounds.max_age_us
        for segment in list(self._segments):
            if segment.unread.messages and segment.last_at_us >= limit:
                return
            if segment.unread.messages:
                self._remove([segment], OLD)

    def _remove(self, segments: Sequence[_Segment], reason: str) -> None:
        """Delete segments; what was never taken from them is dropped for `reason`.

        The books are on disk first, so that no crash counts as lost what was confirmed.
        """
        for segment in segments:
            if segment.unread.messages:
                self._state.drop(reason, segment.unread.messages, segment.unread.samples)
            if self._writing >= 0 and segment is self._segments[-1]:
                self._end_segment()
            index = self._segments.index(segment)
            if index < self._reading:
                self._reading -= 1
            elif index == self._reading:
                self._offset = 0
            self._read_seq = max(self._read_seq, segment.last_seq + 1)
            self._segments.remove(segment)
        self._advance()
        self._save(durable=True)
        for segment in segments:
            segment.path.unlink(missing_ok=True)

    def _advance(self) -> None:
        """Move the cursor to the oldest record that is on disk and not settled: behind it nothing
        is owed, even if a crash keeps a file from being deleted."""
        first = self._segments[0].first_seq if self._segments else self._state.next_seq
        on_disk = (seq for seq in self._in_flight if seq >= first)
        cursor = self._state.cursor = min(on_disk, default=self._read_seq)
        self._done = {seq for seq in self._done if seq >= cursor}

    def _save(self, *, durable: bool = False) -> bool:
        """Keep the state. A disk that refuses it does not stop the agent: counts are then as of
        the last time, and what was confirmed since is sent again after a crash."""
        self._state.done = sorted(self._done)
        try:
            self._file.write(self._state)
            if durable:
                self._file.sync()
        except OSError as error:
            log.error("cannot write the spool's state", error=str(error))
            return False
        return True

    # ---- reading

    def _readable(self) -> _Segment | None:
        """The segment in which reading goes on; what it hid from the reader is damage."""
        while self._reading < len(self._segments):
            segment = self._segments[self._reading]
            if self._offset < segment.size:
                return segment
            if self._writing >= 0 and segment is self._segments[-1]:
                return None
            if segment.unread.messages:
                lost = segment.unread
                log.warning("damaged records", segment=segment.path.name, messages=lost.messages)
                self._state.drop(DAMAGED, lost.messages, lost.samples)
                segment.unread = Count()
            self._reading, self._offset = self._reading + 1, 0
        return None

    def _read(self, segment: _Segment) -> bytes:
        return _content(segment.path, self._offset, segment.size)

    def _is_owed(self, seq: int) -> bool:
        return seq >= self._state.cursor and seq not in self._done

    def _disk_bytes(self) -> int:
        return sum(segment.size for segment in self._segments)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of `data`; a disk that takes a part is asked again for the rest."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _content(path: Path, start: int = 0, end: int | None = None) -> bytes:
    """A file's bytes; none where the disk cannot give them, which is damage like any other."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(-1 if end is None else end - start)
    except OSError as error:
        log.error("cannot read a segment", segment=path.name, error=str(error))
        return b""


def _lock(directory: Path) -> int:
    """Held until closed. The file names the holder for whoever finds it taken."""
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
        os.close(descriptor)
        raise SpoolInUse(f"{directory} is in use by the agent with process id {holder}") from error
    os.pwrite(descriptor, f"{os.getpid():<31}\n".encode(), 0)
    return descriptor


def _sync_directory(directory: Path) -> None:
    """Returns once the disk knows the directory's entries."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
