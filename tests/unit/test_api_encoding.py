"""Results of queries as JSON: every number, every hole, in pieces that make one document."""

import json
import math
import re

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engine.promql import Matrix, Scalar, Vector
from engine.promql.results import Result
from services.api import encoding

AT_US = 1_700_000_000_250_000
NUMBER = re.compile(r"-?\d+(\.\d+)?(e[+-]\d\d\d?)?\Z")


def document(result: Result) -> tuple[str, object]:
    kind, pieces = encoding.data(result, AT_US)
    return kind, json.loads(b"".join(pieces))


@given(st.lists(st.floats(), min_size=1))
def test_a_number_reads_back_as_it_was(values: list[float]) -> None:
    for value, text in zip(values, encoding.numbers(np.array(values)), strict=True):
        if math.isfinite(value):
            assert NUMBER.match(text.decode())
            assert math.copysign(1, float(text)) == math.copysign(1, value)
            assert float(text) == value
        else:
            special = "NaN" if math.isnan(value) else f"{value:+}".title()
            assert text.decode() == special


def test_numbers_are_written_as_prometheus_writes_them() -> None:
    written = {
        0.0: "0",
        1.0: "1",
        100.0: "100",
        0.1: "0.1",
        1.5e-5: "0.000015",
        1e-5: "0.00001",
        9.5e-6: "0.0000095",
        1e-6: "0.000001",
        9.5e-7: "9.5e-07",
        5e-324: "5e-324",
        1e15: "1000000000000000",
        9.5e15: "9500000000000000",
        1e16: "1" + "0" * 16,
        9e20: "9" + "0" * 20,
        1e21: "1e+21",
        -1.5e300: "-1.5e+300",
    }
    texts = encoding.numbers(np.array([*written, -0.0]))
    assert [text.decode() for text in texts] == [*written.values(), "-0"]


def test_a_vector_has_a_value_per_series() -> None:
    vector = Vector(AT_US, ({"b": "2", "a": 'x"\n'}, {}), np.array([1.5, math.nan]))
    assert document(vector) == (
        "vector",
        [
            {"metric": {"a": 'x"\n', "b": "2"}, "value": [1700000000.25, "1.5"]},
            {"metric": {}, "value": [1700000000.25, "NaN"]},
        ],
    )


def test_a_matrix_has_only_the_samples_that_are_there() -> None:
    at = np.array([0, 1_000_000, 2_000_000], dtype=np.int64)
    values = np.array([[1.0, 2.0, 0.0], [3.0, 4.0, 0.0], [5.0, 6.0, 0.0]])
    present = np.array([[True, False, False], [True, True, False], [True, False, False]])
    matrix = Matrix(({"a": "1"}, {"a": "2"}, {"a": "3"}), at, values, present)
    assert document(matrix) == (
        "matrix",
        [
            {"metric": {"a": "1"}, "values": [[0, "1"], [1, "3"], [2, "5"]]},
            {"metric": {"a": "2"}, "values": [[1, "4"]]},
        ],
    )


def test_a_scalar_and_a_text_are_one_sample() -> None:
    assert document(Scalar(AT_US, 2.0)) == ("scalar", [1700000000.25, "2"])
    assert document('say "hi"') == ("string", [1700000000.25, 'say "hi"'])


def test_nothing_is_an_empty_list() -> None:
    assert document(Vector(AT_US, (), np.empty(0))) == ("vector", [])


def test_a_large_result_comes_in_pieces_that_make_one_document() -> None:
    steps, series = 1000, 200
    at = 1_000_000 * np.arange(steps, dtype=np.int64)
    values = np.random.default_rng(1).normal(size=(steps, series))
    labels = tuple({"n": str(n)} for n in range(series))
    matrix = Matrix(labels, at, values, np.ones(values.shape, dtype=np.bool_))
    _, pieces = encoding.data(matrix, AT_US)
    parts = list(pieces)
    assert len(parts) > 2
    assert max(map(len, parts)) < 2 * encoding.PIECE_BYTES
    found = json.loads(b"".join(parts))
    assert [[float(value) for _, value in one["values"]] for one in found] == values.T.tolist()
