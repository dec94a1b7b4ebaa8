"""Sealed blocks: exact to the bit, small where exporters count, and no garbage in gets out."""

import contextlib
import struct

import numpy as np
import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from schemas.errors import Invalid
from schemas.values import ABSENT, ABSENT_BITS, STALE_BITS
from services import sealed as sealed_module
from services.sealed import GROUP, MAX_ROWS, VERSION, Sealed, seal
from services.unsealing import unseal_group, unseal_instants

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


def bits_of(value: float) -> int:
    return int(np.float64(value).view(np.uint64))


BITS = st.one_of(
    st.sampled_from(SPECIAL),
    st.integers(0, 2**64 - 1),
    st.floats(width=64).map(bits_of),
    st.integers(-(2**62), 2**62).map(bits_of),
    st.integers(-(10**6), 10**6).map(lambda value: bits_of(value / 100)),
)
SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 2 * GROUP + 1))

ROWS = 720
RANDOM = np.random.default_rng(7)
COUNTS = np.cumsum(RANDOM.integers(0, 100, ROWS))
"""A counter whose increments carry 6.6 bits each."""


def instants(rows: int, step_us: int = 5_000_000) -> np.ndarray:
    return 1_700_000_000_000_000 + step_us * np.arange(rows)


def unsealed(block: Sealed, width: int) -> np.ndarray:
    starts = [0, *block.ends[:-1]]
    groups = [
        unseal_group(block.data[start:end], block.rows, min(GROUP, width - index * GROUP))
        for index, (start, end) in enumerate(zip(starts, block.ends, strict=True))
    ]
    return np.hstack(groups)


def size(column: np.ndarray) -> int:
    """Bytes that a column of an hour takes; it comes back whole."""
    values = np.asarray(column, np.float64)[:, np.newaxis]
    block = seal(instants(len(values)), values)
    assert np.array_equal(unsealed(block, 1).view(np.uint64), values.view(np.uint64))
    return len(block.data)


@given(arrays.arrays(np.uint64, SHAPES, elements=BITS))
@example(np.array([[ABSENT_BITS], [0x8000_0000_0000_0000]], np.uint64))
def test_every_bit_comes_back(bits: np.ndarray) -> None:
    block = seal(instants(len(bits)), bits.view(np.float64))
    assert np.array_equal(unsealed(block, bits.shape[1]).view(np.uint64), bits)
    assert np.array_equal(unseal_instants(block.at, block.rows), instants(len(bits)))


@given(st.lists(BITS, min_size=1, max_size=3), st.integers(2, 100), st.integers(0, 2**32))
def test_every_bit_of_repetitive_columns_comes_back(few: list[int], rows: int, seed: int) -> None:
    bits = np.random.default_rng(seed).choice(np.array(few, np.uint64), (rows, 3))
    block = seal(instants(rows), bits.view(np.float64))
    assert np.array_equal(unsealed(block, 3).view(np.uint64), bits)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=50, unique=True))
@example([-(2**63), 0, 2**62])
@example([-(2**63), -(2**62), 2**61, 2**62, 2**63 - 2**61])
def test_every_instant_comes_back(at: list[int]) -> None:
    given_at = np.array(sorted(at), dtype=np.int64)
    block = seal(given_at, np.zeros((len(at), 1)))
    assert np.array_equal(unseal_instants(block.at, block.rows), given_at)


def test_a_layout_wider_than_a_batch_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed_module, "BATCH_CELLS", 3 * GROUP * 10)
    values = RANDOM.normal(size=(10, 7 * GROUP + 1))
    assert np.array_equal(unsealed(seal(instants(10), values), values.shape[1]), values)


def test_a_layout_without_series_has_no_groups() -> None:
    block = seal(instants(3), np.empty((3, 0)))
    assert (block.data, block.ends) == (b"", [])


@pytest.mark.parametrize(
    ("column", "most"),
    [
        pytest.param(np.full(ROWS, 0.1), 60, id="a constant"),
        pytest.param(np.full(ROWS, ABSENT), 60, id="no value at all"),
        pytest.param(17 + 5.0 * np.arange(ROWS), 70, id="a counter of ever the same step"),
        pytest.param(COUNTS, ROWS, id="a counter"),
        pytest.param(COUNTS * 4096.0, ROWS, id="pages in bytes"),
        pytest.param(COUNTS / 100, ROWS, id="ticks of 10 ms, divided"),
        pytest.param(COUNTS * 0.001, ROWS, id="milliseconds, multiplied"),
        pytest.param(COUNTS / 1000 / 1000, ROWS, id="microseconds, divided twice"),
        pytest.param(2.0**54 + 64 * COUNTS, ROWS, id="integers beyond 2**53"),
        pytest.param(10**6 * np.arange(ROWS) + COUNTS, ROWS, id="a great step with noise"),
        pytest.param(1e6 + RANDOM.integers(0, 100, ROWS), ROWS, id="noise about a level"),
        pytest.param(COUNTS * 1e-9, ROWS, id="nanoseconds, multiplied"),
        pytest.param(np.sin(np.arange(ROWS)), 8 * ROWS, id="no pattern"),
    ],
)
def test_what_is_regular_is_small(column: np.ndarray, most: int) -> None:
    assert size(column) <= most


def test_a_few_odd_values_leave_a_column_small() -> None:
    column = COUNTS / 100
    column[::100] = ABSENT
    column[[3, 400]] = -0.0, np.pi
    assert size(column) < 1.5 * ROWS


def test_a_scale_that_fits_the_sampled_rows_only_is_not_taken() -> None:
    column = RANDOM.normal(size=ROWS)
    column[:: ROWS // sealed_module.SAMPLED_ROWS] = 1.0
    assert size(column) < 9 * ROWS


def test_sealed_bytes_of_the_first_version_stay_readable() -> None:
    rows = np.arange(8)
    expected = np.column_stack(
        [
            rows * 3 / 100,
            np.array([5, 900, 3, 700, 8, 1000, 2, 800]) * 1e-3,
            np.full(8, ABSENT),
            np.sqrt(rows),
            np.where(rows == 4, -0.0, rows),
        ]
    )
    at, data = GOLDEN
    assert np.array_equal(unseal_instants(at, 8), 1_000_000 * (rows + 1) + rows % 3)
    assert np.array_equal(unseal_group(data, 8, 5).view(np.uint64), expected.view(np.uint64))


GOLDEN = (
    bytes.fromhex(
        "0128b52ffd2422dd000088fe000140420f0001004100000500000500030033b30083036004d4ee3a50"
    ),
    bytes.fromhex(
        "0128b52ffd24e545040042871b28704dd2019d1dffa5beaed403dd858a40bc812278ae3f1a9af9375388"
        "c617a8ef6e686d881f6c225317c521ed8ac07a573d3c7011b2c3e70c277330baf264a4901843a4e6c276"
        "34490cd11a264193c71b4a4ebf7f32589d296a7bf1d8db8b6fd92092c67f06b86ff7bd5f4a74010900b9"
        "326034684370967232ce0f0427531860116b6902a946fdf2"
    ),
)


@given(st.binary(max_size=200), st.integers(1, 100), st.integers(1, GROUP))
def test_garbage_is_refused_or_fills_the_shape(data: bytes, rows: int, columns: int) -> None:
    for garbage in (data, VERSION + data, VERSION + zstandard.compress(data)):
        with contextlib.suppress(Invalid):  # in a frame, it may happen to be a group
            assert unseal_group(garbage, rows, columns).shape == (rows, columns)
        with contextlib.suppress(Invalid):
            assert unseal_instants(garbage, rows).shape == (rows,)


def test_what_is_cut_or_changed_is_refused() -> None:
    values = np.round(RANDOM.normal(size=(30, 3)), 1)
    values[4, 1] = ABSENT
    data = seal(instants(30), values).data
    for end in range(len(data)):
        with pytest.raises(Invalid):
            unseal_group(data[:end], 30, 3)
    for place in range(len(data)):
        for bit in range(8):
            changed = data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]
            assert refused_or_equal(changed, values)


def refused_or_equal(data: bytes, values: np.ndarray) -> bool:
    """Some bits of a zstd header mean nothing; the checksum covers all that does."""
    try:
        found = unseal_group(data, *values.shape)
    except Invalid:
        return True
    return np.array_equal(found.view(np.uint64), values.view(np.uint64))


@pytest.mark.parametrize(("rows", "columns"), [(29, 3), (31, 3), (30, 2), (30, 4)])
def test_a_shape_that_its_bytes_cannot_fill_is_refused(rows: int, columns: int) -> None:
    data = seal(instants(30), RANDOM.normal(size=(30, 3))).data
    with pytest.raises(Invalid):
        unseal_group(data, rows, columns)


@pytest.mark.parametrize(("rows", "columns"), [(0, 1), (MAX_ROWS + 1, 1), (1, 0), (1, GROUP + 1)])
def test_impossible_shapes_are_refused(rows: int, columns: int) -> None:
    with pytest.raises(Invalid):
        unseal_group(seal(instants(1), np.ones((1, 1))).data, rows, columns)


def test_a_frame_that_claims_too_much_is_refused_before_it_is_expanded() -> None:
    bomb = zstandard.compress(bytes(1 << 28))
    with pytest.raises(Invalid, match="bytes than its cells can take"):
        unseal_group(VERSION + bomb, 10, 1)


def test_columns_and_cells_that_cannot_be_are_refused() -> None:
    def group(scale: int, width: int, gap: int) -> bytes:
        head = struct.pack("<BBBqqq", scale, 0, width, 0, 1, 0)
        planes = bytes(width * 4)
        return VERSION + zstandard.compress(head + planes + struct.pack("<Iq", gap, 0))

    assert unseal_group(group(0, 1, 4), 5, 1).tolist() == [[0.0]] * 5
    for wrong in (group(100, 1, 4), group(0, 9, 4), group(0, 1, 5)):
        with pytest.raises(Invalid):
            unseal_group(wrong, 5, 1)


@pytest.mark.parametrize("rows", [0, MAX_ROWS + 1])
def test_no_rows_or_too_many_are_not_sealed(rows: int) -> None:
    with pytest.raises(ValueError, match="expected 1 to"):
        seal(np.arange(rows), np.zeros((rows, 1)))
