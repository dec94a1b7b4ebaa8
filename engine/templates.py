"""Templates of labels and annotations: the common part of Prometheus' form, and no code.

`{{ $labels.instance }}`, `{{ $value | humanize }}`, `{{ printf "%.1f" $value }}`. A template is
parsed when its rule is loaded; what it can't do is an error there, with line and column.
Form: https://prometheus.io/docs/prometheus/latest/configuration/template_reference/
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from engine.promql.formatting import format_plain


class TemplateError(ValueError):
    """A template that cannot be used; the text says where: `line 1, column 5: …`."""


Kind = Literal["text", "number"]
Operand = str | float


@dataclass(frozen=True, slots=True)
class _Piece:
    """A part of a template: how to get its value from (labels, value), and what kind that is."""

    kind: Kind
    render: Callable[[Mapping[str, str], float], Operand]


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed template. Equal texts make equal templates."""

    text: str
    _pieces: "tuple[str | _Piece, ...]"

    def render(self, labels: Mapping[str, str], value: float) -> str:
        """The text for a series' labels and value; a label that is missing is empty."""
        return "".join(
            piece if isinstance(piece, str) else _shown(piece.render(labels, value))
            for piece in self._pieces
        )


def _shown(operand: Operand) -> str:
    return operand if isinstance(operand, str) else format_plain(operand)


_ACTION = re.compile(r"\{\{(-\s)?(.*?)(\s-)?\}\}", re.DOTALL)
_TOKEN = re.compile(
    r"""\s*(?:(?P<label>(?:\$labels|\.Labels)\.[a-zA-Z_][a-zA-Z0-9_]*)"""
    r"""|(?P<labels>(?:\$labels|\.Labels)(?=[\s|]|\Z))"""
    r"""|(?P<value>\$value\b|\.Value\b)"""
    r"""|(?P<text>"(?:\\.|[^"\\])*"|`[^`]*`)"""
    r"""|(?P<number>-?\d+(?:\.\d+)?)"""
    r"""|(?P<word>[a-zA-Z_][a-zA-Z0-9_]*)"""
    r"""|(?P<pipe>\|)|(?P<other>\S+))"""
)


def parse_template(text: str) -> Template:
    """The template of a text. Raises TemplateError for what is wrong or not supported."""
    pieces: list[str | _Piece] = []
    end = 0
    for action in _ACTION.finditer(text):
        before = text[end : action.start()]
        if "{{" in before or "}}" in before:
            raise _error(text, end + max(before.find("{{"), before.find("}}")), "stray braces")
        pieces.append(before.rstrip() if action[1] else before)
        pieces.append(_pipeline(text, action.start(2), action[2]))
        end = action.end()
        if action[3]:
            end += len(text[end:]) - len(text[end:].lstrip())
    if "{{" in text[end:]:
        raise _error(text, end + text[end:].find("{{"), "`{{` without `}}`")
    pieces.append(text[end:])
    return Template(text, tuple(piece for piece in pieces if piece != ""))


def _error(text: str, at: int, message: str) -> TemplateError:
    line = text.count("\n", 0, at) + 1
    column = at - (text.rfind("\n", 0, at) + 1) + 1
    return TemplateError(f"line {line}, column {column}: {message}")


@dataclass(frozen=True, slots=True)
class _Word:
    """A name of a function."""

    name: str
    at: int


def _pipeline(text: str, start: int, inside: str) -> _Piece:
    """`operand | function arguments | …`; the piped value is a function's last argument."""
    stages: list[list[_Piece | _Word]] = [[]]
    for token in _TOKEN.finditer(inside):
        at = start + token.start(token.lastgroup or 0)
        if token.lastgroup == "pipe":
            stages.append([])
        else:
            stages[-1].append(
                _operand(text, at, token.lastgroup or "", token[token.lastgroup or 0])
            )
    piped: _Piece | None = None
    for stage in stages:
        piped = _stage(text, start, stage, piped)
    assert piped is not None
    return piped


def _operand(text: str, at: int, group: str, token: str) -> _Piece | _Word:
    match group:
        case "label":
            name = token.rpartition(".")[2]
            return _Piece("text", lambda labels, value: labels.get(name, ""))
        case "labels":
            return _Piece("text", lambda labels, value: _all_labels(labels))
        case "value":
            return _Piece("number", lambda labels, value: value)
        case "text":
            literal = token[1:-1] if token[0] == "`" else _unquoted(text, at, token)
            return _Piece("text", lambda labels, value: literal)
        case "number":
            number = float(token)
            return _Piece("number", lambda labels, value: number)
        case "word":
            if token not in _FUNCTIONS and token != "printf":
                known = ", ".join(sorted([*_FUNCTIONS, "printf"]))
                raise _error(text, at, f"{token!r} is not supported; supported: {known}")
            return _Word(token, at)
        case _:
            raise _error(
                text, at, f"{token!r} is not supported; expected $labels.NAME, $value or a function"
            )


def _all_labels(labels: Mapping[str, str]) -> str:
    """All labels as Go prints a map."""
    return "map[" + " ".join(f"{name}:{labels[name]}" for name in sorted(labels)) + "]"


_ESCAPES = {"n": "\n", "t": "\t", '"': '"', "\\": "\\"}


def _unquoted(text: str, at: int, token: str) -> str:
    def unescape(found: re.Match[str]) -> str:
        if found[1] not in _ESCAPES:
            raise _error(text, at + found.start(), f"escape {found[0]!r} is not supported")
        return _ESCAPES[found[1]]

    return re.sub(r"\\(.)", unescape, token[1:-1], flags=re.DOTALL)


def _stage(text: str, start: int, stage: list[_Piece | _Word], piped: _Piece | None) -> _Piece:
    if not stage:
        raise _error(text, start, "an empty expression")
    first, *rest = stage
    arguments = [one for one in rest if isinstance(one, _Piece)]
    if len(arguments) != len(rest):
        raise _error(text, start, "a function stands where an argument is expected; use `|`")
    if isinstance(first, _Piece):
        if rest or piped is not None:
            raise _error(text, start, "expected a function before its arguments")
        return first
    if piped is not None:
        arguments.append(piped)
    try:
        if first.name == "printf":
            return _printf(arguments)
        kind, function = _FUNCTIONS[first.name]
        if len(arguments) != 1 or arguments[0].kind != kind:
            raise ValueError(f"{first.name} takes one {kind}")
    except ValueError as error:
        raise _error(text, first.at, str(error)) from error
    inner = arguments[0].render
    return _Piece("text", lambda labels, value: function(inner(labels, value)))


_VERB = re.compile(r"%([-+ 0]*\d*(?:\.\d+)?)(.|\Z)", re.DOTALL)


def _printf(arguments: list[_Piece]) -> _Piece:
    """Go's printf with %s, %v, %f, %e, %g. Raises ValueError where verbs and arguments differ."""
    if not arguments or arguments[0].kind != "text":
        raise ValueError("printf takes a format first")
    form = str(arguments[0].render({}, 0.0))
    verbs = [found for found in _VERB.finditer(form) if found[2] != "%"]
    if len(verbs) != len(arguments) - 1:
        raise ValueError(f"printf: {len(verbs)} verbs for {len(arguments) - 1} arguments")
    for verb, argument in zip(verbs, arguments[1:], strict=True):
        wanted = {"s": "text", "v": argument.kind, "f": "number", "e": "number", "g": "number"}
        if wanted.get(verb[2]) != argument.kind:
            raise ValueError(f"printf: {verb[0]!r} for a {argument.kind} is not supported")

    def render(labels: Mapping[str, str], value: float) -> Operand:
        operands = iter([one.render(labels, value) for one in arguments[1:]])
        return _VERB.sub(
            lambda verb: "%" if verb[2] == "%" else _formatted(verb[1], verb[2], next(operands)),
            form,
        )

    return _Piece("text", render)


def _formatted(flags: str, verb: str, operand: Operand) -> str:
    number = isinstance(operand, float)
    plain = verb in "sv" or (verb == "g" and "." not in flags)
    if number and not math.isfinite(float(operand)):
        return f"%{flags.partition('.')[0].replace('0', '')}s" % format_plain(float(operand))
    if plain:
        return f"%{flags.partition('.')[0]}s" % _shown(operand)
    return f"%{flags}{verb}" % operand


def _four_digits(value: float) -> str:
    """Go's %.4g."""
    return format_plain(value) if not math.isfinite(value) else f"{value:.4g}"


def humanize(value: float) -> str:
    """A number with a metric prefix: 1234567 is "1.235M"."""
    if value == 0 or not math.isfinite(value):
        return _four_digits(value)
    prefix = ""
    if abs(value) >= 1:
        for step in "kMGTPEZY":
            if abs(value) < 1000:
                break
            prefix, value = step, value / 1000
    else:
        for step in "munpfazy":
            if abs(value) >= 1:
                break
            prefix, value = step, value * 1000
    return _four_digits(value) + prefix


def humanize1024(value: float) -> str:
    """A number with a binary prefix: 123456789 is "117.7Mi"."""
    if abs(value) <= 1 or not math.isfinite(value):
        return _four_digits(value)
    prefix = ""
    for step in ("ki", "Mi", "Gi", "Ti", "Pi", "Ei", "Zi", "Yi"):
        if abs(value) < 1024:
            break
        prefix, value = step, value / 1024
    return _four_digits(value) + prefix


def humanize_percentage(value: float) -> str:
    """A ratio as a percentage: 0.123 is "12.3%"."""
    return _four_digits(value * 100) + "%"


def humanize_duration(value: float) -> str:
    """Seconds as a span: 4271 is "1h 11m 11s"."""
    if not math.isfinite(value):
        return _four_digits(value)
    if abs(value) < 1:
        return (humanize(value) if value else "0") + "s"
    sign, whole = ("-", int(-value)) if value < 0 else ("", int(value))
    days, hours = divmod(whole // 3600, 24)
    minutes, seconds = whole // 60 % 60, whole % 60
    if days:
        return f"{sign}{days}d {hours}h {minutes}m {seconds}s"
    if hours:
        return f"{sign}{hours}h {minutes}m {seconds}s"
    if minutes:
        return f"{sign}{minutes}m {seconds}s"
    return _four_digits(value) + "s"


_FUNCTIONS: dict[str, tuple[Kind, Callable[[Operand], str]]] = {
    "humanize": ("number", lambda operand: humanize(float(operand))),
    "humanize1024": ("number", lambda operand: humanize1024(float(operand))),
    "humanizePercentage": ("number", lambda operand: humanize_percentage(float(operand))),
    "humanizeDuration": ("number", lambda operand: humanize_duration(float(operand))),
    "toUpper": ("text", lambda operand: str(operand).upper()),
    "toLower": ("text", lambda operand: str(operand).lower()),
}
