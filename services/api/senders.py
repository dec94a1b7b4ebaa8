"""What is said of remote-written sources in place of their senders, as agents say it of themselves.

So their silence is told from their end by the rules that agents have: a source whose series all end
(Prometheus says so of a target that it no longer has, by stale markers) has said goodbye. Pure.
"""

from dataclasses import dataclass
from typing import Literal

State = Literal["started", "stopping"]

SHORTEST_US = 15_000_000
"""Shorter intervals are not told: series with instants of their own would give any."""

CHANGE = 0.1
"""Change of an interval, as a ratio, that is worth telling."""


@dataclass(slots=True)
class Sender:
    """One source as it was heard here. `seq` is the number of its newest message."""

    seq: int = 0
    interval_us: int = SHORTEST_US
    _newest_us: int = 0
    _gap_us: int = 0
    _ended: bool = False

    def hear(self, newest_us: int, ended: bool) -> State | None:
        """Take note of samples up to an instant at which all series end, or not; what to say."""
        first, back = not self._newest_us, self._ended and not ended
        if newest_us < self._newest_us:
            return None  # a part that was late
        gap_us, before_us = newest_us - self._newest_us, self._gap_us
        self._newest_us, was_ended, self._ended = newest_us, self._ended, ended
        if ended:
            return None if was_ended else "stopping"
        if gap_us and not first:
            self._gap_us = gap_us
            interval_us = max(SHORTEST_US, gap_us)
            steady = abs(gap_us - before_us) <= CHANGE * gap_us
            if steady and abs(interval_us - self.interval_us) > CHANGE * self.interval_us:
                self.interval_us = interval_us
                return "started"
        return "started" if first or back else None
