"""Label matchers as Alertmanager writes them: `severity="critical"`, `{job=~"db.*", site!="lab"}`.

Both of its syntaxes are read: the classic one first and, where that fails, the UTF-8 one (label
names in quotes). Where both would read a text, Alertmanager takes the classic reading too.
https://prometheus.io/docs/alerting/latest/configuration/#matchers
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, cast

from schemas.errors import Invalid
from schemas.regex import anchored

MAX_MATCHER_CHARS = 4096
"""Length of one line of matchers; the engine bounds a compiled regular expression as well."""

Operator = Literal["=", "!=", "=~", "!~"]


@dataclass(frozen=True, order=True)
class Matcher:
    """One condition on one label; a label that is absent has the value ""."""

    name: str
    value: str
    operator: Operator

    def __str__(self) -> str:
        escaped = self.value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
        if _RESERVED.search(self.name):
            return f"{go_quote(self.name)}{self.operator}{go_quote(self.value)}"
        return f'{self.name}{self.operator}"{escaped}"'

    def matches(self, labels: Mapping[str, str]) -> bool:
        value = labels.get(self.name, "")
        if self.operator == "=":
            return value == self.value
        if self.operator == "!=":
            return value != self.value
        found = anchored(self.value)(value)
        return found if self.operator == "=~" else not found


def matches_all(matchers: Iterable[Matcher], labels: Mapping[str, str]) -> bool:
    """Whether every matcher holds; no matchers match everything."""
    return all(matcher.matches(labels) for matcher in matchers)


def parse_matchers(text: str) -> tuple[Matcher, ...]:
    """The matchers of one line. Raises Invalid."""
    if len(text) > MAX_MATCHER_CHARS:
        raise Invalid(f"matchers of {len(text)} characters; at most {MAX_MATCHER_CHARS}")
    try:
        return _classic(text)
    except Invalid as classic:
        try:
            return _utf8(text)
        except Invalid:
            raise classic from None


def _matcher(name: str, operator: str, value: str) -> Matcher:
    if operator in ("=~", "!~"):
        anchored(value)
    return Matcher(name, value, cast(Operator, operator))


_CLASSIC = re.compile(
    r"\s*([a-zA-Z_:][a-zA-Z0-9_:]*)\s*(=~|=|!=|!~)\s*(.*?)\s*\Z", re.DOTALL | re.ASCII
)
_ESCAPED = {"n": "\n", '"': '"', "\\": "\\"}


def _classic(text: str) -> tuple[Matcher, ...]:
    return tuple(
        _classic_matcher(part) for part in _split(text.removeprefix("{").removesuffix("}"))
    )


def _split(text: str) -> list[str]:
    """The parts between commas outside of double quotes; an empty last one is dropped."""
    parts, start, quoted, escaped = [], 0, False, False
    for index, char in enumerate(text):
        if char == "," and not quoted:
            parts.append(text[start:index])
            start = index + 1
        elif char == ",":
            continue  # leaves `escaped` as it is, as Alertmanager does
        elif char == '"' and not escaped:
            quoted = not quoted
        escaped = char == "\\" and not escaped
    return parts if not text[start:].strip() else [*parts, text[start:]]


def _classic_matcher(text: str) -> Matcher:
    found = _CLASSIC.match(text)
    if found is None:
        raise Invalid(f'{text[:80]!r} is not a matcher such as severity="critical"')
    name, operator, value = found.groups()
    quoted = value.startswith('"')
    if quoted:
        if len(value) < 2 or not value.endswith('"'):
            raise Invalid(f"{value[:80]!r} lacks its closing quote")
        value = value[1:-1]
    plain, index = "", 0
    while index < len(value):
        char = value[index]
        following = value[index + 1 : index + 2]
        if char == '"' or (char == "\\" and quoted and not following):
            raise Invalid(f"{value[:80]!r} has a double quote that is not escaped")
        if char == "\\" and following:
            plain += _ESCAPED.get(following, "\\" + following)
            index += 1
        else:
            plain += char
        index += 1
    return _matcher(name, operator, plain)


_RESERVED = re.compile(r"[\s{}!=~,\\\"'`]")
_TOKEN = re.compile(
    r"\s*(?:(?P<brace>[{}])|(?P<comma>,)|(?P<operator>=~|!=|!~|=)"
    r'|(?P<quoted>"(?:\\.|[^"\\])*")|(?P<bare>[^\s{}!=~,\\"\'`]+))',
    re.DOTALL,
)


def _utf8(text: str) -> tuple[Matcher, ...]:
    """`[{] [matcher {, matcher} [,]] [}]`, where names and values may be quoted as in Go."""
    tokens = _tokens(text)
    opened = bool(tokens) and tokens[0] == ("brace", "{")
    if opened:
        if tokens[-1] != ("brace", "}"):
            raise Invalid("the closing brace is missing")
        tokens = tokens[1:-1]
    found = []
    for start in range(0, len(tokens), 4):
        parts = tokens[start : start + 4]
        kinds = [kind for kind, _ in parts]
        if len(parts) < 3 or kinds[1] != "operator" or kinds[3:] not in ([], ["comma"]):
            raise Invalid("expected matchers, separated by commas")
        name, value = (_text(*parts[index]) for index in (0, 2))
        found.append(_matcher(name, parts[1][1], value))
    return tuple(found)


def _tokens(text: str) -> list[tuple[str, str]]:
    tokens, position = [], 0
    text = text.rstrip()
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None or found.lastgroup is None:
            raise Invalid(f"unexpected {text[position : position + 20]!r}")
        tokens.append((found.lastgroup, found.group(found.lastgroup)))
        position = found.end()
    return tokens


def _text(kind: str, text: str) -> str:
    if kind == "bare":
        return text
    if kind == "quoted":
        return go_unquote(text)
    raise Invalid(f"expected a label name or value, read {text!r}")


_GO_ESCAPES = {
    "a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v",
    "\\": "\\", '"': '"',
}  # fmt: skip
_GO_ESCAPE = re.compile(
    r"\\(?:([abfnrtv\\\"])|x([0-9a-fA-F]{2})|([0-7]{3})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.?))",
    re.DOTALL,
)


def go_unquote(text: str) -> str:
    """The value of a string literal in double quotes (Go's strconv.Unquote). Raises Invalid."""
    inner = text[1:-1]
    if "\n" in inner:
        raise Invalid(f"{text[:80]!r} has a line break inside its quotes")
    out, position = b"", 0
    try:
        for found in _GO_ESCAPE.finditer(inner):
            out += inner[position : found.start()].encode()
            out += _escaped(found)
            position = found.end()
        return (out + inner[position:].encode()).decode()
    except (UnicodeError, ValueError, OverflowError) as error:
        raise Invalid(f"{text[:80]!r} is not a quoted string") from error


def _escaped(found: "re.Match[str]") -> bytes:
    letter, byte, octal, short, long, other = found.groups()
    if letter:
        return _GO_ESCAPES[letter].encode()
    if byte or octal:
        return bytes([int(byte, 16) if byte else int(octal, 8)])
    if short or long:
        return chr(int(short or long, 16)).encode()
    raise ValueError(f"unknown escape {other!r}")


_GO_QUOTES = {char: f"\\{letter}" for letter, char in _GO_ESCAPES.items()}


def go_quote(text: str) -> str:
    """The text as Go's %q prints it: strings of Prometheus, group keys of Alertmanager."""
    return '"' + "".join(_quoted(char) for char in text) + '"'


def _quoted(char: str) -> str:
    if char in _GO_QUOTES:
        return _GO_QUOTES[char]
    if char.isprintable():
        return char
    code = ord(char)
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
