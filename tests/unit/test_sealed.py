"""Sealed blocks: exact to the bit, and no garbage in gets more out than an error."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from schemas.errors import Invalid
from schemas.values import ABSENT_BITS, STALE_BITS
from services.sealed import GROUP, Sealed, seal, unseal_group, unseal_instants

SPECIAL = [
    ABSENT_BITS,
    STALE_BITS,
    0x7FF8_0000_0000_0000,
    0xFFF8_0000_0000_0001,
    0x8000_0000_0000_0000,
    0x7FF0_0000_0000_0000,
    0xFFF0_0000_0000_0000,
    1,
]
"""Bits of absent, stale, other NaN, -0.0, infinities, the smallest denormal."""

BITS = st.one_of(
    st.sampled_from(SPECIAL),
    st.integers(0, 2**64 - 1),
    st.floats(width=64).map(lambda value: int(np.float64(value).view(np.uint64))),
    st.integers(-(2**60), 2**60).map(lambda value: int(np.float64(value).view(np.uint64))),
    st.integers(-(10**6), 10**6).map(lambda value: int(np.float64(value / 100).view(np.uint64))),
)
SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 3 * GROUP))


def instants(rows: int, step_us: int = 5_000_000) -> np.ndarray:
    return 1_700_000_000_000_000 + step_us * np.arange(rows)


def unsealed(sealed: Sealed, width: int) -> np.ndarray:
    starts = [0, *sealed.ends[:-1]]
    return np.hstack(
        [
            unseal_group(sealed.data[start:end], sealed.rows, min(GROUP, width - index * GROUP))
            for index, (start, end) in enumerate(zip(starts, sealed.ends, strict=True))
        ]
    )


@given(arrays.arrays(np.uint64, SHAPES, elements=BITS))
def test_every_bit_comes_back(bits: np.ndarray) -> None:
    sealed = seal(instants(len(bits)), bits.view(np.float64))
    assert np.array_equal(unsealed(sealed, bits.shape[1]).view(np.uint64), bits)
    assert np.array_equal(unseal_instants(sealed.at, sealed.rows), instants(len(bits)))


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=50, unique=True))
def test_every_instant_comes_back(at: list[int]) -> None:
    given_at = np.array(sorted(at), dtype=np.int64)
    sealed = seal(given_at, np.zeros((len(at), 1)))
    assert np.array_equal(unseal_instants(sealed.at, sealed.rows), given_at)


@given(st.binary(max_size=200), st.integers(1, 100), st.integers(1, GROUP))
def test_garbage_is_refused(data: bytes, rows: int, columns: int) -> None:
    with pytest.raises(Invalid):
        unseal_group(data, rows, columns)
    with pytest.raises(Invalid):
        unseal_instants(data, rows)
