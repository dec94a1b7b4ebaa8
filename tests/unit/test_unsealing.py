"""Groups of sealed columns read together are what each is alone; garbage is refused."""

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from schemas.errors import Invalid
from schemas.values import ABSENT_BITS, STALE_BITS
from services.sealed import GROUP, seal
from services.unsealing import CELLS_AT_ONCE, Group, unseal_groups

BITS = st.one_of(
    st.sampled_from([ABSENT_BITS, STALE_BITS, 0x8000_0000_0000_0000, 0x7FF0_0000_0000_0000]),
    st.integers(0, 2**64 - 1),
    st.integers(-(10**6), 10**6).map(lambda value: int(np.float64(value / 100).view(np.uint64))),
)
COLUMNS = arrays.arrays(
    np.uint64, st.tuples(st.integers(1, 20), st.integers(1, 2 * GROUP + 1)), elements=BITS
)


def instants(rows: int) -> np.ndarray:
    return 1_700_000_000_000_000 + 15_000_000 * np.arange(rows)


def groups_of(values: np.ndarray) -> list[Group]:
    """All groups of a sealed block, every second column of each wanted, the last first."""
    block = seal(instants(len(values)), values)
    starts = [0, *block.ends[:-1]]
    found = []
    for number, (start, end) in enumerate(zip(starts, block.ends, strict=True)):
        columns = min(GROUP, values.shape[1] - GROUP * number)
        wanted = np.arange(0, columns, 2)[::-1]
        found.append(Group(block.data[start:end], block.rows, columns, wanted))
    return found


@settings(max_examples=40)
@given(st.lists(COLUMNS, min_size=1, max_size=3))
def test_groups_of_any_blocks_are_read_together_to_the_bit(blocks: list[np.ndarray]) -> None:
    groups, expected = [], []
    for bits in blocks:
        values = bits.view(np.float64)
        for number, group in enumerate(groups_of(values)):
            groups.append(group)
            expected.append(bits[:, [GROUP * number + column for column in group.only]].T)
    found = dict(unseal_groups(groups))
    assert sorted(found) == list(range(len(groups)))
    for place, bits in enumerate(expected):
        assert (found[place].view(np.uint64) == bits).all()


def test_more_cells_than_are_restored_at_once_are_read_in_portions() -> None:
    rows = CELLS_AT_ONCE // 100
    values = np.arange(float(rows))[:, np.newaxis] * np.arange(1.0, 65.0)
    groups = groups_of(values) * 8
    for place, found in unseal_groups(groups):
        group = groups[place]
        first = GROUP * (place % 2)
        assert (values[:, [first + column for column in group.only]] == found.T).all()


@pytest.mark.parametrize("rows", [0, 3, 5, 1 << 30])
def test_a_wrong_number_of_rows_is_refused_or_harmless(rows: int) -> None:
    (group,) = groups_of(np.arange(8.0).reshape(4, 2) ** 3)
    with contextlib.suppress(Invalid):
        for _, values in unseal_groups([group._replace(rows=rows)]):
            assert values.shape == (1, rows)


@given(st.binary(max_size=200), st.integers(1, 10), st.integers(1, GROUP))
def test_garbage_is_refused(data: bytes, rows: int, columns: int) -> None:
    with pytest.raises(Invalid):
        list(unseal_groups([Group(b"\1" + data, rows, columns, np.zeros(1, np.intp))]))
