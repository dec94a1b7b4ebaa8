"""SQL for what a selector may select (schemas/migrations/0005_lookup.sql)."""

from collections.abc import Mapping, Sequence
from typing import Any

from engine.promql.matchers import Matcher


class Condition:
    """SQL on layout_shapes that holds for all that can be selected, and maybe for more."""

    def __init__(self) -> None:
        self.arguments: list[Any] = []
        self._parts: list[str] = []

    @property
    def narrow(self) -> bool:
        """Whether an index answers it."""
        return bool(self._parts)

    def metric_in(self, names: Sequence[str]) -> None:
        self._parts.append(f"metric = any({self._argument(names)}::text[])")

    def of_source(self, labels: Mapping[str, str]) -> None:
        if labels:
            self._parts.append(
                f"layout_id in (select id from layouts where source @> {self._argument(labels)})"
            )

    def of_either(self, matchers: Sequence[Matcher]) -> None:
        """Labels that a series has of its own or by its source."""
        for one in matchers:
            labels = {one.name: one.value}
            own, source = self._argument([labels]), self._argument(labels)
            self._parts.append(
                f"(shape_id in (select id from shapes where labels @> {own})"
                f" or layout_id in (select id from layouts where source @> {source}))"
            )

    def layout_in(self, ids: Sequence[int]) -> None:
        self._parts.append(f"layout_id = any({self._argument(ids)}::integer[])")

    def statement(self, most: int) -> str:
        """At most so many rows."""
        return f"""select layout_id, shape_id, first, length, positions from layout_shapes
            where {" and ".join(self._parts)} order by layout_id, first
            limit {most}"""

    def _argument(self, value: Any) -> str:
        self.arguments.append(value)
        return f"${len(self.arguments)}"
