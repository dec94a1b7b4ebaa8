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
    **dict.fromkeys(("delta", "idelta", "deriv", "predict_linear", "changes", "resets"), "trends"),
    **dict.fromkeys(("double_exponential_smoothing", "holt_winters"), "trends"),
}
"""By function what it is given; all others are given each bucket's last sample. So are `trends`,
which take at least two."""


EXACT = frozenset(
    f"{name}_over_time" for name in ("sum", "min", "max", "first", "last", "present", "absent")
)
"""Functions of which it makes no difference, on the edges of buckets; a number of samples and their
mean are put in terms of these."""


def over_rollups(node: Node, *, on_grid: bool) -> Node:
    """The tree with each range selector asking for what the function around it needs.

    A number of samples is a sum of numbers, and a mean is two sums; where a store has the samples,
    the answer is the same as without. on_grid: steps are multiples of any bucket, so that windows
    which begin and end with one always do.
    """

    def asking(selector: RangeSelector, column: str, function: str) -> RangeSelector:
        if selector.selector.edges is not None:
            return selector  # which looks beyond its window, at values themselves
        return replace(selector, column=column, exact=on_grid and function in EXACT)

    def summed(selector: RangeSelector, column: str) -> Call:
        return Call("sum_over_time", (asking(selector, column, "sum_over_time"),))

    def changed(node: Node) -> Node:
        match node:
            case Call("count_over_time", (RangeSelector() as selector,)):
                return summed(selector, "counts")
            case Call("avg_over_time", (RangeSelector() as selector,)):
                return Binary("/", summed(selector, "sums"), summed(selector, "counts"))
            case Call(function, arguments):
                column = COLUMNS.get(function, LASTS)
                given = tuple(
                    asking(one, column, function)
                    if isinstance(one, RangeSelector)
                    else changed(one)
                    for one in arguments
                )
                return replace(node, arguments=given)
            case _:
                return rebuilt(node, changed)

    return changed(node)
