"""When collectors are due: on a grid of the monotonic clock, so that no reading shifts the next.

All grids begin at one instant, which the instance's name moves: collectors whose intervals are
multiples of each other fall on the same ticks, and hosts do not fall on the same instant.
"""

import hashlib
import heapq
from collections.abc import Mapping


def splay_ns(instance: str, interval_ns: int) -> int:
    """How much later than others this instance ticks: up to one interval, always the same."""
    digest = hashlib.blake2b(instance.encode(), digest_size=8).digest()
    return int.from_bytes(digest) * interval_ns >> 64


class Schedule:
    """A heap of due instants. `intervals_ns`: nanoseconds by collector; `start_ns`: first tick."""

    def __init__(self, intervals_ns: Mapping[str, int], start_ns: int) -> None:
        self._start_ns = start_ns
        self._intervals_ns = dict(intervals_ns)
        self._heap = [(start_ns, order, name) for order, name in enumerate(intervals_ns)]
        heapq.heapify(self._heap)

    def next_ns(self) -> int:
        """The instant of the next tick."""
        return self._heap[0][0]

    def due(self, now_ns: int) -> tuple[list[str], int]:
        """The collectors to read now, in order, and how many of their ticks are skipped.

        Each is then due at the first instant of its grid after `now_ns`.
        """
        names, skipped = [], 0
        while self._heap[0][0] <= now_ns:
            at_ns, order, name = self._heap[0]
            interval_ns = self._intervals_ns[name]
            passed = (now_ns - at_ns) // interval_ns
            heapq.heapreplace(self._heap, (at_ns + (passed + 1) * interval_ns, order, name))
            names.append((order, name))
            skipped += passed
        return [name for _, name in sorted(names)], skipped
