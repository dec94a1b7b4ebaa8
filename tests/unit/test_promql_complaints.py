"""Where an expression goes wrong."""

import random

import pytest

from engine.promql import QueryError, parse
from engine.promql.complaints import complaint
from tests import promqlgrammar


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x +", "1:4: parse error: unexpected end of input; expected an expression"),
        ("", "1:1: parse error: unexpected end of input; expected an expression"),
        ("up == # so\n", "2:1: parse error: unexpected end of input; expected an expression"),
        ("sum(x", "1:6: parse error: unexpected end of input; expected an operator, ',' or ')'"),
        ("foo bar", "1:5: parse error: unexpected 'bar'; expected an operator or the end"),
        ("a\n +\n * b", "3:2: parse error: unexpected '*'; expected an expression"),
        ("on(x)", "1:1: parse error: unexpected 'on'; expected an expression"),
        ("foo{a=}", "1:7: parse error: unexpected '}'; expected a quoted label value"),
        ('foo{a="b"', "1:10: parse error: unexpected end of input; expected ',' or '}'"),
        ("rate(x[5m", "1:10: parse error: unexpected end of input; expected ']'"),
        ("sum(x) by", "1:10: parse error: unexpected end of input; expected '('"),
        ("sum by (a (x)", "1:11: parse error: unexpected '('; expected a label name or ')'"),
        ("(x) smoothed", "1:5: parse error: unexpected 'smoothed'; expected an operator or the"),
    ],
)
def test_an_error_tells_line_column_and_what_was_expected(text: str, said: str) -> None:
    with pytest.raises(QueryError) as raised:
        parse(text)
    assert str(raised.value).startswith(said)


def test_what_the_grammar_takes_is_not_complained_about() -> None:
    rng = random.Random(5)
    for _ in range(500):
        text = promqlgrammar.expression(rng)
        try:
            parse(text)
        except QueryError:
            continue
        assert complaint(text) is None, text


def test_any_text_is_gone_through_to_the_end() -> None:
    rng = random.Random(6)
    for _ in range(2000):
        text = "".join(rng.choices("ab(){}[],\"'=~+- 1m@!by#\n", k=rng.randrange(12)))
        complaint(text)
