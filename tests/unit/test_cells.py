"""What stands in `frames` for absent cells and ends of series survives PostgreSQL's text."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from schemas.values import ABSENT_BITS, STALE_BITS, STORED_ABSENT_BITS, STORED_STALE_BITS
from services.cells import from_stored, to_stored

OTHERS = st.integers(0, 2**64 - 1).filter(
    lambda bits: bits not in (STORED_ABSENT_BITS, STORED_STALE_BITS)
)


@given(arrays.arrays(np.uint64, 5, elements=st.sampled_from([ABSENT_BITS, STALE_BITS]) | OTHERS))
def test_all_bits_come_back(bits: np.ndarray) -> None:
    assert np.array_equal(from_stored(to_stored(bits.copy())), bits)


def test_what_is_stored_is_as_exact_in_text() -> None:
    stored = to_stored(np.array([ABSENT_BITS, STALE_BITS], np.uint64)).view(np.float64)
    again = np.array([float(repr(one)) for one in stored.tolist()])
    assert from_stored(again.view(np.uint64)).tolist() == [ABSENT_BITS, STALE_BITS]
