"""Rules as they are evaluated: files read, expressions parsed, what they need of each source known.

A rule here depends on one instance at a time, so that it can be evaluated on arrival of that
instance's samples. One that needs several instances at once is refused when it is loaded.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, field_validator

from engine.alerting import AlertRule
from engine.promql import Matcher, Parser, Query, QueryError, parse
from engine.promql.functions import READS_TIME
from engine.promql.nodes import (
    Aggregate,
    Binary,
    Call,
    Node,
    RangeSelector,
    Selector,
    Subquery,
    parts,
)
from engine.promql.parsing import kind
from engine.templates import Template, TemplateError, parse_template
from schemas.rules import LabelName, Rule, RuleFile, RuleGroup
from services.documents import DocumentError, parse_yaml, read_document

MAX_WINDOW = timedelta(days=1)
"""Longest look back of a rule: an evaluator keeps all of it in memory."""

BUILTIN = "built-in"
_MICROSECOND = timedelta(microseconds=1)
_OWN_LABELS = ("instance", "job")


def _template(text: str) -> str:
    try:
        parse_template(text)
    except TemplateError as error:
        raise ValueError(str(error)) from error
    return text


TemplateText = Annotated[str, AfterValidator(_template)]


class CheckedRule(Rule):
    """A rule whose expression and templates were read as well."""

    labels: dict[LabelName, TemplateText] = {}
    annotations: dict[LabelName, TemplateText] = {}

    @field_validator("expr")
    @classmethod
    def _evaluable(cls, expr: str | None) -> str | None:
        if expr is not None:
            try:
                reason = why_not_per_instance(parse(expr).tree)
            except QueryError as error:
                raise ValueError(str(error)) from error
            if reason:
                raise ValueError(reason)
        return expr

    @field_validator("labels")
    @classmethod
    def _keeps_identity(cls, labels: dict[str, str]) -> dict[str, str]:
        for name in _OWN_LABELS:
            if name in labels:
                raise ValueError(f"{name} is the source's own label; choose another name")
        return labels


class CheckedGroup(RuleGroup):
    """A group of checked rules."""

    rules: tuple[CheckedRule, ...] = ()


class CheckedFile(RuleFile):
    """A file of checked rules."""

    groups: tuple[CheckedGroup, ...] = ()


def why_not_per_instance(tree: Node) -> str | None:
    """Why a rule of this expression can't be evaluated one instance at a time; None when it can."""
    if kind(tree) != "vector":
        return f"a rule's expression gives a vector, not a {kind(tree)}"
    reasons = [reason for node in _nodes(tree) if (reason := _crossing(node))]
    if reasons:
        return reasons[0]
    if not any(isinstance(node, Selector) for node in _nodes(tree)):
        return "the expression selects no series"
    return None


def _crossing(node: Node) -> str | None:
    """Why this node needs several instances at once, or samples that a rule never has."""
    match node:
        case Aggregate(op, _, without, labels) if ("instance" in labels) == without:
            return (
                f"{op} over several instances is not supported in rules yet; keep the label: "
                f"{op} by (instance) (...)"
            )
        case Binary(_, left, right, _, matching) if kind(left) == kind(right) == "vector":
            if ("instance" in matching.labels) != matching.on:
                return "vectors of several instances are matched; match on (instance) as well"
        case Call("scalar" | "vector" | "absent" | "absent_over_time" as function):
            return f"{function}() loses the instance, which is not supported in rules yet"
        case Selector(edges=str(modifier)):
            return f"{modifier} is not possible in rules evaluated on arrival"
        case Selector(_, offset_us, pinned) | Subquery(_, _, _, offset_us, pinned) if (
            pinned is not None or offset_us < 0 or timedelta(microseconds=offset_us) > MAX_WINDOW
        ):
            if pinned is not None or offset_us < 0:
                return "@ and negative offsets are not possible in rules evaluated on arrival"
            return "an offset of more than 1d is not supported in rules yet"
        case RangeSelector(_, range_us) | Subquery(_, range_us) if (
            timedelta(microseconds=range_us) > MAX_WINDOW
        ):
            return "a range of more than 1d is not supported in rules yet"
    return None


def _nodes(node: Node) -> Iterable[Node]:
    yield node
    for part in parts(node):
        yield from _nodes(part)


@dataclass(frozen=True, slots=True)
class Need:
    """What one selector needs of the past. `newest`: of each series only the newest sample."""

    matchers: tuple[Matcher, ...]
    window_us: int
    newest: bool


@dataclass(frozen=True, slots=True)
class LoadedRule:
    """A rule, ready: either `query` or `no_data_us` is set. `needs` says what samples feed it."""

    alert: AlertRule
    query: Query | None
    no_data_us: int | None
    needs: tuple[Need, ...]
    reads_time: bool
    """Its result can change without new samples, since it reads the clock."""


@dataclass(frozen=True)
class LoadedGroup:
    """A group as it was read, for readers of the api, and from which file."""

    file: str
    group: RuleGroup


@dataclass(frozen=True)
class RuleSet:
    """All rules of an evaluator; a rule's index in `rules` stands for it everywhere else."""

    rules: tuple[LoadedRule, ...]
    groups: tuple[LoadedGroup, ...] = ()

    @cached_property
    def index_of(self) -> dict[str, list[int]]:
        """Indexes by key; rules that differ in labels alone share a key."""
        found: dict[str, list[int]] = {}
        for index, rule in enumerate(self.rules):
            found.setdefault(rule.alert.key, []).append(index)
        return found

    @cached_property
    def no_data(self) -> tuple[int, ...]:
        """Indexes of the rules for sources without samples."""
        return tuple(i for i, rule in enumerate(self.rules) if rule.no_data_us is not None)

    @cached_property
    def reading_time(self) -> frozenset[int]:
        """Indexes of the rules that are evaluated at every message."""
        return frozenset(i for i, rule in enumerate(self.rules) if rule.reads_time)

    @cached_property
    def window_us(self) -> int:
        """How far the rules look back at most."""
        return max((need.window_us for rule in self.rules for need in rule.needs), default=0)


def load_rules(file: Path) -> CheckedFile:
    """The rules of a file. Raises DocumentError with a line per problem."""
    return parse_yaml(read_document(file), str(file), CheckedFile)


def load_builtin_rules() -> CheckedFile:
    """The rules for hosts that come with the program."""
    text = resources.files(__package__).joinpath("builtin_rules.yaml").read_text(encoding="utf-8")
    return parse_yaml(text, BUILTIN, CheckedFile)


def load_rule_set(files: Sequence[Path], *, builtin: bool) -> RuleSet:
    """All rules of an evaluator. Raises DocumentError."""
    read = [(BUILTIN, load_builtin_rules())] if builtin else []
    read += [(str(file), load_rules(file)) for file in files]
    return rule_set([LoadedGroup(name, group) for name, file in read for group in file.groups])


def rule_set(groups: Sequence[LoadedGroup]) -> RuleSet:
    """Groups made ready. Raises DocumentError where two rules would make the same alerts."""
    rules: list[LoadedRule] = []
    parser = Parser()
    seen: dict[tuple[str, frozenset[tuple[str, str]]], str] = {}
    for loaded in groups:
        for rule in loaded.group.rules:
            key = f"{loaded.group.name}/{rule.alert}"
            identity = (key, frozenset(rule.labels.items()))
            if identity in seen:
                raise DocumentError(
                    [
                        f"{loaded.file}: rule {key} with the same labels stands in "
                        f"{seen[identity]} already; give one of them another label or name"
                    ]
                )
            seen[identity] = loaded.file
            rules.append(_loaded(key, rule, parser))
    return RuleSet(tuple(rules), tuple(groups))


def _loaded(key: str, rule: Rule, parser: Parser) -> LoadedRule:
    alert = AlertRule(
        key=key,
        name=rule.alert,
        expr=rule.expr or "",
        hold_us=rule.for_ // _MICROSECOND,
        keep_firing_us=rule.keep_firing_for // _MICROSECOND,
        labels=_templates(rule.labels),
        annotations=_templates(rule.annotations),
    )
    if rule.expr is None:
        assert rule.no_data is not None
        return LoadedRule(alert, None, rule.no_data // _MICROSECOND, (), False)
    query = parser.parse(rule.expr)
    needs = tuple(
        Need(select.matchers, -select.start_us, select.newest and select.end_us == 0)
        for select in query.selects(0, 0)
    )
    reads_time = any(isinstance(n, Call) and n.function in READS_TIME for n in _nodes(query.tree))
    return LoadedRule(alert, query, None, needs, reads_time)


def _templates(texts: dict[str, str]) -> tuple[tuple[str, Template], ...]:
    return tuple((name, parse_template(text)) for name, text in texts.items())
