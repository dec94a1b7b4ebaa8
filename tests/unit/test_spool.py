"""The spool: what it promises for bounds, crashes and broken disks."""

import errno
import os
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from services.agent import spool as spool_module
from services.agent.records import Record
from services.agent.spool import Spool, SpoolInUse, open_spool
from services.agent.spool_state import Count

SECOND = 1_000_000
MIB = 1024 * 1024
RECORD = 132
"""Bytes on disk of a record with 100 bytes of payload."""


def opened(directory: Path, max_bytes: int = 64 * MIB, max_age_s: int = 3600) -> Spool:
    return open_spool(directory, max_bytes=max_bytes, max_age=timedelta(seconds=max_age_s))


def put(spool: Spool, count: int = 1, *, size: int = 100, at_s: int = 1000) -> list[int]:
    """Append records of 10 samples each, one at a time; their numbers."""
    numbers = []
    for _ in range(count):
        record = Record(spool.next_seq, at_s * SECOND, 10, os.urandom(size))
        spool.append([record], at_s * SECOND)
        numbers.append(record.seq)
    return numbers


def taken(spool: Spool, window: int = 10_000) -> list[int]:
    return [record.seq for record in spool.take(window, 1 << 40)]


def balances(spool: Spool) -> bool:
    """generated = confirmed + dropped + waiting, where waiting is what can still be taken."""
    spool.take(1 << 30, 1 << 40)
    stats = spool.stats()
    there = list(spool._in_flight.values())
    dropped = list(stats.dropped.values())
    messages = stats.confirmed.messages + sum(count.messages for count in dropped) + len(there)
    samples = stats.confirmed.samples + sum(count.samples for count in dropped)
    samples += sum(record.samples for record in there)
    return stats.generated == Count(messages, samples)


def kill(spool: Spool) -> None:
    """Let go of the files as a killed process does: nothing is written any more."""
    os.close(spool._lock)
    spool._file.close()
    spool._end_segment()


def segments(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.segment"))


def test_records_come_out_in_order_with_their_payload(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    payloads = [b"one", b"", b"VRV1 in the middle", bytes(300_000)]
    for payload in payloads:
        spool.append([Record(spool.next_seq, 5, 1, payload)], 5)
    assert [record.payload for record in spool.take(100, MIB)] == payloads


def test_several_records_are_stored_at_once(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    assert spool.append([Record(seq, 5, 1, b"x") for seq in (1, 2, 3)], 5)
    assert taken(spool) == [1, 2, 3]


def test_what_is_appended_together_is_on_the_disk_after_one_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = opened(tmp_path)
    put(spool)
    synced: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", lambda fd: synced.append(os.fstat(fd).st_size))
        spool.append([Record(seq, 1000 * SECOND, 10, bytes(100)) for seq in (2, 3, 4)], 0)
    assert synced == [4 * RECORD]


def test_a_record_in_flight_is_not_taken_twice(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    put(spool, 3)
    assert taken(spool) == [1, 2, 3]
    assert taken(spool) == []


def test_numbers_in_flight_stay_within_the_window(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    put(spool, 10)
    assert taken(spool, window=4) == [1, 2, 3, 4]
    spool.settle([2, 3, 4])
    assert taken(spool, window=4) == []
    spool.settle([1])
    assert taken(spool, window=4) == [5, 6, 7, 8]


def test_bytes_in_flight_are_bounded(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    put(spool, 10, size=1000)
    assert len(spool.take(100, 2500)) == 3
    assert spool.take(100, 2500) == []


def test_a_confirmed_record_does_not_come_again_after_reopening(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    put(spool, 5)
    taken(spool)
    spool.settle([1, 3])
    kill(spool)
    assert taken(opened(tmp_path)) == [2, 4, 5]


def test_confirmed_segments_leave_the_disk(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    put(spool, 20, size=100_000)
    assert len(segments(tmp_path)) > 5
    spool.settle(taken(spool))
    assert len(segments(tmp_path)) == 1
    assert spool.stats().waiting.messages == 0


def test_the_epoch_and_the_numbers_go_on_after_reopening(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    put(spool, 3)
    epoch = spool.epoch
    spool.close()
    again = opened(tmp_path)
    assert (again.epoch, again.next_seq) == (epoch, 4)


def test_numbers_are_not_used_again_once_everything_is_confirmed(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    put(spool, 3)
    spool.settle(taken(spool))
    kill(spool)
    again = opened(tmp_path)
    assert (again.next_seq, segments(tmp_path)) == (4, [])


def test_two_spools_have_different_epochs(tmp_path: Path) -> None:
    assert opened(tmp_path / "a").epoch != opened(tmp_path / "b").epoch


def test_a_second_agent_is_told_who_has_the_spool(tmp_path: Path) -> None:
    opened(tmp_path)
    with pytest.raises(SpoolInUse, match=f"process id {os.getpid()}"):
        opened(tmp_path)


def test_beyond_its_bytes_the_oldest_go_and_are_counted(tmp_path: Path) -> None:
    spool = opened(tmp_path, max_bytes=MIB)
    put(spool, 40, size=50_000)
    stats = spool.stats()
    assert stats.disk_bytes <= MIB
    assert stats.dropped["full"].messages == 40 - stats.waiting.messages
    assert stats.dropped["full"].samples == 10 * stats.dropped["full"].messages
    assert taken(spool) == list(range(stats.dropped["full"].messages + 1, 41))
    assert balances(spool)


def test_beyond_their_age_the_oldest_go_and_are_counted(tmp_path: Path) -> None:
    spool = opened(tmp_path, max_age_s=800)
    for at_s in range(1000, 3000, 10):
        put(spool, at_s=at_s)
    stats = spool.stats()
    assert stats.oldest_at_us is not None
    assert stats.oldest_at_us >= (2990 - 800 - 100) * SECOND
    assert stats.dropped["age"].messages == 200 - stats.waiting.messages
    assert balances(spool)


def test_what_is_in_flight_when_its_segment_goes_can_still_be_confirmed(tmp_path: Path) -> None:
    spool = opened(tmp_path, max_bytes=MIB)
    first = put(spool, 2, size=50_000)
    assert taken(spool) == first
    put(spool, 40, size=50_000)
    spool.settle(first)
    stats = spool.stats()
    assert stats.confirmed.messages == 2
    assert balances(spool)


def test_reading_goes_on_with_the_next_segment_when_the_one_being_read_goes(
    tmp_path: Path,
) -> None:
    spool = opened(tmp_path, max_bytes=MIB)
    put(spool, 16, size=60_000)
    assert taken(spool, window=1) == [1]
    put(spool, 2, size=60_000)
    assert taken(spool) == list(range(3, 19))
    assert spool.stats().dropped["full"].messages == 1
    spool.settle([1, *range(3, 19)])
    assert "damaged" not in spool.stats().dropped


def test_what_was_in_flight_without_a_segment_is_counted_after_a_crash(tmp_path: Path) -> None:
    spool = opened(tmp_path, max_bytes=MIB)
    put(spool, 2, size=50_000)
    taken(spool)
    put(spool, 40, size=50_000)
    kill(spool)
    again = opened(tmp_path, max_bytes=MIB)
    assert again.stats().dropped["damaged"].messages == 2
    assert balances(again)


def test_a_refused_record_leaves_and_is_counted(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    put(spool, 3)
    taken(spool)
    spool.settle([1, 3], [2])
    assert spool.stats().dropped["refused"].samples == 10
    assert spool.stats().waiting.messages == 0


@pytest.mark.parametrize("cut", [1, 20, 60, 131, 132, 133, 300])
def test_a_torn_tail_is_dropped_and_counted_and_its_number_not_used_again(
    tmp_path: Path, cut: int
) -> None:
    spool = opened(tmp_path)
    put(spool, 5)
    kill(spool)
    path = segments(tmp_path)[-1]
    os.truncate(path, path.stat().st_size - cut)
    again = opened(tmp_path)
    whole = 5 - -(-cut // RECORD)
    assert taken(again) == list(range(1, whole + 1))
    assert again.stats().dropped["damaged"].messages == 5 - whole
    assert again.stats().dropped["damaged"].samples == 10 * (5 - whole)
    assert again.next_seq == 6
    assert balances(again)


def test_a_segment_that_a_crash_left_behind_is_not_delivered_after_it_was_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = opened(tmp_path, max_bytes=MIB)
    put(spool, 3, size=50_000)
    spool.take(1, 1)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda self, missing_ok=False: None)
        put(spool, 18, size=50_000)
        assert spool.stats().dropped["full"].messages == 1
        kill(spool)
    again = opened(tmp_path, max_bytes=MIB)
    assert 2 not in taken(again)
    assert balances(again)


def test_after_a_long_silence_the_segment_that_was_written_to_has_expired_too(
    tmp_path: Path,
) -> None:
    spool = opened(tmp_path, max_age_s=800)
    put(spool, 3, at_s=1000)
    put(spool, 2, at_s=9000)
    assert spool.stats().dropped["age"].messages == 3
    kill(spool)
    assert taken(opened(tmp_path)) == [4, 5]


def test_the_state_stays_small_whatever_passes_through(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    for _ in range(30):
        first = spool.next_seq
        spool.append([Record(first + at, SECOND, 1, b"") for at in range(200)], SECOND)
        spool.settle(taken(spool)[::-1])
    assert spool._state.done == []


def test_a_segment_that_vanishes_while_the_spool_is_open_is_counted(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    put(spool, 6, size=100_000)
    segments(tmp_path)[1].unlink()
    assert taken(spool) == [1, 2, 5, 6]
    spool.settle([1, 2, 5, 6])
    assert spool.stats().dropped["damaged"].messages == 2
    assert spool.stats().waiting == Count(0, 0)


def test_a_flipped_bit_costs_its_record_and_no_later_one(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    put(spool, 5)
    kill(spool)
    flip(segments(tmp_path)[0], RECORD * 2 + 70)
    again = opened(tmp_path)
    assert taken(again) == [1, 2, 4, 5]
    assert again.stats().dropped["damaged"].samples == 10


@pytest.mark.parametrize("byte", range(32))
def test_a_damaged_header_costs_its_record_and_no_later_one(tmp_path: Path, byte: int) -> None:
    spool = opened(tmp_path)
    put(spool, 4)
    kill(spool)
    flip(segments(tmp_path)[0], RECORD + byte)
    assert taken(opened(tmp_path)) == [1, 3, 4]


def test_damage_while_the_spool_is_open_is_counted_when_reading_passes_it(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    put(spool, 8, size=100_000)
    flip(segments(tmp_path)[0], 5000)
    assert 1 not in taken(spool)
    assert spool.stats().dropped["damaged"].messages == 1
    assert balances(spool)


def test_a_vanished_segment_is_counted(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    put(spool, 8, size=100_000)
    kill(spool)
    segments(tmp_path)[1].unlink()
    again = opened(tmp_path)
    assert taken(again) == [1, 2, 5, 6, 7, 8]
    assert again.stats().dropped["damaged"].messages == 2
    assert balances(again)


def test_a_record_stored_before_a_kill_is_found_though_the_state_is_older(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    put(spool, 2)
    state = (tmp_path / "state").read_bytes()
    put(spool, 1)
    kill(spool)
    (tmp_path / "state").write_bytes(state)
    again = opened(tmp_path)
    assert taken(again) == [1, 2, 3]
    assert again.next_seq == 4
    assert again.stats().generated == Count(3, 30)
    assert balances(again)


def test_a_lost_state_makes_a_new_epoch_and_keeps_the_records(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    put(spool, 3)
    kill(spool)
    (tmp_path / "state").write_bytes(bytes(100))
    again = opened(tmp_path)
    assert again.epoch != spool.epoch
    assert (taken(again), again.next_seq) == ([1, 2, 3], 4)
    assert balances(again)


def test_a_state_cut_short_falls_back_to_the_one_before(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    put(spool, 3)
    newest = spool._state.turn % 2 * 16 * 1024
    kill(spool)
    flip(tmp_path / "state", newest + 20)
    again = opened(tmp_path)
    assert (again.epoch, taken(again)) == (spool.epoch, [1, 2, 3])
    assert balances(again)


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x10
    path.write_bytes(data)


class Disk:
    """Stands for the disk in `write_all`: takes `room` bytes in all, then fails with `number`."""

    def __init__(self, room: int, number: int) -> None:
        self.room, self.number = room, number

    def write(self, descriptor: int, data: bytes) -> None:
        os.write(descriptor, data[: self.room])
        self.room -= len(data)
        if self.room < 0:
            self.room = 0
            raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("room", [0, 10, 40, 128])
def test_a_full_disk_drops_the_oldest_and_leaves_no_half_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    spool = opened(tmp_path)
    put(spool, 4, size=100_000)
    disk = Disk(room, errno.ENOSPC)
    monkeypatch.setattr(spool_module, "write_all", disk.write)
    remove = Spool._remove

    def make_room(self: Spool, *arguments: object) -> None:
        disk.room = MIB
        remove(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Spool, "_remove", make_room)
    put(spool, 2)
    assert taken(spool)[-1] == 6
    assert balances(spool)
    kill(spool)
    assert balances(opened(tmp_path))


def test_a_disk_without_any_room_costs_the_new_message_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = opened(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(spool_module, "write_all", Disk(0, errno.ENOSPC).write)
        assert not spool.append([Record(1, 5, 10, b"x")], 5)
    assert spool.stats().dropped["full"].samples == 10
    assert put(spool) == [1]
    assert balances(spool)


def test_a_failing_disk_costs_the_new_message_and_keeps_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = opened(tmp_path)
    put(spool, 2)
    with monkeypatch.context() as patch:
        patch.setattr(spool_module, "write_all", Disk(50, errno.EIO).write)
        put(spool)
    assert spool.stats().dropped["unwritable"].messages == 1
    put(spool)
    assert taken(spool) == [1, 2, 3]
    kill(spool)
    assert taken(opened(tmp_path)) == [1, 2, 3]


def test_a_number_whose_record_may_have_reached_a_failing_disk_is_used_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = opened(tmp_path)
    put(spool)

    def fail(_: int) -> None:
        raise OSError(errno.EIO, "input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        put(spool)
    spool.append([Record(2, 1000 * SECOND, 10, b"the second")], 0)
    kill(spool)
    records = opened(tmp_path).take(100, MIB)
    assert [record.seq for record in records] == [1, 2]
    assert records[1].payload == b"the second"


def test_a_state_that_cannot_be_written_does_not_stop_the_spool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = opened(tmp_path)

    def refuse(_: object) -> None:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(spool._file, "write", refuse)
    put(spool, 3)
    assert taken(spool) == [1, 2, 3]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a file system of its own takes root")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.skip(f"cannot mount a file system: {done.stderr.strip()}")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_on_a_real_full_disk_the_newest_stay_and_the_books_balance(small_disk: Path) -> None:
    spool = opened(small_disk)
    put(spool, 1000, size=5000)
    stats = spool.stats()
    assert stats.waiting.messages > 50
    assert stats.dropped["full"].messages == 1000 - stats.waiting.messages
    assert taken(spool) == list(range(1001 - stats.waiting.messages, 1001))
    kill(spool)
    assert balances(opened(small_disk))
