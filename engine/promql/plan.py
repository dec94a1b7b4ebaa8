"""A query: an expression, ready to say what it reads and to be answered from what was read."""

from dataclasses import dataclass, replace
from datetime import timedelta

import numpy as np

from engine.promql.blocks import cell_bits, distinct_blocks
from engine.promql.durations import Given
from engine.promql.errors import QueryError, Unanswered
from engine.promql.evaluation import Span, evaluate, samples_of, window_ends
from engine.promql.limits import DEFAULT_LIMITS, Limits
from engine.promql.nodes import (
    Kind,
    Node,
    RangeSelector,
    Subquery,
    rebuilt,
)
from engine.promql.parsing import kind, parse_tree
from engine.promql.reading import Blocks, Select, bounds_of, selects_of
from engine.promql.results import Matrix, Result, Scalar, matrix_of, vector_of
from engine.promql.rollups import over_rollups
from engine.promql.tables import Table, join_tables
from engine.promql.windows import SECOND_US
from schemas.values import ABSENT_BITS, STALE_BITS

DEFAULT_LOOKBACK = timedelta(minutes=5)
"""How old a series' newest sample may be to count as its value; Prometheus' default."""

_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Query:
    """A parsed expression. Pure: it reads no clock and no store.

    The caller reads what `selects` names, from any store, and passes it as a mapping
    {select: blocks}; a block may hold more instants than asked, but only matching series.
    """

    text: str
    tree: Node
    kind: Kind
    lookback_us: int

    def selects(self, start_us: int, end_us: int) -> list[Select]:
        """What must be read for steps from start to end (equal for an instant query)."""
        found = selects_of(self.tree, bounds_of(start_us, end_us, self.lookback_us))
        return list(dict.fromkeys(found))

    def over_rollups(self, *, on_grid: bool) -> "Query":
        """The same query, ready for a store that has rollups in place of some of the samples.

        on_grid: its steps are multiples of the rollups' buckets.
        """
        return replace(self, tree=over_rollups(self.tree, on_grid=on_grid))

    def instant(self, at_us: int, blocks: Blocks, limits: Limits = DEFAULT_LIMITS) -> Result:
        """The answer at one instant. Raises Unanswered where the data forbids it."""
        return Moment(at_us, blocks, self.lookback_us, limits).answer(self)

    def range(
        self,
        start_us: int,
        end_us: int,
        step_us: int,
        blocks: Blocks,
        limits: Limits = DEFAULT_LIMITS,
    ) -> Matrix:
        """The answer at start, start + step, … up to end. Raises QueryError: Unanswered, or of what
        is asked."""
        if step_us <= 0 or end_us < start_us:
            raise QueryError("a range query needs a step above zero and an end after its start")
        limits.check_steps((end_us - start_us) // step_us + 1)
        if self.kind in ("matrix", "string"):
            raise QueryError(
                f"invalid expression type {self.kind!r} for range query,"
                " must be Scalar or instant Vector"
            )
        steps = np.arange(start_us, end_us + 1, step_us, dtype=np.int64)
        bounds = bounds_of(start_us, end_us, self.lookback_us, step_us)
        try:
            with np.errstate(all="ignore"):
                value = evaluate(self.tree, Span(steps, bounds, blocks, None, limits))
                if isinstance(value, Table):
                    return matrix_of(value.finished(), steps)
        except QueryError as error:
            raise Unanswered(str(error)) from error
        assert isinstance(value, np.ndarray)
        return Matrix(({},), steps, value[:, None], np.ones((len(steps), 1), dtype=np.bool_))


def parse(
    text: str, *, lookback: timedelta = DEFAULT_LOOKBACK, step_us: int = 0, range_us: int = 0
) -> Query:
    """The query of a PromQL expression. Raises QueryError: wrong, or not supported yet.

    step_us, range_us: the step of a range query and its end less its start, of which durations in
    the expression may be made.
    """
    tree = parse_tree(text, Given(step_us / SECOND_US, range_us / SECOND_US))
    return Query(text, tree, kind(tree), lookback // _MICROSECOND)


class Moment:
    """One instant at which several queries of one lookback are answered from the same blocks.

    What queries share is worked out once, if they were made by one `Parser`.
    """

    __slots__ = ("_span",)

    def __init__(
        self, at_us: int, blocks: Blocks, lookback_us: int, limits: Limits = DEFAULT_LIMITS
    ) -> None:
        steps = np.array([at_us], dtype=np.int64)
        self._span = Span(steps, bounds_of(at_us, at_us, lookback_us), blocks, {}, limits)

    def answer(self, query: Query) -> Result:
        """The query's answer. Raises Unanswered where the data forbids it."""
        span = self._span
        try:
            with np.errstate(all="ignore"):
                if isinstance(query.tree, RangeSelector | Subquery):
                    return _samples(query.tree, span)
                value = evaluate(query.tree, span)
                if isinstance(value, Table):
                    return vector_of(value.finished(), span.bounds.start_us)
        except QueryError as error:
            raise Unanswered(str(error)) from error
        return value if isinstance(value, str) else Scalar(span.bounds.start_us, float(value[0]))


class Parser:
    """Parses queries that are answered together: equal parts of their trees are the same node."""

    def __init__(self, *, lookback: timedelta = DEFAULT_LOOKBACK) -> None:
        self._lookback = lookback
        self._nodes: dict[Node, Node] = {}

    def parse(self, text: str) -> Query:
        """The query of a PromQL expression. Raises QueryError."""
        query = parse(text, lookback=self._lookback)
        return replace(query, tree=self._shared(query.tree))

    def _shared(self, node: Node) -> Node:
        node = rebuilt(node, self._shared)
        return self._nodes.setdefault(node, node)


def _samples(node: RangeSelector | Subquery, span: Span) -> Matrix:
    """The samples of a range selector or subquery as they are, stale markers left out."""
    if isinstance(node, RangeSelector) and node.selector.edges is not None:
        raise QueryError(f"{node.selector.edges} modifier can only be used within a function")
    blocks = distinct_blocks(samples_of(node, span))
    end = int(window_ends(node, span)[0])
    every = [b.at[(b.at > end - node.range_us) & (b.at <= end)] for b in blocks]
    at = np.unique(np.concatenate(every)) if every else np.empty(0, dtype=np.int64)
    span.limits.check_cells(sum(len(block.labels) for block in blocks), len(at))
    tables = []
    for block, instants in zip(blocks, every, strict=True):
        rows = np.searchsorted(block.at, instants)
        values = np.full((len(at), len(block.labels)), np.nan)
        present = np.zeros(values.shape, dtype=np.bool_)
        bits = cell_bits(block.values[rows])
        place = np.searchsorted(at, instants)
        values[place] = block.values[rows]
        present[place] = (bits != ABSENT_BITS) & (bits != STALE_BITS)
        tables.append(Table(block.columns, values, present))
    return matrix_of(join_tables(tables, len(at)).finished(), at)
