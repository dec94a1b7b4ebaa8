"""Sorting of much, a part at a time.

`sorted` compares in native code that lets no other thread work until all is in order: for 50,000
label sets a tenth of a second, in which the api's event loop stands still.
"""

from collections.abc import Callable, Iterable
from heapq import merge
from itertools import islice
from typing import Any, TypeVar

T = TypeVar("T")

AT_ONCE = 4096
"""Items that are sorted in a row: some milliseconds."""


def in_order(
    items: Iterable[T], key: Callable[[T], Any] | None = None, *, reverse: bool = False
) -> list[T]:
    """`sorted(items, key=key, reverse=reverse)`."""
    rest: Any = iter(items)
    parts = []
    while part := sorted(islice(rest, AT_ONCE), key=key, reverse=reverse):
        parts.append(part)
    return parts[0] if len(parts) == 1 else list(merge(*parts, key=key, reverse=reverse))
