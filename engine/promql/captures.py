"""What the groups of a regular expression capture, in time linear in the text.

The matching engine (schemas/regex.py) tells only whether a text matches. Here the expression is
read and run as a Pike machine: all alternatives advance together, in order of preference, so that
no expression is slow. Python's `re` takes over where few repetitions keep its backtracking short.
https://swtch.com/~rsc/regexp/regexp2.html
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from engine.promql.errors import QueryError
from engine.promql.regexes import (
    Char,
    Choice,
    Group,
    Position,
    Reader,
    Repeat,
    Sequence,
    Tree,
    repeats,
)
from schemas.errors import Invalid
from schemas.regex import anchored

MAX_PATTERN_CHARS = 2048
MAX_INSTRUCTIONS = 10_000
"""Length of a program; `(a{100}){100}` is as long."""

BACKTRACKING_REPEATS = 3
BACKTRACKING_CHARS = 256
"""Up to so many repetitions, side by side, over so long a text, backtracking is quick enough."""


class _Step(NamedTuple):
    """An instruction: "char", "at", "save", "split" (x before y), "jump" or "match"."""

    kind: str
    accepts: Callable[[str], object] = bool
    position: str = ""
    x: int = 0
    y: int = 0


def _compile(tree: Tree, program: list[_Step]) -> None:
    if len(program) > MAX_INSTRUCTIONS:
        raise QueryError(f"regular expression of more than {MAX_INSTRUCTIONS} instructions")
    match tree:
        case Char(accepts):
            program.append(_Step("char", accepts))
        case Position(kind):
            program.append(_Step("at", position=kind))
        case Sequence(parts):
            for part in parts:
                _compile(part, program)
        case Group(number, part):
            program.append(_Step("save", x=2 * number))
            _compile(part, program)
            program.append(_Step("save", x=2 * number + 1))
        case Choice(parts):
            _compile_choice(parts, program)
        case Repeat():
            _compile_repeat(tree, program)


def _compile_choice(parts: tuple[Tree, ...], program: list[_Step]) -> None:
    ends = []
    for part in parts[:-1]:
        split = len(program)
        program.append(_Step("split"))
        _compile(part, program)
        ends.append(len(program))
        program.append(_Step("jump"))
        program[split] = _Step("split", x=split + 1, y=len(program))
    _compile(parts[-1], program)
    for end in ends:
        program[end] = _Step("jump", x=len(program))


def _compile_repeat(tree: Repeat, program: list[_Step]) -> None:
    for _ in range(tree.least):
        _compile(tree.part, program)
    optional = 1 if tree.most is None else tree.most - tree.least
    splits = []
    for _ in range(optional):
        splits.append(len(program))
        program.append(_Step("split"))
        _compile(tree.part, program)
    if tree.most is None:
        program.append(_Step("jump", x=splits[0]))
    for split in splits:
        ways = (split + 1, len(program))
        x, y = ways if tree.greedy else ways[::-1]
        program[split] = _Step("split", x=x, y=y)


Saved = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Pattern:
    """An expression that must match a whole text."""

    matches: Callable[[str], bool]
    program: tuple[_Step, ...]
    names: dict[str, int]
    count: int
    quick: re.Pattern[str] | None

    def groups(self, text: str) -> dict[str, str] | None:
        """What each group captured, by number and by name; None where the text does not match."""
        if not self.matches(text):
            return None
        if self.quick is not None and len(text) <= BACKTRACKING_CHARS:
            found = self.quick.fullmatch(text)
            spans = [found.span(one) for one in range(self.count + 1)] if found else []
        else:
            saved = self._run(text)
            spans = list(zip(saved[::2], saved[1::2], strict=True))
        captured = {
            str(number): text[begin:end] if begin >= 0 and end >= 0 else ""
            for number, (begin, end) in enumerate(spans)
        }
        return captured | {name: captured.get(str(n), "") for name, n in self.names.items()}

    def _run(self, text: str) -> Saved:
        """Where each group begins and ends, by the preferred way to match the whole text."""
        start = (0, len(text)) + (-1,) * (2 * self.count)
        threads = list(self._closure([(0, start)], text, 0))
        for place, char in enumerate(text):
            moved = [
                (step + 1, saved)
                for step, saved in threads
                if self.program[step].kind == "char" and self.program[step].accepts(char)
            ]
            threads = list(self._closure(moved, text, place + 1))
        for step, saved in threads:
            if self.program[step].kind == "match":
                return saved
        return ()

    def _closure(
        self, threads: list[tuple[int, Saved]], text: str, place: int
    ) -> Iterator[tuple[int, Saved]]:
        """The threads that wait for a character or have matched, each place of the program once."""
        seen = set()
        stack = threads[::-1]
        while stack:
            step, saved = stack.pop()
            if step in seen:
                continue
            seen.add(step)
            found = self.program[step]
            match found.kind:
                case "jump":
                    stack.append((found.x, saved))
                case "split":
                    stack += [(found.y, saved), (found.x, saved)]
                case "save":
                    stack.append((step + 1, (*saved[: found.x], place, *saved[found.x + 1 :])))
                case "at":
                    if _holds(found.position, text, place):
                        stack.append((step + 1, saved))
                case _:
                    yield step, saved


def _holds(position: str, text: str, place: int) -> bool:
    if position == "^":
        return place == 0
    if position == "$":
        return place == len(text)
    word = [
        0 <= one < len(text) and (text[one].isalnum() or text[one] == "_")
        for one in (place - 1, place)
    ]
    return (word[0] != word[1]) == (position == "b")


@lru_cache(maxsize=1024)
def compiled(pattern: str) -> Pattern:
    """The expression, ready to capture. Raises QueryError."""
    if len(pattern) > MAX_PATTERN_CHARS:
        raise QueryError(f"regular expression longer than {MAX_PATTERN_CHARS} characters")
    try:
        matches = anchored(pattern, flags="s")
    except Invalid as error:
        raise QueryError(str(error)) from error
    reader = Reader(pattern)
    tree = reader.read()
    program: list[_Step] = []
    _compile(tree, program)
    program.append(_Step("match"))
    quick = None
    side_by_side = repeats(tree)
    if side_by_side is not None and side_by_side <= BACKTRACKING_REPEATS:
        quick = re.compile(pattern.replace("(?<", "(?P<"), re.DOTALL | re.ASCII)
    return Pattern(matches, tuple(program), reader.names, reader.groups, quick)
