"""Reads a regular expression, as far as groups and repetitions go, into a tree.

What a single character may be is left to Python's `re`, one class at a time.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

from engine.promql.errors import QueryError


class Char(NamedTuple):
    """One character that the test accepts."""

    accepts: Callable[[str], object]


class Position(NamedTuple):
    """A place in the text: "^", "$", "b" (at a word's edge) or "B"."""

    kind: str


class Sequence(NamedTuple):
    """One after the other."""

    parts: tuple["Tree", ...]


class Choice(NamedTuple):
    """The first that leads to a match."""

    parts: tuple["Tree", ...]


class Repeat(NamedTuple):
    """least to most times (None: any number); as often as possible if greedy."""

    part: "Tree"
    least: int
    most: int | None
    greedy: bool


class Group(NamedTuple):
    """Captures what its part matches."""

    number: int
    part: "Tree"


Tree = Char | Position | Sequence | Choice | Repeat | Group

_TOKEN = re.compile(
    r"(?P<class>\[\^?\]?(?:\[:\^?[a-z]+:\]|\\.|[^\]\\])*\])"
    r"|(?P<open>\((?:\?(?:P?<(?P<name>\w+)>|(?P<flags>[is]*):))?)"
    r"|(?P<repeat>[*+?]|\{\d+(?:,\d*)?\})(?P<lazy>\??)"
    r"|(?P<escape>\\(?:x[0-9a-fA-F]{2}|x\{[0-9a-fA-F]+\}|.))"
    r"|(?P<plain>.)",
    re.DOTALL,
)


class Reader:
    """Reads an expression by recursive descent."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.place = 0
        self.groups = 0
        self.names: dict[str, int] = {}

    def read(self) -> Tree:
        """The tree. Raises QueryError for what is not supported."""
        tree = self.choice(re.DOTALL)
        if self.place < len(self.pattern):
            raise self.refused()
        return tree

    def refused(self) -> QueryError:
        return QueryError(
            f"regular expression {self.pattern[:80]!r}: {self.pattern[self.place :][:20]!r} is not"
            " supported where groups are captured"
        )

    def choice(self, flags: int) -> Tree:
        parts = [self.sequence(flags)]
        while self.pattern.startswith("|", self.place):
            self.place += 1
            parts.append(self.sequence(flags))
        return parts[0] if len(parts) == 1 else Choice(tuple(parts))

    def sequence(self, flags: int) -> Tree:
        parts: list[Tree] = []
        while self.place < len(self.pattern) and self.pattern[self.place] not in "|)":
            found = _TOKEN.match(self.pattern, self.place)
            assert found is not None
            if found["repeat"]:
                if not parts:
                    raise self.refused()
                parts[-1] = _repeated(parts[-1], found["repeat"], not found["lazy"])
                self.place = found.end()
            elif found["open"]:
                parts.append(self.group(found, flags))
            else:
                parts.append(self.single(found, flags))
                self.place = found.end()
        return Sequence(tuple(parts))

    def group(self, found: re.Match[str], flags: int) -> Tree:
        if self.pattern.startswith("?", found.end()):
            raise self.refused()
        self.place = found.end()
        number = None
        if found["flags"] is None:
            self.groups += 1
            number = self.groups
            if found["name"]:
                self.names[found["name"]] = number
        elif "i" in found["flags"]:
            flags |= re.IGNORECASE
        part = self.choice(flags)
        self.place += 1  # the engine that matches has seen that it is closed
        return part if number is None else Group(number, part)

    def single(self, found: re.Match[str], flags: int) -> Tree:
        text = found[0]
        if text in ("^", "$", r"\b", r"\B", r"\A", r"\z"):
            return Position({"A": "^", "z": "$"}.get(text[-1], text[-1]))
        if text[0] == "[" and "[:" in text:
            raise self.refused()
        if found["escape"] and text[1].isalnum() and text[1] not in "dDwWsSxtnrfva":
            raise self.refused()
        if text.startswith(r"\x{"):
            text = re.escape(chr(int(text[3:-1], 16)))
        return Char(re.compile(text, flags | re.ASCII).match)


def _repeated(part: Tree, sign: str, greedy: bool) -> Tree:
    least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(sign, (0, None))
    if sign[0] == "{":
        low, comma, high = sign[1:-1].partition(",")
        least = int(low)
        most = least if not comma else int(high) if high else None
    return Repeat(part, least, most, greedy)


def repeats(tree: Tree) -> int | None:
    """How many repetitions stand side by side; None where one stands in another."""
    match tree:
        case Sequence(parts) | Choice(parts):
            counts = [repeats(part) for part in parts]
            return None if None in counts else sum(one or 0 for one in counts)
        case Group(_, part):
            return repeats(part)
        case Repeat(part, _, most, _):
            if most == 1:
                return repeats(part)
            return None if repeats(part) != 0 else 1
        case _:
            return 0
