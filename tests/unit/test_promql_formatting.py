"""Prometheus' text forms of numbers and label sets."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.promql.formatting import format_exponent, format_labels, format_plain, format_value


@pytest.mark.parametrize(
    ("value", "api", "exponent", "plain"),
    [
        (0.0, "0", "0e+00", "0"),
        (-0.0, "-0", "-0e+00", "-0"),
        (1.0, "1", "1e+00", "1"),
        (1.5, "1.5", "1.5e+00", "1.5"),
        (-12.25, "-12.25", "-1.225e+01", "-12.25"),
        (1e21, "1000000000000000000000", "1e+21", "1e+21"),
        (123456789.0, "123456789", "1.23456789e+08", "1.23456789e+08"),
        (0.00001, "0.00001", "1e-05", "1e-05"),
        (0.0001, "0.0001", "1e-04", "0.0001"),
        (2.0**-24, "0.00000005960464477539063", "5.960464477539063e-08", "5.960464477539063e-08"),
        (5e-324, "0." + "0" * 323 + "5", "5e-324", "5e-324"),
        (math.nan, "NaN", "NaN", "NaN"),
        (math.inf, "+Inf", "+Inf", "+Inf"),
        (-math.inf, "-Inf", "-Inf", "-Inf"),
    ],
)
def test_a_value_has_three_text_forms(value: float, api: str, exponent: str, plain: str) -> None:
    assert format_value(value) == api
    assert format_exponent(value) == exponent
    assert format_plain(value) == plain


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_text_form_reads_back(value: float) -> None:
    for form in (format_value, format_exponent, format_plain):
        assert float(form(value)) == value
    assert "e" not in format_value(value)


def test_label_sets_are_sorted_and_escaped() -> None:
    labels = {"__name__": "x", "b": 'say "hi"\n', "a": "c\\d"}
    assert format_labels(labels) == 'x{a="c\\\\d", b="say \\"hi\\"\\n"}'
    assert format_labels({"__name__": "x"}) == "x"
    assert format_labels({}) == "{}"
