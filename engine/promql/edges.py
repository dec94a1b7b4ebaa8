"""The modifiers `anchored` and `smoothed`: what stands beyond a window's edges counts too.

Anchored, a window begins with the newest sample at or before its start; smoothed, its edges have
values by linear interpolation. Beyond an edge the lookback is looked at. The grammar knows neither:
a selector carries its modifier past it as a matcher of a label that no series has. So do the labels
of info(), of which the grammar does not know that they alone may match anything.

https://prometheus.io/docs/prometheus/latest/feature_flags/, promql-extended-range-selectors
"""

import re
from collections.abc import Callable, Sequence

import numpy as np

from engine.promql import rates
from engine.promql.blocks import Block, Booleans, Floats, Indexes, Instants, at_rows
from engine.promql.complaints import WALKED_CHARS, Token, tokens
from engine.promql.errors import QueryError
from engine.promql.limits import Limits
from engine.promql.matchers import Matcher, MatchOp
from engine.promql.tables import Table
from engine.promql.windows import SECOND_US, Windows, over_windows

ANCHORED, SMOOTHED = "anchored", "smoothed"
NEITHER = "neither"
CARRIER = "__edges__"
"""The label's name."""

_MARKED = re.compile(r"\b(?:anchored|smoothed|info)\b", re.IGNORECASE)
"""Where there may be anything to mark."""

_NO_NAMES = frozenset(
    [
        *("and", "or", "unless", "atan2", "bool", "offset", "by", "without", "on", "ignoring"),
        *("group_left", "group_right", "fill", "fill_left", "fill_right"),
    ]
)


def marked(text: str) -> str:
    """The expression with each modifier as a matcher of its selector. One that modifies no selector
    stays, and the grammar complains of it; so do those of a very long one."""
    if len(text) > WALKED_CHARS or not _MARKED.search(text):
        return text
    every = list(tokens(text))
    pieces, done = [], 0
    for matcher_at, matcher, word in _modifiers(every):
        pieces += [text[done:matcher_at], matcher]
        done = matcher_at
        if word is not None:
            pieces.append(text[done : word.place])
            done = word.place + len(word.text)
    return "".join([*pieces, text[done:]])


def _modifiers(every: Sequence[Token]) -> list[tuple[int, str, Token | None]]:
    """(where its matcher goes, the matcher, the word) of each modifier, and of braces that stand as
    an argument after others."""
    found: list[tuple[int, str, Token | None]] = []
    place = 0
    while place < len(every):
        end, matcher_at, form = _selector_end(every, place)
        word = every[end] if end > place else None
        if word is not None and word.text.lower() in (ANCHORED, SMOOTHED):
            found.append((matcher_at, form.format(f'{CARRIER}="{word.text.lower()}"'), word))
        elif word is not None and every[place].text == "{" and every[place - 1].text == ",":
            found.append((matcher_at, form.format(f'{CARRIER}="{NEITHER}"'), None))
        place = max(end, place + 1)
    return found


def _selector_end(every: Sequence[Token], place: int) -> tuple[int, int, str]:
    """The token after a selector that begins here, where a matcher goes into it and in which form;
    the same place where none begins."""
    nothing = place, 0, ""
    first, end = every[place], place
    form = "{{{}}}"
    if first.kind == "word":
        if first.text.lower() in _NO_NAMES or every[place + 1].text == "(":
            return nothing
        matcher_at, end = first.place + len(first.text), place + 1
    elif first.text != "{":
        return nothing
    if every[end].text == "{":
        end += 1
        while every[end].text != "}":
            if every[end].kind == "end" or every[end].text == "{":
                return nothing
            end += 1
        matcher_at = every[end].place
        form = "{}" if every[end - 1].text in ("{", ",") else ",{}"
        end += 1
    while (after := _after_modifier(every, end)) > end:
        end = after
    return end, matcher_at, form


def _after_modifier(every: Sequence[Token], place: int) -> int:
    """The token after a range, an offset or an `@`, of which none stands here: the same place."""
    text = every[place].text.lower()
    if text == "[":
        while every[place].text != "]":
            if every[place].kind == "end" or ":" in every[place].text:
                return place  # a subquery, or nothing
            place += 1
        return place + 1
    if text in ("offset", "@"):
        place += 1
        place += every[place].text in ("+", "-")
        call = every[place].kind == "word" and every[place].text.lower() in ("start", "end")
        return place + 3 if call else place + (every[place].kind == "number")
    return place


def taken(matchers: Sequence[Matcher]) -> tuple[tuple[Matcher, ...], str | None]:
    """The matchers that are matchers, and the modifier that was carried among them."""
    carried = [one.value for one in matchers if one.name == CARRIER and one.op is MatchOp.EQUAL]
    plain = tuple(one for one in matchers if one.name != CARRIER)
    return plain, carried[0] if carried and carried[0] != NEITHER else None


def _sorted_names(functions: Sequence[str]) -> str:
    return ", ".join(sorted(functions))


def over_edges(
    blocks: Sequence[Block],
    ends: Instants,
    range_us: int,
    function: str,
    modifier: str,
    steps: Instants,
    lookback_us: int,
    limits: Limits,
) -> Table:
    """A function over windows with a modifier. Raises QueryError for one that it can't be used
    with."""
    functions = _FUNCTIONS[modifier]
    if function not in functions:
        raise QueryError(
            f"{modifier} modifier can only be used with: {_sorted_names(list(functions))}"
            f" - not with {function}"
        )
    ahead_us = lookback_us if modifier == SMOOTHED else 0

    def widened(windows: Windows) -> tuple[Floats, Booleans]:
        low = windows.at.searchsorted(ends - range_us - lookback_us, side="right")
        high = windows.at.searchsorted(ends + ahead_us, side="right")
        return functions[function](windows._replace(low=low, high=high))

    return over_windows(blocks, ends, range_us, widened, steps, (), limits)


def smoothed(
    blocks: Sequence[Block], instants: Instants, lookback_us: int, steps: Instants, limits: Limits
) -> Table:
    """Each series' value at each instant: between two samples, on the line between them; after the
    last one, the same as it."""

    def interpolated(windows: Windows) -> tuple[Floats, Booleans]:
        low = windows.at.searchsorted(instants - lookback_us, side="right")
        high = windows.at.searchsorted(instants + lookback_us, side="right")
        next_ = np.clip(windows.at.searchsorted(instants, side="left"), low, high)
        exact = (next_ < high) & (windows.at[np.minimum(next_, len(windows.at) - 1)] == instants)
        after = np.maximum(np.minimum(next_, high - 1), 0)
        before = np.where(exact, after, np.maximum(next_ - 1, 0))
        values = _between(windows, before, after, instants, counter=False)
        return values, (high > low) & (exact | (next_ > low))

    return over_windows(blocks, instants, lookback_us, interpolated, steps, (), limits)


def _between(
    windows: Windows, before: Indexes, after: Indexes, at: Instants, *, counter: bool
) -> Floats:
    """The value at an instant, on the line between two samples. A counter that began anew in
    between did so from 0 at the first."""
    start, end = at_rows(windows.values, before), at_rows(windows.values, after)
    if counter:
        start = np.where(end < start, 0.0, start)
    apart = (windows.at[after] - windows.at[before]).astype(np.float64)
    share = np.where(apart > 0, (at - windows.at[before]) / apart, 0.0)
    return np.asarray(start + (end - start) * share[:, None])


def _change(
    windows: Windows, *, smooth: bool, counter: bool, per_second: bool
) -> tuple[Floats, Booleans]:
    """rate, increase and delta from edge to edge.

    Prometheus 3, promql/functions.go, extendedRate.
    """
    at, low, high = windows.at, windows.low, windows.high
    start_us, end_us = windows.ends - windows.range_us, windows.ends
    newest = np.maximum(high - 1, 0)
    first = np.maximum(np.clip(at.searchsorted(start_us, side="right"), low, newest) - 1, low)
    first = np.minimum(first, newest)
    last = newest
    if smooth:
        last = np.clip(at.searchsorted(end_us, side="left"), np.minimum(low, newest), newest)
    some = (high > low) & (at[last] > start_us)
    left, right = at_rows(windows.values, first), at_rows(windows.values, last)
    if smooth:
        some &= at[first] <= end_us
        second = np.minimum(first + 1, len(at) - 1)
        early = (at[first] < start_us)[:, None]
        inside = _between(windows, first, second, start_us, counter=counter)
        left = np.where(early, inside, left)
        late = ((last > low) & (at[last] > end_us))[:, None]
        inside = _between(windows, np.maximum(last - 1, 0), last, end_us, counter=counter)
        right = np.where(late, inside, right)
    change = right - left
    if counter:
        begin = first + (at[first] <= start_us)
        until = last - (at[last] >= end_us)
        change = change + _resets(windows, left, right, begin, until)
    return change / (windows.range_us / SECOND_US) if per_second else change, some


def _resets(
    windows: Windows, left: Floats, right: Floats, begin: Indexes, until: Indexes
) -> Floats:
    """What a counter had reached when it began anew, on its way from `left` through the rows
    `begin` to `until` to `right`."""
    values = windows.values
    fell = np.zeros_like(values)
    fell[1:] = np.where(values[1:] < values[:-1], values[:-1], 0.0)
    sums = np.cumsum(fell, axis=0)
    rows = len(values) - 1
    first, last = np.clip(begin, 0, rows), np.clip(until, 0, rows)
    head, tail = at_rows(values, first), at_rows(values, last)
    passed = np.where(head < left, left, 0.0) + at_rows(sums, last) - at_rows(sums, first)
    passed += np.where(right < tail, tail, 0.0)
    return np.where((begin <= until)[:, None], passed, np.where(right < left, left, 0.0))


def _anchored(
    function: Callable[[Windows], tuple[Floats, Booleans]],
) -> Callable[[Windows], tuple[Floats, Booleans]]:
    """A function of the samples since the newest one at or before the start of each window."""

    def applied(windows: Windows) -> tuple[Floats, Booleans]:
        start_us = windows.ends - windows.range_us
        inside = windows.at.searchsorted(start_us, side="right")
        low = np.maximum(windows.low, inside - 1)
        values, some = function(windows._replace(low=np.minimum(low, windows.high)))
        return values, some & (inside < windows.high)

    return applied


def _changes_of(smooth: bool) -> dict[str, Callable[[Windows], tuple[Floats, Booleans]]]:
    return {
        "rate": lambda windows: _change(windows, smooth=smooth, counter=True, per_second=True),
        "increase": lambda windows: _change(windows, smooth=smooth, counter=True, per_second=False),
        "delta": lambda windows: _change(windows, smooth=smooth, counter=False, per_second=False),
    }


_FUNCTIONS = {
    SMOOTHED: _changes_of(True),
    ANCHORED: _changes_of(False)
    | {"changes": _anchored(rates.changes), "resets": _anchored(rates.resets)},
}
