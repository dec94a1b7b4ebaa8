"""Where an expression that the grammar refuses goes wrong: the grammar itself does not say.

Reads the expression as a row of operands and operators, which is enough to find the first token
that can't stand where it does. Its verdict is only asked for once an expression was refused.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

_TOKEN = re.compile(
    r"(?P<space>\s+|\#[^\n]*)"
    r"|(?P<string>\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'|`[^`]*`)"
    r"|(?P<number>(?:0x[0-9a-f]+|[0-9.]+(?:e[-+]?[0-9]+)?)[a-z0-9]*)"
    r"|(?P<word>[a-z_:][a-z0-9_:.]*)"
    r"|(?P<sign>=~|!~|==|!=|>=|<=|[-+*/%^<>=(){}\[\],@:])"
    r"|(?P<other>\"(?:\\.|[^\"\\\n])*|'(?:\\.|[^'\\\n])*|`[^`]*|.)",
    re.IGNORECASE | re.DOTALL,
)
_LISTS = frozenset(
    [
        *("by", "without", "on", "ignoring", "group_left", "group_right"),
        *("fill", "fill_left", "fill_right"),
    ]
)
_SET_OPERATORS = frozenset({"and", "or", "unless", "atan2"})
_BINARY = frozenset({"+", "-", "*", "/", "%", "^", "==", "!=", ">", "<", ">=", "<="})
_MATCHERS = frozenset({"=", "!=", "=~", "!~"})

WALKED_CHARS = 4096
"""Longest expression that is looked at token by token, which takes up to 10 ms."""

EXPRESSION = "an expression"
OPERATOR = "an operator or the end"


class Token(NamedTuple):
    """A piece of the text. kind: of _TOKEN, or "end"."""

    kind: str
    text: str
    place: int


class _Unexpected(Exception):
    def __init__(self, token: Token, expected: str) -> None:
        self.token = token
        self.expected = expected


def complaint(text: str) -> str | None:
    """`line:column: parse error: unexpected …; expected …`; None where no token stands out."""
    if len(text) > WALKED_CHARS:
        return None
    try:
        _Walk(text).expressions()
    except _Unexpected as error:
        token = error.token
        line = text.count("\n", 0, token.place) + 1
        column = token.place - text.rfind("\n", 0, token.place)
        read = repr(token.text) if token.text else "end of input"
        return f"{line}:{column}: parse error: unexpected {read}; expected {error.expected}"
    return None


def tokens(text: str) -> Iterator[Token]:
    """The tokens of an expression, without space and comments, and one for its end."""
    for found in _TOKEN.finditer(text):
        kind = str(found.lastgroup)
        if kind != "space":
            yield Token(kind, found[0], found.start())
    yield Token("end", "", len(text))


class _Walk:
    """Goes through the tokens of one expression."""

    def __init__(self, text: str) -> None:
        self.tokens = list(tokens(text))
        self.place = 0

    @property
    def now(self) -> Token:
        return self.tokens[self.place]

    def expect(self, fits: bool, expected: str) -> Token:
        """The token at hand, which is passed. Raises _Unexpected where it does not fit."""
        token = self.now
        if not fits:
            raise _Unexpected(token, expected)
        self.place += 1
        return token

    def expressions(self) -> None:
        """Operands with operators between them, up to the end; brackets are kept on a stack."""
        closing: list[str] = []
        while True:
            while self.now.text in ("+", "-"):
                self.place += 1
            if self.now.text == "(":
                self.place += 1
                closing.append(")")
                continue
            empty = self.now.text == ")" and closing and self.tokens[self.place - 2].kind == "word"
            if not empty and self.operand():
                closing.append(")")
                continue
            self.modifiers()
            while self.now.text == ")" and closing:
                closing.pop()
                self.place += 1
                self.modifiers()
            if self.now.kind == "end" and not closing:
                return
            self.operator(bool(closing))

    def operand(self) -> bool:
        """Passes a number, a text, a selector or the beginning of a call, of which it tells."""
        token = self.now
        keyword = token.text.lower() in _LISTS | _SET_OPERATORS | {"bool", "offset"}
        starts = token.kind in ("string", "number", "word") or token.text == "{"
        self.expect(starts and not keyword, EXPRESSION)
        if token.text == "{":
            self.matchers()
        elif token.kind == "word":
            self.lists()
            if self.now.text == "(":
                self.place += 1
                return True
            if self.now.text == "{":
                self.place += 1
                self.matchers()
        return False

    def matchers(self) -> None:
        """Passes what stands in braces, and the closing one."""
        while self.now.text != "}":
            name = self.expect(self.now.kind in ("word", "string"), "a label name or '}'")
            if name.kind == "word" or self.now.text in _MATCHERS:
                self.expect(self.now.text in _MATCHERS, "one of = != =~ !~")
                self.expect(self.now.kind == "string", "a quoted label value")
            if self.now.text != "}":
                self.expect(self.now.text in (",", "or"), "',' or '}'")
        self.place += 1

    def modifiers(self) -> None:
        """Passes ranges, offsets, `@`, and the labels of an aggregation."""
        while True:
            if self.now.text == "[":
                while self.now.text != "]":
                    self.expect(self.now.kind != "end", "']'")
                self.place += 1
            elif self.now.text.lower() == "offset":
                self.place += 1
                self.place += self.now.text in ("+", "-")
                self.expect(self.now.kind == "number", "a duration such as 5m")
            elif self.now.text == "@":
                self.place += 1
                self.place += self.now.text in ("+", "-")
                word = self.expect(self.now.kind in ("number", "word"), "an instant")
                if word.kind == "word" and word.text.lower() in ("start", "end"):
                    self.expect(self.now.text == "(", "'('")
                    self.expect(self.now.text == ")", "')'")
            elif not self.lists():
                return

    def lists(self) -> bool:
        """Passes words such as `by` with their lists; tells whether any was there."""
        begun = self.place
        while self.now.text.lower() in _LISTS:
            optional = self.now.text.lower().startswith("group_")
            self.place += 1
            if optional and self.now.text != "(":
                continue
            self.expect(self.now.text == "(", "'('")
            while self.now.text != ")":
                self.expect(
                    self.now.kind in ("word", "string", "number") or self.now.text == ",",
                    "a label name or ')'",
                )
            self.place += 1
        return self.place > begun

    def operator(self, inside: bool) -> None:
        """Passes an operator with its matching, or a comma in parentheses."""
        text = self.now.text.lower()
        if inside and text == ",":
            self.place += 1
            return
        fits = text in _BINARY | _SET_OPERATORS
        self.expect(fits, "an operator, ',' or ')'" if inside else OPERATOR)
        while self.now.text.lower() == "bool" or self.lists():
            self.place += self.now.text.lower() == "bool"
