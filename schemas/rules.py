"""Rule files: Prometheus' format, alerting rules, and our own key `no_data`.

What the format has besides and this version can't do is refused by name: a rule that is silently
weaker than it reads is worse than none.
Format: https://prometheus.io/docs/prometheus/latest/configuration/alerting_rules/
"""

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from schemas.durations import Duration

_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*\Z")

NOT_YET = {
    "record": "recording rules are not supported yet",
    "levels": "several severities in one rule are not supported yet; write a rule for each",
    "occurrences": "`occurrences` is not supported yet; use `for`",
    "flapping": "flapping detection is not supported yet",
    "limit": "limits of groups are not supported yet",
    "query_offset": "`query_offset` is not needed: rules are evaluated on arrival, in event time",
}
"""Keys that a rule file may hold elsewhere, and why this version refuses them."""


def _refuse(data: Any) -> Any:
    if isinstance(data, Mapping):
        for key, reason in NOT_YET.items():
            if key in data:
                raise PydanticCustomError("refused", "{key}: {why}", {"key": key, "why": reason})
    return data


def _label_name(name: str) -> str:
    if not _LABEL.match(name) or name == "__name__":
        raise ValueError("expected a label name: letters, digits and _, no digit first")
    return name


LabelName = Annotated[str, AfterValidator(_label_name)]


class Rule(BaseModel):
    """One alerting rule: an expression, or a span without samples (`no_data`)."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, coerce_numbers_to_str=True
    )

    alert: str = Field(min_length=1)
    expr: str | None = None
    for_: Duration = Field(timedelta(0), alias="for")
    keep_firing_for: Duration = timedelta(0)
    no_data: Duration | None = None
    """Fires for a source from which no sample has come for this long, or for three of its intervals
    where that is longer. Our own key; such a rule has no `expr`, `for` or `keep_firing_for`."""
    labels: dict[LabelName, str] = {}
    annotations: dict[LabelName, str] = {}

    _known = model_validator(mode="before")(_refuse)

    @model_validator(mode="after")
    def _one_condition(self) -> Self:
        if self.no_data is None:
            if not self.expr or not self.expr.strip():
                raise PydanticCustomError("refused", "expr: missing; it is required")
            return self
        if self.expr is not None or self.for_ or self.keep_firing_for:
            raise PydanticCustomError(
                "refused", "no_data: a rule with it has no expr, for or keep_firing_for"
            )
        if not self.no_data:
            raise PydanticCustomError("refused", "no_data: expected a span above 0s")
        return self


class RuleGroup(BaseModel):
    """Rules under one name. `interval` is read and has no effect on rules evaluated on arrival."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    interval: Duration | None = None
    rules: tuple[Rule, ...] = ()

    _known = model_validator(mode="before")(_refuse)


class RuleFile(BaseModel):
    """A whole rule file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    groups: tuple[RuleGroup, ...] = ()

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        seen: set[str] = set()
        for group in self.groups:
            if group.name in seen:
                raise PydanticCustomError(
                    "refused", "groups: {name} stands twice", {"name": repr(group.name)}
                )
            seen.add(group.name)
        return self
