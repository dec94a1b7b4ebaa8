"""Durations that are computed, such as `[2 * 5m]` and `offset (step() / 2)`: written out as plain
ones before the expression is parsed, since the grammar knows only those.

https://prometheus.io/docs/prometheus/latest/querying/basics/, promql-duration-expr. In brackets any
arithmetic may stand; after `offset` one operand, and the rest in parentheses.
"""

import math
import operator
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from engine.promql.complaints import WALKED_CHARS, Token, tokens
from engine.promql.errors import QueryError

_UNITS_S = {
    "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0, "y": 31_536_000.0
}  # fmt: skip
_COMPUTED = re.compile(r"\[[^][]*[-+*/%^(]|offset\s*+[-+]?\s*+[(a-z]", re.IGNORECASE)
"""Where there may be any."""

_DURATION = re.compile(r"([0-9]+)(ms|[smhdwy])")
_MOST_S = 2.0**63 / 1e9
"""Longest duration: Go's, which counts nanoseconds in an int64."""

_DEEPEST = 100
"""Parentheses in each other; parsing recurses."""


class Given(NamedTuple):
    """What step() and range() mean: the query's step and its end less its start, in seconds."""

    step_s: float = 0.0
    range_s: float = 0.0


AT_AN_INSTANT = Given()


class _NotOne(Exception):
    """What stands here is no duration expression; the grammar will say what it is."""


def written_out(text: str, given: Given) -> str:
    """The expression with computed durations in milliseconds; a very long one as it is. Raises
    QueryError for one that is out of range."""
    if len(text) > WALKED_CHARS or not _COMPUTED.search(text):
        return text
    pieces, done = [], 0
    for computed in _Walk(list(_pieces(text)), given).computed():
        pieces += [text[done : computed.begin], computed.text]
        done = computed.end
    return "".join([*pieces, text[done:]])


def _pieces(text: str) -> Iterator[Token]:
    """The tokens; a colon is one by itself, though the name of a metric may begin with it."""
    for token in tokens(text):
        if token.kind == "word" and token.text[0] == ":":
            yield Token("sign", ":", token.place)
            inner = [one for one in tokens(token.text[1:]) if one.kind != "end"]
            yield from (one._replace(place=one.place + token.place + 1) for one in inner)
        else:
            yield token


class _Computed(NamedTuple):
    """What stands from `begin` to `end` in the expression, written out."""

    begin: int
    end: int
    text: str


class _Walk:
    """Goes through an expression's tokens."""

    def __init__(self, every: list[Token], given: Given) -> None:
        self.tokens = every
        self.given = given
        self.place = 0
        self.depth = 0

    @property
    def now(self) -> str:
        return self.tokens[self.place].text.lower()

    def computed(self) -> Iterator[_Computed]:
        """Each duration expression that is not plain."""
        braces = 0
        while self.tokens[self.place].kind != "end":
            text, begin = self.now, self.tokens[self.place].place
            self.place += 1
            braces += (text == "{") - (text == "}")
            if braces:
                continue
            if text in ("[", ":"):
                yield from self._span(text)
            elif text == "offset":
                yield from self._offset(begin)

    def _span(self, opening: str) -> Iterator[_Computed]:
        begin = self.tokens[self.place].place
        value_ms = self._milliseconds(self.sum, ("]", ":") if opening == "[" else ("]",))
        if value_ms is not None:
            if value_ms <= 0:
                raise QueryError("duration must be greater than 0")
            yield _Computed(begin, self.tokens[self.place].place, f"{value_ms}ms")

    def _offset(self, begin: int) -> Iterator[_Computed]:
        value_ms = self._milliseconds(self.signed, ())
        if value_ms is not None:
            written = f" offset {value_ms}ms " if value_ms else " "
            yield _Computed(begin, self.tokens[self.place].place, written)

    def _milliseconds(self, read: Callable[[], float], closing: tuple[str, ...]) -> int | None:
        """The duration expression at hand, which is passed; None where there is none, or it is
        plain."""
        begin = self.place
        try:
            value_s = read()
            if closing and self.now not in closing:
                raise _NotOne
        except _NotOne:
            self.place = begin
            return None
        words = self.tokens[begin : self.place]
        if len(words) <= 2 and words[-1].kind == "number":
            return None
        if not math.isfinite(value_s) or abs(value_s) > _MOST_S:
            raise QueryError("duration out of range")
        return math.trunc(value_s * 1000)

    def _take(self, *texts: str) -> str | None:
        """The token at hand, passed, where it is one of these."""
        if self.now not in texts:
            return None
        self.place += 1
        return self.tokens[self.place - 1].text.lower()

    def _expect(self, text: str) -> None:
        if self._take(text) is None:
            raise _NotOne

    def sum(self) -> float:
        value = self.product()
        while sign := self._take("+", "-"):
            other = self.product()
            value = value + other if sign == "+" else value - other
        return value

    def product(self) -> float:
        value = self.signed_power()
        while sign := self._take("*", "/", "%"):
            other = self.signed_power()
            if sign != "*" and other == 0:
                raise QueryError(f"{'division' if sign == '/' else 'modulo'} by zero")
            value = _PRODUCTS[sign](value, other)
        return value

    def signed_power(self) -> float:
        if sign := self._take("+", "-"):
            value = self._deeper(self.signed_power)
            return -value if sign == "-" else value
        base = self.operand()
        if self._take("^") is None:
            return base
        try:
            return math.pow(base, self._deeper(self.signed_power))
        except (ValueError, OverflowError) as error:
            raise QueryError("duration out of range") from error

    def signed(self) -> float:
        """One operand with its sign, as it stands after `offset`."""
        sign = self._take("+", "-")
        value = self.operand()
        return -value if sign == "-" else value

    def operand(self) -> float:
        token = self.tokens[self.place]
        self.place += 1
        match token.kind, token.text.lower():
            case "number", text:
                return _seconds(text)
            case "sign", "(":
                value = self._deeper(self.sum)
                self._expect(")")
                return value
            case "word", "step" | "range" as word:
                self._expect("(")
                self._expect(")")
                return self.given.step_s if word == "step" else self.given.range_s
            case "word", "min_of" | "max_of" as word:
                self._expect("(")
                one = self._deeper(self.sum)
                self._expect(",")
                other = self._deeper(self.sum)
                self._expect(")")
                return min(one, other) if word == "min_of" else max(one, other)
        raise _NotOne

    def _deeper(self, read: Callable[[], float]) -> float:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise QueryError(f"expression nested deeper than {_DEEPEST} levels")
        value = read()
        self.depth -= 1
        return value


_PRODUCTS: dict[str, Callable[[float, float], float]] = {
    "*": operator.mul,
    "/": operator.truediv,
    "%": math.fmod,
}


def _seconds(text: str) -> float:
    """Of a number of seconds, or a duration such as 1h30m."""
    found = _DURATION.findall(text)
    if "".join(number + unit for number, unit in found) == text:
        return sum(float(number) * _UNITS_S[unit] for number, unit in found)
    try:
        return float(text)
    except ValueError as error:
        raise _NotOne from error
