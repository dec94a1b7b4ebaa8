"""Functions that change labels, or order series by them."""

import re
from collections.abc import Sequence
from typing import Any

from engine.promql.blocks import NAME, Columns, Labels
from engine.promql.captures import Pattern, compiled
from engine.promql.errors import QueryError
from engine.promql.ordering import in_order
from engine.promql.tables import Table, relabelled

MAX_VALUE_CHARS = 65_536
"""Longest label value that a function may make: nested joins double it each time."""

_NAME = re.compile("[a-zA-Z_][a-zA-Z0-9_]*")
_REFERENCE = re.compile(r"\$(?:\$|\{(\w+)\}|(\w+))")


def label_replace(table: Table, target: str, template: str, source: str, pattern: str) -> Table:
    """`target` set to the template where `source` matches the whole pattern; "" removes it."""
    _check_name("label_replace", "destination", target)
    compiled_pattern = compiled(pattern)
    return table.renamed(
        table.columns.remember(
            ("label_replace", target, template, source, pattern),
            lambda: Columns(
                [
                    _replaced(one, target, template, one.get(source, ""), compiled_pattern)
                    for one in table.columns
                ]
            ),
        )
    )


def _replaced(labels: Labels, target: str, template: str, value: str, pattern: Pattern) -> Labels:
    groups = pattern.groups(value)
    if groups is None:
        return labels

    def expanded(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        return "$" if name is None else groups.get(name) or ""

    return _with(labels, target, _REFERENCE.sub(expanded, template))


def label_join(table: Table, target: str, separator: str, *sources: str) -> Table:
    """`target` set to the values of other labels, with a separator between them."""
    _check_name("label_join", "destination", target)
    for source in sources:
        _check_name("label_join", "source", source)
    return table.renamed(
        table.columns.remember(
            ("label_join", target, separator, sources),
            lambda: Columns(
                [
                    _with(one, target, separator.join(one.get(name, "") for name in sources))
                    for one in table.columns
                ]
            ),
        )
    )


def _with(labels: Labels, name: str, value: str) -> Labels:
    if len(value) > MAX_VALUE_CHARS:
        raise QueryError(f"a label value of {len(value)} characters; at most {MAX_VALUE_CHARS}")
    rest = {key: kept for key, kept in labels.items() if key != name}
    changed = rest | {name: value} if value else rest
    return changed if name == NAME else relabelled(labels, changed)


def _check_name(function: str, role: str, name: str) -> None:
    if not is_label(name):
        raise QueryError(f"invalid {role} label name in {function}(): {name}")


def is_label(name: str) -> bool:
    """Whether a label may have this name: Prometheus' classic ones, as in every message."""
    return _NAME.fullmatch(name) is not None


def label_order(columns: Sequence[Labels], names: Sequence[str], *, descending: bool) -> list[int]:
    """Positions of the columns in natural order of these labels, then of all labels."""

    def rank(place: int) -> Any:
        one = columns[place]
        return [_natural(one.get(name, "")) for name in names], sorted(one.items())

    ranks = [rank(column) for column in range(len(columns))]
    return in_order(range(len(columns)), ranks.__getitem__, reverse=descending)


def _natural(value: str) -> list[tuple[bool, int, str]]:
    """A key that orders numbers within texts by their size: "b2" before "b10"."""
    chunks = re.findall(r"\d+|\D+", value)
    return [(not one.isdigit(), int(one) if one.isdigit() else 0, one) for one in chunks]
