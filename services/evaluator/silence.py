"""When to look whether a source has fallen silent: one heap of instants. Pure; time is given.

A source stands in the heap once per rule. Hearing it costs nothing: an entry that comes due too
early goes back to the instant that is due then.
"""

import heapq
from dataclasses import dataclass, field
from typing import NamedTuple


class Watch(NamedTuple):
    """A source, and the index of the rule that watches it."""

    instance: str
    job: str
    rule: int


@dataclass(slots=True)
class Watches:
    """Sources that are watched for silence, by the monotonic second at which to look again."""

    _heap: list[tuple[float, Watch]] = field(default_factory=list)
    _known: set[Watch] = field(default_factory=set)

    def add(self, watch: Watch, due_s: float) -> None:
        """Watch a source; a no-op when it is watched already."""
        if watch not in self._known:
            self._known.add(watch)
            heapq.heappush(self._heap, (due_s, watch))

    def due(self, now_s: float) -> list[Watch]:
        """Takes out the sources to look at now."""
        found = []
        while self._heap and self._heap[0][0] <= now_s:
            watch = heapq.heappop(self._heap)[1]
            self._known.discard(watch)
            found.append(watch)
        return found

    def __len__(self) -> int:
        return len(self._heap)
