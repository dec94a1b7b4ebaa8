"""What selectors select and how it is read, remembered until other layouts are registered.

A memory that may be out of date costs nothing to check: the statement that reads the samples also
tells what is registered (schemas/migrations/0005_lookup.sql).
"""

from collections.abc import Sequence
from typing import NamedTuple

from engine.promql.matchers import Matcher
from services.database import Connection
from services.recent import Recent
from services.sample_reading import Wanted, arguments_of, wanted_of
from services.series_lookup import MAX_CACHED_SERIES, Catalogue, Selected, aside

Matchers = tuple[Matcher, ...]


class Selection(NamedTuple):
    """What a selector selects. arguments: those of SAMPLES after the range.

    registered: what was registered before it was found, or None. While it is, nothing else is
    selected.
    """

    wanted: Sequence[Wanted]
    arguments: Sequence[list[int]]
    series: int
    registered: bytes | None

    def same_as(self, other: "Selection") -> bool:
        """Whether what was read of one serves for the other."""
        return [_identity(one.selected) for one in self.wanted] == [
            _identity(one.selected) for one in other.wanted
        ]


def _identity(one: Selected) -> tuple[object, ...]:
    return one.layout_id, one.columns, one.positions.tobytes()


class Selections:
    """What one process remembers of what was selected."""

    def __init__(self) -> None:
        self.registered: bytes | None = None
        """What was registered when it was last seen."""
        self._known: Recent[Matchers, Selection] = Recent(MAX_CACHED_SERIES)

    def known(self, matchers: Matchers, max_series: int) -> Selection | None:
        """What was selected, if there is no sign that it changed: SAMPLES tells for certain."""
        found = self._known.get(matchers, _weight)
        if found is None or found.registered != self.registered or found.series > max_series:
            return None
        return found

    async def select(
        self, connection: Connection, catalogue: Catalogue, matchers: Matchers, max_series: int
    ) -> Selection:
        """What is selected now. Raises QueryError past `max_series`."""
        registered = self.registered  # seen before what follows is read, so never too new for it
        selected = await catalogue.select(connection, matchers, max_series)

        def prepared() -> Selection:
            wanted = [wanted_of(one) for one in selected]
            series = sum(len(one.columns) for one in selected)
            return Selection(wanted, arguments_of(wanted), series, registered)

        found = await aside(len(selected), prepared)
        if registered is not None and selected:
            self._known.put(matchers, found, _weight(found))
        return found


def _weight(selection: Selection) -> int:
    return 1 + selection.series
