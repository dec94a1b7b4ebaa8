"""The spool against a model: whatever happens to it, nothing is lost uncounted or comes twice."""

import os
import shutil
import tempfile
from datetime import timedelta
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from services.agent.records import Record
from services.agent.spool import Spool, open_spool

MAX_BYTES = 64 * 1024
"""Segments of 8 KiB: a few records each, so that every rule meets several."""

HOUR_US = 3_600_000_000


class SpoolMachine(RuleBasedStateMachine):
    """The model: what was stored, what was settled, and what damage may have taken."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="spool-model-"))
        self.spool: Spool
        self.now_us = HOUR_US
        self.stored: dict[int, bytes] = {}
        self.settled: set[int] = set()
        self.flying: list[int] = []
        self.generated = 0
        self.confirmed = 0
        self.epochs: set[str] = set()
        self.damaged_while_open = False
        self.damaged = False

    def open(self) -> None:
        self.spool = open_spool(self.directory, max_bytes=MAX_BYTES, max_age=timedelta(hours=1))
        self.flying = []
        self.damaged_while_open = False
        self.epochs.add(self.spool.epoch)

    def kill(self) -> None:
        os.close(self.spool._lock)
        self.spool._file.close()
        self.spool._end_segment()

    @initialize()
    def start(self) -> None:
        self.open()

    @rule(
        sizes=st.lists(st.integers(0, 5000), min_size=1, max_size=8),
        minutes=st.sampled_from([0, 0, 1, 10, 90]),
    )
    def append(self, sizes: list[int], minutes: int) -> None:
        self.now_us += minutes * 60_000_000
        first = self.spool.next_seq
        records = [
            Record(first + at, self.now_us, 7, os.urandom(size)) for at, size in enumerate(sizes)
        ]
        assert self.spool.append(records, self.now_us)
        for record in records:
            assert record.seq not in self.stored, "a number was used twice"
            self.stored[record.seq] = record.payload
        self.generated += 7 * len(records)

    @rule(window=st.integers(1, 60), max_bytes=st.integers(1, 60_000))
    def take(self, window: int, max_bytes: int) -> None:
        for record in self.spool.take(window, max_bytes):
            assert record.payload == self.stored[record.seq]
            assert record.seq not in self.settled, "confirmed, and came again"
            assert record.seq not in self.flying, "in flight, and came again"
            assert not self.flying or record.seq > self.flying[-1], "out of order"
            self.flying.append(record.seq)
        if self.flying:
            assert self.flying[-1] - self.flying[0] < 60

    @rule()
    def pass_on(self) -> None:
        """What a publisher does all day."""
        for record in self.spool.take(60, 60_000):
            self.flying.append(record.seq)
        self.confirm_all()

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def confirm(self, data: st.DataObject) -> None:
        chosen = data.draw(st.sets(st.sampled_from(self.flying), min_size=1))
        refused = data.draw(st.sets(st.sampled_from(sorted(chosen))))
        self.spool.settle(chosen - refused, refused)
        self.settled |= chosen
        self.confirmed += 7 * len(chosen - refused)
        self.flying = [seq for seq in self.flying if seq not in chosen]

    @rule(how=st.sampled_from(["close", "kill", "tear"]), cut=st.integers(1, 20_000))
    def reopen(self, how: str, cut: int) -> None:
        # What is in flight when its segment goes is in memory alone.
        self.damaged = self.damaged or how == "tear" or bool(self.flying)
        if how == "close":
            self.spool.close()
        else:
            self.kill()
        if how == "tear":
            for path in sorted(self.directory.glob("*.segment"))[-1:]:
                os.truncate(path, max(0, path.stat().st_size - cut))
        self.open()

    @rule(data=st.data(), crash=st.booleans())
    def flip_a_bit(self, data: st.DataObject, crash: bool) -> None:
        self.damaged = True
        if crash:
            self.kill()
        paths = [path for path in self.directory.glob("*.segment") if path.stat().st_size]
        for path in paths and [data.draw(st.sampled_from(sorted(paths)))]:
            content = bytearray(path.read_bytes())
            at = data.draw(st.integers(0, len(content) - 1))
            content[at] ^= 1 << data.draw(st.integers(0, 7))
            with path.open("r+b") as file:
                file.write(content)
        if crash:
            self.open()
        else:
            self.damaged_while_open = True

    @rule(restart=st.booleans())
    def drain(self, restart: bool) -> None:
        """Everything still there comes out; what does not was counted as dropped."""
        if restart:
            self.kill()
            self.open()
        while records := self.spool.take(50, 1 << 30):
            for record in records:
                assert record.payload == self.stored[record.seq]
                assert record.seq not in self.settled
            self.flying += [record.seq for record in records]
            self.confirm_all()
        if restart or not self.damaged_while_open:
            self.confirm_all()  # what was in flight since before
            assert self.spool.stats().waiting.messages == 0

    def confirm_all(self) -> None:
        self.spool.settle(self.flying)
        self.confirmed += 7 * len(self.flying)
        self.settled |= set(self.flying)
        self.flying = []

    @invariant()
    def books_balance(self) -> None:
        if not hasattr(self, "spool"):
            return
        stats = self.spool.stats()
        dropped = sum(count.samples for count in stats.dropped.values())
        assert stats.generated.samples == self.generated
        assert stats.confirmed.samples == self.confirmed
        assert stats.waiting.samples == self.generated - self.confirmed - dropped
        assert stats.waiting.messages >= len(self.flying)
        assert stats.disk_bytes <= MAX_BYTES

    @invariant()
    def nothing_is_called_damaged_that_was_not(self) -> None:
        if hasattr(self, "spool") and not self.damaged:
            assert "damaged" not in self.spool.stats().dropped

    @invariant()
    def the_epoch_stays(self) -> None:
        assert len(self.epochs) <= 1

    def teardown(self) -> None:
        if hasattr(self, "spool"):
            self.kill()
        shutil.rmtree(self.directory)


SpoolMachine.TestCase.settings = settings(
    max_examples=100,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestTheSpoolAgainstItsModel = SpoolMachine.TestCase
