"""What it costs to compile a regular expression, told from its text before it is compiled.

Compiling happens in native code that lets nothing else run meanwhile, and a short text may ask for
much: a class of all letters of all scripts, repeated a thousand times.
"""

import re

MAX_COST_US = 20_000
"""Of all regular expressions of one query together."""

BEGIN_US = 50
"""Of each expression, however short."""

LETTERS_US, DIGITS_US, ANY_US, ONE_US = 250, 30, 4, 1
"""About what it takes to compile, once: a class such as \\w or \\pL of some hundred ranges; one of
dozens, such as \\d; one of nearly all characters, such as `.`; anything else."""

_TOKEN = re.compile(
    r"(?P<class>\[\^?\]?(?:\[:\^?[a-z]+:\]|\\.|[^\]\\])*\])"
    r"|(?P<repeat>[*+?]|\{(?P<least>\d+)(?P<open>,(?P<most>\d*))?\})"
    r"|(?P<letters>\\[wW]|\\[pP](?:\{[^}]{,50}\}|.))"
    r"|(?P<digits>\\[dDsS])"
    r"|(?P<any>\.)"
    r"|(?P<begin>\()|(?P<end>\))"
    r"|(?P<one>\\.|.)",
    re.DOTALL,
)
_CLOSING = re.compile(r"\\.|\]", re.DOTALL)
_LITERAL = re.compile(
    r"""\#[^\n]*|(?:([=!]~)\s*+)?("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|`[^`]*`)"""
    r"""|["'`].*""",  # which nothing closes: looked for once only
    re.DOTALL,
)


def cost_in_query_us(expression: str) -> int:
    """Of all regular expressions in an expression, in µs: those of matchers, and any other text,
    which may be that of label_replace."""
    return sum(
        cost_us(_unquoted(found[2])) - (0 if found[1] else BEGIN_US)
        for found in _LITERAL.finditer(expression)
        if found[2]
    )


def _unquoted(literal: str) -> str:
    """The text of a string literal; an escaped character stands for itself, which costs as much."""
    inner = literal[1:-1]
    return inner if literal.startswith("`") else re.sub(r"\\(.)", r"\1", inner, flags=re.DOTALL)


def cost_us(pattern: str) -> int:
    """About how long it takes to compile a regular expression, in µs. Any text has a cost."""
    open_groups: list[int] = []
    total, last = BEGIN_US, 0
    for found in _TOKEN.finditer(_without_open_class(pattern)):
        if found["repeat"]:
            times = int((found["most"] or found["least"] or "1")[:6])
            total += last * (max(times, 1) - 1)
            last *= max(times, 1)
        elif found["begin"]:
            open_groups.append(total)
            last = 0
        elif found["end"]:
            last = total - (open_groups.pop() if open_groups else 0)
        else:
            last = _class_cost(found[0]) if found["class"] else _COSTS[str(found.lastgroup)]
            total += last
    return total


def _without_open_class(pattern: str) -> str:
    """The pattern, in which every `[` has its `]`: looking for those that have none, one by one,
    would take seconds."""
    closing = [found.start() for found in _CLOSING.finditer(pattern) if found[0] == "]"]
    end = closing[-1] if closing else 0
    return pattern[:end] + pattern[end:].replace("[", " ")


_COSTS = {"letters": LETTERS_US, "digits": DIGITS_US, "any": ANY_US, "one": ONE_US}


def _class_cost(text: str) -> int:
    """Of a class in brackets: the sum of what it lists."""
    cost = LETTERS_US * len(re.findall(r"\\[wWpP]", text))
    cost += DIGITS_US * len(re.findall(r"\\[dDsS]", text))
    return cost + (ANY_US if text.startswith("[^") or not text.isascii() else ONE_US)
