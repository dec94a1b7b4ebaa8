"""info(): labels of info series, such as `target_info`, added to the series of the same target.

Prometheus 3, promql/info.go. Which info series counts may change from step to step; its newest
sample decides.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from engine.promql.blocks import NAME, Booleans, Columns, Indexes, Labels
from engine.promql.errors import QueryError
from engine.promql.formatting import format_labels
from engine.promql.matchers import Matcher, MatchOp, matches
from engine.promql.tables import Table, empty_table, relabelled, united

TARGET_INFO = Matcher(NAME, MatchOp.EQUAL, "target_info")
ANY_INFO = Matcher(NAME, MatchOp.REGEX, ".+_info")

IDENTIFYING = ("instance", "job")
"""Labels that a series and its info series share."""

Target = tuple[tuple[str, str], ...]


def info_matchers(asked: Sequence[Matcher]) -> tuple[Matcher, ...]:
    """What selects the info series: the matchers of info()'s second argument, and the names that
    count where they name none."""
    names = [one for one in asked if one.name == NAME]
    if any(one.op in (MatchOp.EQUAL, MatchOp.REGEX) for one in names):
        return tuple(asked)
    return (ANY_INFO if names else TARGET_INFO, *asked)


Winners = dict[Target, Indexes]
"""Of info series of one name: the column that counts for a target at each step; -1: none."""


def enriched(base: Table, info: Table, matchers: Sequence[Matcher]) -> Table:
    """The series of `base` with the labels of their info series.

    info: the instants of the info series' newest samples. matchers: as of `info_matchers`.
    Raises QueryError where info series contradict each other.
    """
    names = [one for one in matchers if one.name == NAME]
    data = [one for one in matchers if one.name != NAME]
    plain = [matches(names, {NAME: one.get(NAME, "")}) for one in base.columns]
    others = [one for one, same in zip(base.columns, plain, strict=True) if not same]
    kinds = _kinds(info, others)
    wanted = frozenset(one.name for one in data)
    needed = any(not one.accepts("") for one in data)
    labels: list[Labels] = []
    places: list[int] = []
    present = []
    for place, one in enumerate(base.columns):
        here = base.present[:, place]
        if plain[place]:
            found: Iterator[tuple[Labels | None, Booleans]] = iter([(one, here)])
        else:
            found = _variants(one, here, kinds, info.columns, wanted)
        for result, there in found:
            if result is None and needed:
                continue
            labels.append(one if result is None else result)
            places.append(place)
            present.append(there)
    if not labels:
        return empty_table(len(base.values))
    return united(Table(Columns(labels), base.values[:, places], np.stack(present, axis=1)))


def _target(labels: Labels) -> Target:
    return tuple((name, labels[name]) for name in IDENTIFYING if labels.get(name))


def _kinds(info: Table, base: Sequence[Labels]) -> list[Winners]:
    """The info series that could belong to any of the base series, by name and target."""
    known = {name: {one[name] for one in base if one.get(name)} for name in IDENTIFYING}
    asked = {name: values for name, values in known.items() if values}
    members: dict[str, dict[Target, list[int]]] = {}
    for place, one in enumerate(info.columns):
        if asked and all(one.get(name, "") in values for name, values in asked.items()):
            of_name = members.setdefault(one.get(NAME, ""), {})
            of_name.setdefault(_target(one), []).append(place)
    return [
        {target: _newest(info, places) for target, places in of_name.items()}
        for of_name in members.values()
    ]


def _newest(info: Table, places: list[int]) -> Indexes:
    """Which of these info series has the newest sample at each step; -1: none has any."""
    at = np.where(info.present[:, places], info.values[:, places], -np.inf)
    best = at.max(axis=1)
    doubled = ((at == best[:, None]) & (best > -np.inf)[:, None]).sum(axis=1) > 1
    if doubled.any():
        step = int(doubled.argmax())
        same = [places[one] for one in np.flatnonzero(at[step] == best[step])[:2]]
        shown = ", ".join(format_labels(info.columns[one]) for one in same)
        raise QueryError(f"found duplicate series for info metric: {shown}")
    return np.where(best > -np.inf, np.array(places)[at.argmax(axis=1)], -1)


def _variants(
    labels: Labels,
    here: Booleans,
    kinds: Sequence[Winners],
    columns: Columns,
    wanted: frozenset[str],
) -> Iterator[tuple[Labels | None, Booleans]]:
    """What becomes of a series' labels, and at which steps; None: no info series was found."""
    target = _target(labels)
    winners = [kind[target] for kind in kinds if target in kind]
    if not winners:
        yield None, here
        return
    chosen = np.stack(winners, axis=1)
    for choice in np.unique(chosen[here], axis=0):
        there = here & (chosen == choice).all(axis=1)
        found = [columns[place] for place in choice if place >= 0]
        yield (_with(labels, found, wanted) if found else None), there


def _with(labels: Labels, found: Sequence[Labels], wanted: frozenset[str]) -> Labels:
    """The labels with those of info series, of which none may contradict another."""
    added: dict[str, str] = {}
    for one in found:
        for name, value in one.items():
            if name == NAME or (wanted and name not in wanted):
                continue
            if added.get(name, value) != value:
                raise QueryError(f"conflicting label: {name}")
            if name not in labels:
                added[name] = value
    return relabelled(labels, {**labels, **added})
