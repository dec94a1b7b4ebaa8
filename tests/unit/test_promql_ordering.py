"""What is sorted a part at a time comes out as it does from `sorted`."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.promql import ordering


@pytest.fixture(autouse=True, scope="module")
def in_small_parts() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ordering, "AT_ONCE", 3)
        yield


PAIRS = st.lists(st.tuples(st.integers(0, 3), st.text(max_size=2)))


@given(PAIRS, st.booleans())
def test_equal_items_keep_their_order(items: list[tuple[int, str]], reverse: bool) -> None:
    def first(item: tuple[int, str]) -> int:
        return item[0]

    found = ordering.in_order(items, first, reverse=reverse)
    assert found == sorted(items, key=first, reverse=reverse)
    assert ordering.in_order(items) == sorted(items)


def test_no_more_than_a_part_is_sorted_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def noted(items: list[int], **how: object) -> list[int]:
        part = sorted(items)
        sizes.append(len(part))
        return part

    monkeypatch.setattr(ordering, "sorted", noted, raising=False)
    assert ordering.in_order(range(10, 0, -1)) == list(range(1, 11))
    assert max(sizes) == 3
