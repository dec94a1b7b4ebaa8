"""What a function over a window needs where single samples are gone and rollups stand in for them.

A rollup tells of each bucket of time how many samples there were, their sum, least, greatest, first
and last, and how much a counter grew. A store gives these as if they were samples.
"""

from dataclasses import replace

from engine.promql.nodes import Binary, Call, Node, RangeSelector, rebuilt

LASTS = "lasts"

COLUMNS = {
    "rate": "increases",
    "increase": "increases",
    "irate": "increases",
    "sum_over_time": "sums",
    "min_over_time": "mins",
    "ts_of_min_over_time": "mins",
    "max_over_time": "maxs",
    "ts_of_max_over_time": "maxs",
    "first_over_time": "firsts",
}
"""By function what it is given; all others are given each bucket's last sample."""


def over_rollups(node: Node) -> Node:
    """The tree with each range selector asking for what the function around it needs.

    A number of samples is a sum of numbers, and a mean is two sums; where a store has the samples,
    the answer is the same as without.
    """
    match node:
        case Call("count_over_time", (RangeSelector() as selector,)):
            return _sum(selector, "counts")
        case Call("avg_over_time", (RangeSelector() as selector,)):
            return Binary("/", _sum(selector, "sums"), _sum(selector, "counts"))
        case Call(function, arguments):
            column = COLUMNS.get(function, LASTS)
            given = tuple(
                replace(one, column=column) if isinstance(one, RangeSelector) else over_rollups(one)
                for one in arguments
            )
            return replace(node, arguments=given)
        case _:
            return rebuilt(node, over_rollups)


def _sum(selector: RangeSelector, column: str) -> Call:
    return Call("sum_over_time", (replace(selector, column=column),))
