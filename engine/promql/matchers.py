"""Label matchers: which series a selector selects."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache

from engine.promql.blocks import Columns, Labels
from engine.promql.errors import QueryError
from schemas.errors import Invalid
from schemas.regex import anchored

MAX_PATTERN_CHARS = 2048
"""Longest regular expression of a matcher; as long as the longest label value."""


class MatchOp(StrEnum):
    """Prometheus' four comparisons of a label's value."""

    EQUAL = "="
    NOT_EQUAL = "!="
    REGEX = "=~"
    NOT_REGEX = "!~"


@dataclass(frozen=True, slots=True)
class Matcher:
    """Compares one label. A label that a series lacks has the value "". Regexes are anchored."""

    name: str
    op: MatchOp
    value: str
    _accepts: Callable[[str], bool] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_accepts", _acceptor(self.op, self.value))

    def accepts(self, value: str) -> bool:
        """Whether a series whose label has this value matches."""
        return self._accepts(value)

    def __str__(self) -> str:
        escaped = self.value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'{self.name}{self.op}"{escaped}"'


def matches(matchers: Sequence[Matcher], labels: Labels) -> bool:
    """Whether a series with these labels (`__name__` included) is selected."""
    return all(one.accepts(labels.get(one.name, "")) for one in matchers)


def matching_columns(matchers: tuple[Matcher, ...], columns: Columns) -> tuple[int, ...]:
    """Positions of the columns that are selected, ascending; worked out once per Columns."""
    return columns.remember(
        ("match", matchers),
        lambda: tuple(place for place, one in enumerate(columns) if matches(matchers, one)),
    )


def _acceptor(op: MatchOp, value: str) -> Callable[[str], bool]:
    if op is MatchOp.EQUAL:
        return value.__eq__
    if op is MatchOp.NOT_EQUAL:
        return value.__ne__
    accepts = _pattern(value)
    return accepts if op is MatchOp.REGEX else lambda text: not accepts(text)


_PLAIN = re.compile(r"[^\\.+*?()|\[\]{}^$]*(\|[^\\.+*?()|\[\]{}^$]*)*\Z")


@lru_cache(maxsize=1024)
def _pattern(value: str) -> Callable[[str], bool]:
    """The test of an anchored expression; alternatives of plain words become a set."""
    if _PLAIN.match(value):
        return frozenset(value.split("|")).__contains__
    if value == ".*":
        return lambda text: True
    if value == ".+":
        return bool
    if len(value) > MAX_PATTERN_CHARS:
        raise QueryError(f"regular expression longer than {MAX_PATTERN_CHARS} characters")
    try:
        return anchored(value, flags="s")
    except Invalid as error:
        raise QueryError(str(error)) from error
