"""What groups capture: as Python's `re` has it, and in linear time."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.promql import QueryError
from engine.promql.captures import Pattern, compiled

ATOMS = st.sampled_from(
    ["a", "b", ".", "[ab]", "[^a]", r"\w", r"a{1,2}", "(?:ab)", "^", "$", r"\b"]
)


def _larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda two: f"(?:{two[0]}|{two[1]})"),
        inner.map(lambda one: f"({one})"),
        st.tuples(inner, st.sampled_from(["?", "??"])).map(lambda two: f"(?:{two[0]}){two[1]}"),
        st.sampled_from(["a*", "b+", ".*?", "[ab]{2,}", "a+?", "(a|b)*", "(.)+"]),
    )


PATTERNS = st.recursive(ATOMS, _larger, max_leaves=6)


def by_machine(pattern: str, text: str) -> dict[str, str] | None:
    """The groups without the help of backtracking."""
    found = compiled(pattern)
    slow = Pattern(found.matches, found.program, found.names, found.count, None)
    return slow.groups(text)


@given(PATTERNS, st.text("ab c", max_size=8))
def test_groups_are_those_of_python(pattern: str, text: str) -> None:
    found = re.fullmatch(pattern, text, re.DOTALL | re.ASCII)
    expected = found and {str(n): one or "" for n, one in enumerate((found[0], *found.groups()))}
    assert by_machine(pattern, text) == expected
    assert compiled(pattern).groups(text) == expected


def test_named_groups_have_both_names() -> None:
    assert compiled(r"(?P<host>.+):(?<port>\d+)").groups("a:80") == {
        "0": "a:80",
        "1": "a",
        "2": "80",
        "host": "a",
        "port": "80",
    }


@pytest.mark.parametrize("pattern", ["(a+)+(b|.*)", "(.*)(.*)(.*)(.*)(.*)(.*)b.*", "(a|a)*(b?).*"])
def test_no_expression_is_slow(pattern: str) -> None:
    begun = time.process_time()
    assert by_machine(pattern, "a" * 2000 + "b") is not None
    assert compiled(pattern).groups("a" * 200 + "b") is not None
    assert time.process_time() - begun < 5


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("(", "not a regular expression"),
        (r"\pL(.)", "not supported"),
        ("([[:alpha:]]+)", "not supported"),
        ("((a{100}){100}){10}", "instructions|not a regular expression"),
        ("a" * 3000, "longer than 2048"),
    ],
)
def test_what_cannot_be_captured_is_refused(pattern: str, reason: str) -> None:
    with pytest.raises(QueryError, match=reason):
        compiled(pattern)
