"""Which expressions are little work once their samples are there: a few milliseconds at most.

These are computed on the event loop, since the way to a thread and back costs more.
"""

from collections.abc import Sequence

from engine.promql import over_time
from engine.promql.nodes import (
    Aggregate,
    Binary,
    Call,
    Negate,
    Node,
    Number,
    RangeSelector,
    Selector,
    parts,
)
from services.api.costs import Read

MAX_NODES = 10
MAX_SERIES = 200
MAX_CELLS = 10_000
"""Values that are looked at or answered."""


def is_little(tree: Node, steps: int, step_us: int, reads: Sequence[Read]) -> bool:
    """Whether an expression over `steps` steps is, after it read this."""
    series = sum(read.series for read in reads)
    looked_at = sum(
        read.samples * (1 + read.select.window_us // step_us)
        if step_us and not read.select.newest
        else read.samples
        for read in reads
    )
    return (
        series <= MAX_SERIES
        and looked_at + series * steps <= MAX_CELLS
        and steps <= MAX_CELLS
        and _count(tree) <= MAX_NODES
    )


_PLAIN = (Aggregate, Binary, Negate, Number, RangeSelector, Selector)


def _count(node: Node) -> int:
    """Nodes of a tree; more than there may be where one may work on more than it was given."""
    plain = node.function in over_time.FUNCTIONS if isinstance(node, Call) else False
    if not plain and not isinstance(node, _PLAIN):
        return MAX_NODES + 1
    return 1 + sum(map(_count, parts(node)))
