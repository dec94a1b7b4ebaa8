"""A memory of what was used lately, bounded by weight."""

from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """What was used lately, bounded by weight: the last two generations of up to `limit` each.

    Threads may share it: at worst something is made twice.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._young: dict[K, V] = {}
        self._old: dict[K, V] = {}
        self._weight = 0

    def get(self, key: K, weigh: Callable[[V], int]) -> V | None:
        """What was put; being used, it stays."""
        known = self._young.get(key)
        if known is None:
            known = self._old.get(key)
            if known is not None:
                self.put(key, known, weigh(known))
        return known

    def put(self, key: K, value: V, weight: int) -> None:
        if self._weight + weight > self._limit:
            self._old, self._young, self._weight = self._young, {}, 0
        self._young[key] = value
        self._weight += weight
