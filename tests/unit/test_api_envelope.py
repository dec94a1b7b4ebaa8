"""Long lists and objects are written a part at a time, and come out the same."""

import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.api import envelope


@pytest.fixture(autouse=True, scope="module")
def in_small_parts() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(envelope, "AT_ONCE", 3)
        yield


@given(st.lists(st.dictionaries(st.text(), st.text())))
def test_a_long_list_is_written_as_one(items: list[dict[str, str]]) -> None:
    pieces = envelope.listed(items)
    assert json.loads(b"".join(pieces)) == items
    assert len(pieces) >= len(items) // 3


@given(st.dictionaries(st.text(), st.text()))
def test_a_large_object_is_written_as_one(items: dict[str, str]) -> None:
    pieces = envelope.mapped(list(items.items()))
    assert json.loads(b"".join(pieces)) == items
    assert len(pieces) >= len(items) // 3
