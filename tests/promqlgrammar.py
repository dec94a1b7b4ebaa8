"""Random expressions over the metrics `gauge`, `counter`, `other` (host, disk), `cpus` (host) and
`h_bucket` (host, le), from what Prometheus 2.42 knows already.

Chosen so that rounding decides nothing: no selection, counting or comparison of what was computed
in several steps, nor a function of it that makes errors greater; no choice among equal values; no
window with a sample on its edge, where Prometheus 2 (closed) and 3 (open) differ, if samples stand
at multiples of 10 s and the question does not.
"""

import re
from collections.abc import Callable
from random import Random

NAMES = ["gauge", "counter", "other", "cpus"]
GROUPINGS = ["", " by (host)", " by (disk, host)", " without (disk)", " by ()"]
MATCHINGS = ["", " on (host)", " on (host, disk)", " ignoring (disk)"]
RANGES = ["35s", "65s", "245s"]
OVER_TIME = [
    *(f"{op}_over_time" for op in ("avg", "min", "max", "sum", "count", "last", "present")),
    *("stddev_over_time", "stdvar_over_time", "delta", "idelta", "deriv"),
]
COUNTING = ["changes", "resets"]
"""What counts samples that differ: of computed ones the last bit would decide."""
EVEN = ["abs", "-", "rad", "timestamp", "sort", "sort_desc"]
"""Functions of each value that make a rounding error no greater."""
UNEVEN = [
    *("ceil", "floor", "round", "sgn", "exp", "ln", "log2", "log10", "sqrt", "deg"),
    *("sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh", "acosh"),
    "atanh",
]
DATES = [
    *("minute", "hour", "month", "year", "day_of_week", "day_of_month", "day_of_year"),
    "days_in_month",
]


def expression(rng: Random, start_s: int = 0) -> str:
    """A vector expression over samples that begin at `start_s`."""
    made = vector(rng, 0)
    return re.sub(r"@ ([0-9]+)", lambda found: f"@ {start_s + int(found[1])}", made)


def vector(rng: Random, depth: int) -> str:
    """A vector expression at this depth of nesting."""
    if depth > 3:
        return selector(rng)
    make: Callable[[Random, int], str] = rng.choices(
        [
            lambda rng, depth: selector(rng),
            windowed,
            aggregated,
            selected,
            with_number,
            of_two,
            joined,
            of_each,
            relabelled,
            of_nothing,
            histogram,
        ],
        [4, 5, 4, 2, 3, 5, 2, 4, 1, 1, 1],
    )[0]
    return make(rng, depth)


def selector(rng: Random) -> str:
    """An instant selector."""
    return f"{rng.choice(NAMES)}{matchers(rng)}{shift(rng)}"


def matchers(rng: Random) -> str:
    choices = ["", '{host="a"}', '{disk=~"1|2"}', '{disk!~"[23]"}', '{host!="b",disk=~".+"}']
    return rng.choice([*choices, '{disk=""}'])


def shift(rng: Random) -> str:
    """An offset, `@`, both, or most often neither."""
    return rng.choice(
        [*[""] * 9, " offset 1m", " offset -20s", " @ 123", " @ end()", " @ 203 offset 30s"]
    )


def windowed(rng: Random, depth: int) -> str:
    """A function over a range selector or a subquery."""
    counter = rng.random() < 0.3
    name = "counter" if counter else rng.choice(NAMES)
    window = f"{name}{matchers(rng)}[{rng.choice(RANGES)}]{shift(rng)}"
    if counter:
        return f"{rng.choice(['rate', 'increase', 'irate'])}({window})"
    counting = rng.random() < 0.12
    if rng.random() < 0.4:
        inner = selector(rng) if counting else vector(rng, depth + 2)
        window = f"({inner})[{rng.choice(['65s:10s', '185s:20s'])}]{shift(rng)}"
    if counting:
        return f"{rng.choice(COUNTING)}({window})"
    roll = rng.random()
    if roll < 0.1:
        return f"quantile_over_time({rng.choice(['0.5', '0.9', '-1', '2'])}, {window})"
    if roll < 0.15 and "@" not in window:  # which over time moves on with the steps
        return f"predict_linear({window}, 60)"
    if roll < 0.2:
        return f"holt_winters({window}, 0.3, 0.6)"
    if roll < 0.25:
        return f"absent_over_time({window})"
    return f"{rng.choice(OVER_TIME)}({window})"


def aggregated(rng: Random, depth: int) -> str:
    if rng.random() < 0.2:  # of one NaN, Prometheus 2 gives 0
        op = rng.choice(["stddev", "stdvar"])
        return f"{op}{rng.choice(GROUPINGS)} ({selector(rng)})"
    op = rng.choice(["sum", "avg", "min", "max", "count", "group", "quantile"])
    parameter = f"{rng.choice(['0.25', '0.5', '1', '3'])}, " if op == "quantile" else ""
    return f"{op}{rng.choice(GROUPINGS)} ({parameter}{vector(rng, depth + 1)})"


def selected(rng: Random, depth: int) -> str:
    """topk, bottomk or count_values, of samples as they are."""
    op = rng.choice(["topk{} (2, {})", "bottomk{} (3, {})", 'count_values{} ("value", {})'])
    return op.format(rng.choice(GROUPINGS), f"gauge{matchers(rng)}{shift(rng)}")


def with_number(rng: Random, depth: int) -> str:
    if rng.random() < 0.1:
        return f"{selector(rng)} ^ {rng.choice(['2', '0', '-1', '0.5'])}"
    op = rng.choice(["+", "-", "*", "/", "%", ">", "<", "==", "!=", ">=", "<= bool"])
    operands = [
        f"({selector(rng) if op == '%' else vector(rng, depth + 1)})",
        rng.choice(["2", "0", "-1.5", "1e3", "NaN", "time()", "pi()", "scalar(cpus)"]),
    ]
    rng.shuffle(operands)
    return f"{operands[0]} {op} {operands[1]}"


def of_two(rng: Random, depth: int) -> str:
    op = rng.choice(["+", "-", "*", "/", ">", "< bool", "==", "and", "or", "unless"])
    left, right = vector(rng, depth + 1), vector(rng, depth + 1)
    return f"({left}) {op}{rng.choice(MATCHINGS)} ({right})"


def joined(rng: Random, depth: int) -> str:
    """Many to one, or one to many."""
    include = rng.choice(["", " ()", " (kind)", " (disk)"])
    many, one = selector(rng), rng.choice(["cpus", "sum by (host) (gauge)", "max(other)"])
    op, on = rng.choice(["*", "+", "> bool", "<"]), rng.choice(["on (host)", "ignoring (disk)"])
    if rng.random() < 0.5:
        return f"({many}) {op} {on} group_left{include} ({one})"
    return f"({one}) {op} {on} group_right{include} ({many})"


def of_each(rng: Random, depth: int) -> str:
    """A function of each value."""
    inner, roll = vector(rng, depth + 1), rng.random()
    if roll < 0.15:
        return f"vector(scalar({inner}))"
    if roll < 0.3:
        return rng.choice(
            [f"clamp({inner}, -1, 1)", f"clamp_min({inner}, 0)", f"round({selector(rng)}, 0.5)"]
        )
    if roll < 0.4:
        return f"{rng.choice(DATES)}({selector(rng)} * 86401.5)"  # what NaN gives hangs on the CPU
    if roll < 0.7:
        return f"{rng.choice(UNEVEN)}({selector(rng)})"
    return f"{rng.choice(EVEN)}({inner})"


def relabelled(rng: Random, depth: int) -> str:
    inner = vector(rng, depth + 1)
    if rng.random() < 0.4:
        return f'label_join({inner}, "both", "-", "host", "disk")'
    target, template = rng.choice(["kind", "disk", "host"]), rng.choice(["$1", "x$2y", "", "${1}z"])
    source, pattern = rng.choice(["host", "disk", "none"]), rng.choice(["(a|b)", "(.)(.*)", "()"])
    return f'label_replace({inner}, "{target}", "{template}", "{source}", "{pattern}")'


def of_nothing(rng: Random, depth: int) -> str:
    """What tells that something is missing, or needs no series at all."""
    return rng.choice(
        [
            f"absent({selector(rng)})",
            f"absent({vector(rng, depth + 1)})",
            'absent(nothing{host="a",disk=~"1"})',
            f"{rng.choice(DATES)}()",
            "vector(time())",
        ]
    )


def histogram(rng: Random, depth: int) -> str:
    ratio = rng.choice(["0.5", "0.9", "0.99", "0", "1", "-1"])
    buckets = rng.choice(["h_bucket", "rate(h_bucket[125s])", "sum by (le) (rate(h_bucket[65s]))"])
    return f"histogram_quantile({ratio}, {buckets})"


def wrong(rng: Random, start_s: int = 0) -> str:
    """What has no answer, most often: types that don't fit, broken syntax, ambiguous matches."""
    inner, other, one = vector(rng, 2), vector(rng, 3), selector(rng)
    name = rng.choice(NAMES)
    made = rng.choice(
        [
            *(f"rate({one})", f"sum({inner}[5m])", f"abs({name}[5m])", f"({inner})[5m]"),
            *(f"rate({name}[5m:10s][5m])", f"{name}[5m][5m]", f"sum_over_time(({inner})[5m:0s])"),
            *(
                f"{one} and 1",
                f"1 unless {one}",
                "1 > 2",
                "1 or 2",
                f"{inner} + 'text'",
                "'a' > 'b'",
            ),
            *(
                f"({inner}",
                f"{inner})",
                f"{inner} +",
                f"* {inner}",
                f"{inner} {other}",
                f"{inner},",
            ),
            *(f"{name}{{host}}", f"{name}{{host='a'", f'{name}{{host=~"("}}', f"{name}{{host=a}}"),
            *("{}", '{host=""}', '{host=~".*"}', f'{name}{{__name__="{name}"}}', "", "#", "()"),
            *(f"nothing({inner})", f"Abs({inner})", "abs()", f"abs({inner}, {other})", "time(1)"),
            *(f"clamp({inner}, 1)", f"clamp({inner}, {other}, 1)", f"scalar(1) + {inner}"),
            *(f"topk({inner}, {other})", f"topk({inner})", f"sum(2, {inner})", f"topk('a', {one})"),
            *(f"quantile({inner})", f"count_values(1, {one})", f"sum by host ({one})"),
            *(f"count_values('a b', {one})", f"sum by (host ({one}))"),
            *(f"({inner}) offset 5m", f"{one} offset", f"{name} @", f"{name} @ {other}"),
            *(
                f"{name}[]",
                f"{name}[5]5m",
                f"{name}[5x]",
                f"{name}[-5m]",
                f"{name}[0s]",
                f"{name}[m]",
            ),
            *("gauge * on (host) other", "gauge * on (job) group_left counter", "gauge + cpus"),
            *("gauge * on (host) group_left (disk) other", "cpus * on (host) other"),
            *(
                f"{inner} == on (host) group_left bool {other}",
                f"{one} and on (host) group_left {one}",
            ),
            *(f"{one} + bool {one}", f"{one} > on (host) 1", f"({one}) > bool on (host) ({one})"),
            *(f"{inner} ^^ 2", f"{inner} === 2", f"{one} atan2 bool 2", f"{one} =~ 2", f"!{one}"),
            *(f'label_replace({one}, "a b", "", "host", "")', f'label_replace({one}, "a")'),
            *(f'label_replace({one}, "a", "", "host", "(")', f'label_join({one}, "a b", "-")'),
            *(f'label_replace({one}, "disk", "", "", "")', f'label_join({one}, "a", 1, "host")'),
            *(f"holt_winters({name}[65s], 2, 0.5)", f"holt_winters({name}[65s], 0.5, -1)"),
            *(f"topk(NaN, {one})", f"topk(1e300, {one})", f"bottomk(-Inf, {one})"),
            *(f"absent({name}[5m])", f"vector({one})", f"predict_linear({name}[5m], {one})"),
            *("'text'", f"{name}[5m]", f"{name}[5m:1m]", "1e", "0x", "1.2.3", "08", "1_000"),
            *(f"sum({one}) by (host) without (disk)", f"by (host) sum({one})", f"on (host) {one}"),
            *("offset", "bool", "group_left", "by", f"{name} bool", "@ 5", "5 @ 5"),
        ]
    )
    return re.sub(r"@ ([0-9]+)", lambda found: f"@ {start_s + int(found[1])}", made)
