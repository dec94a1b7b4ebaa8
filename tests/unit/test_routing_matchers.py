import time
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import Invalid
from schemas.matchers import MAX_MATCHER_CHARS, go_quote, go_unquote, matches_all, parse_matchers


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ('severity="critical"', ['severity="critical"']),
        ("severity=critical", ['severity="critical"']),
        ('{foo = "bar", dings != "bums", }', ['foo="bar"', 'dings!="bums"']),
        ("foo=bar,dings!=bums", ['foo="bar"', 'dings!="bums"']),
        ('status=~"5.."', ['status=~"5.."']),
        ("status!~5..", ['status!~"5.."']),
        (r'quote="She said: \"Hi, ladies!\""', [r'quote="She said: \"Hi, ladies!\""']),
        (r"path=C:\new", ['path="C:\\new"'.replace("\\n", "\\n")]),
        (r'odd="\d"', [r'odd="\\d"']),
        ("empty=", ['empty=""']),
        ("", []),
        ("{}", []),
        ('"label in quotes"="x"', ['"label in quotes"="x"']),
        ("föö=bar", ['föö="bar"']),
        (r'"föö"="a\u00e9"', ['föö="aé"']),
    ],
)
def test_matchers_are_read_as_alertmanager_reads_them(text: str, canonical: list[str]) -> None:
    assert [str(matcher) for matcher in parse_matchers(text)] == canonical


@pytest.mark.parametrize(
    "text",
    [
        *('a="', 'a="b', 'a=b"c', 'a="b"c"', ",a=b", "a=b,,", "a", "=b", '"a=b', '{"a"=b'),
        *('a=~"("', "a=~(?=x)", r"a=~(x)\1", "a=~x{1000}{1000}", "1a=b=c"),
        "a=b" + "x" * MAX_MATCHER_CHARS,
    ],
)
def test_a_text_that_is_no_matcher_is_refused_with_a_reason(text: str) -> None:
    with pytest.raises(Invalid, match=r".{10}"):
        parse_matchers(text)


@pytest.mark.parametrize(
    ("text", "labels", "expected"),
    [
        ("a=x", {"a": "x"}, True),
        ("a=x", {}, False),
        ("a!=x", {}, True),
        ('a=""', {}, True),
        ("a=~x", {"a": "xy"}, False),
        ("a=~x.*", {"a": "xy"}, True),
        ("a=~x.", {"a": "x\n"}, False),
        ("a=~x|y", {"a": "y"}, True),
        ("a=~", {}, True),
        ("a!~x|y", {"a": "z"}, True),
        ("a!~x|y", {}, True),
        ("a=~x$", {"a": "x\n"}, False),
        ("a=~(?i)CRIT", {"a": "crit"}, True),
        ("a=~.+,b=y", {"a": "1", "b": "y"}, True),
        ("a=~.+,b=y", {"a": "1"}, False),
    ],
)
def test_an_expression_matches_whole_values_and_absent_labels_are_empty(
    text: str, labels: dict[str, str], expected: bool
) -> None:
    assert matches_all(parse_matchers(text), labels) is expected


def test_no_regular_expression_is_slow_on_any_value() -> None:
    (matcher,) = parse_matchers('a=~"(a+)+(b*a*)*x"')
    started = time.perf_counter()
    assert not matcher.matches({"a": "a" * 2000})
    assert time.perf_counter() - started < 0.5


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    with suppress(Invalid):
        parse_matchers(text)


@given(
    st.lists(
        st.tuples(
            st.from_regex(r"[a-z_]{1,8}", fullmatch=True),
            st.sampled_from(["=", "!="]),
            st.text(st.characters(exclude_categories=["Cs"])),
        ),
        max_size=3,
    )
)
def test_the_written_form_of_matchers_reads_back(parts: list[tuple[str, str, str]]) -> None:
    lines = [f"{name}{operator}{_escaped(value)}" for name, operator, value in parts]
    read = parse_matchers(",".join(lines))
    assert [(m.name, m.operator, m.value) for m in read] == parts
    assert parse_matchers(",".join(str(matcher) for matcher in read)) == read


def _escaped(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
    return f'"{escaped}"'


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_quoted_text_unquotes_to_itself(text: str) -> None:
    assert go_unquote(go_quote(text)) == text


@pytest.mark.parametrize("text", [r'"\q"', r'"\xff"', r'"\ud800"', r'"\U00110000"', '"a\nb"'])
def test_what_go_would_not_unquote_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        go_unquote(text)
