"""Where in an expression a complaint belongs that comes without a place."""

import re

_PLACED = re.compile(r"\d+:\d+: ")
_NAMED = re.compile(r"""(?:function with name|in call to(?: function)?|function) ['"]?(\w+)""")


def placed(text: str, complaint: str) -> str:
    """`line:column: parse error: complaint`: at the function that it names, or at the beginning,
    as Prometheus has it of what is wrong as a whole."""
    if _PLACED.match(complaint):
        return complaint
    named = _NAMED.search(complaint)
    found = re.search(rf"\b{named[1]}\s*\(", text) if named else None
    place = found.start() if found else 0
    line = text.count("\n", 0, place) + 1
    column = place - text.rfind("\n", 0, place)
    return f"{line}:{column}: parse error: {complaint}"
