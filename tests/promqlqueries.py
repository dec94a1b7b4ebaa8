"""Every operator, aggregation and function of PromQL once with each of its ways to be written: a
list in the spirit of https://github.com/prometheus/compliance, over the samples of promqljudge.py.
"""

from collections.abc import Iterator
from itertools import product

VARIANTS: dict[str, tuple[str, ...]] = {
    "range": ("15s", "35s", "1m5s", "245s", "1h"),
    "offset": ("1m", "30s", "2m30s", "-20s", "1h"),
    "quantile": ("-0.5", "0", "0.1", "0.5", "0.75", "1", "1.5"),
    "aggregation": ("sum", "avg", "max", "min", "count", "stddev", "stdvar", "group"),
    "ranking": ("topk", "bottomk"),
    "grouping": ("", "by ()", "by (host)", "by (host, disk)", "by (nothing)", "without ()",
                 "without (disk)", "without (host, disk)", "without (nothing)"),
    "arithmetic": ("+", "-", "*", "/", "%", "^"),
    "comparison": ("==", "!=", "<", ">", "<=", ">="),
    "set": ("and", "or", "unless"),
    "matching": ("", "on (host)", "ignoring (disk)", "on ()", "on (nothing)"),
    "elementwise": ("abs", "ceil", "floor", "round", "exp", "sqrt", "ln", "log2", "log10", "sgn",
                    "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh",
                    "acosh", "atanh", "deg", "rad"),
    "over_time": ("sum", "avg", "max", "min", "count", "stddev", "stdvar", "last", "present"),
    "extrapolated": ("rate", "delta", "increase"),
    "instant_rate": ("irate", "idelta"),
    "window": ("changes", "resets", "deriv", "absent_over_time"),
    "clamp": ("clamp_min", "clamp_max"),
    "date": ("day_of_month", "day_of_week", "day_of_year", "days_in_month", "hour", "minute",
             "month", "year"),
}  # fmt: skip

TEMPLATES = r"""
# Numbers and texts.
42
1.234
.123
1.23e-3
0x3d
Inf
+Inf
-Inf
NaN
-1 ^ 2
2 ^ 3 ^ 2
1 * 2 + 4 / 6 - 10 % 2 ^ 2
-(1)
1 {comparison} bool 2
2 {comparison} bool 2
NaN {comparison} bool NaN
time()
pi()
-5 % 3
1 / 0
0 / 0
1 atan2 2
# Selectors.
gauge
{{__name__="gauge"}}
gauge{{host="a"}}
gauge{{host!="a"}}
gauge{{host=~"a|c"}}
gauge{{host=~"A"}}
gauge{{host!~".*b"}}
gauge{{nothing=""}}
gauge{{disk!=""}}
gauge{{host="a", disk!="1"}}
{{host="a", job="node"}}
{{__name__=~"ga.+|cpus"}}
nothing
gauge offset {offset}
gauge @ 1599998700
gauge @ end() offset {offset}
cpus @ start()
# Aggregations.
{aggregation} {grouping} (gauge)
{aggregation}(nothing)
{aggregation}(cpus)
{ranking} {grouping} (2, gauge)
{ranking}(0, gauge)
{ranking}(-1, gauge)
{ranking}(scalar(cpus{{host='a'}}), gauge)
quantile({quantile}, gauge)
quantile by (host) ({quantile}, other)
count_values("value", cpus)
count_values by (host) ("value", cpus)
count_values without (disk) ("host", cpus)
avg(max by (host) (gauge))
sum(gauge) by (host)
sum(sum by (host, disk) (other)) by (disk)
# Vectors and numbers.
gauge {arithmetic} 2.5
2.5 {arithmetic} cpus
gauge {comparison} 0.25
1 {comparison} gauge
gauge {comparison} bool 0.25
1 {comparison} bool gauge
gauge * Inf
gauge * -Inf
gauge * NaN
-gauge
+gauge
gauge + -(1)
time() {arithmetic} 7
time() - cpus
gauge > time()
gauge {arithmetic} scalar(sum(cpus))
# Vectors and vectors.
gauge {arithmetic} other
gauge {comparison} other
gauge {comparison} bool other
gauge {set} other
gauge {set} {matching} other
gauge {set} {matching} cpus
gauge {arithmetic} on (host, disk) other
gauge {comparison} on (host, disk) other
gauge {comparison} bool ignoring (nothing) other
sum(gauge atan2 other)
gauge {arithmetic} on (host) group_left cpus
cpus {arithmetic} on (host) group_right gauge
gauge {comparison} on (host) group_left (nothing) cpus
gauge / ignoring (disk) group_left cpus
gauge * on (host) group_left (disk) max by (host) (cpus)
gauge * on (host) other
gauge + on (host) group_left (disk) other
gauge / on (host, disk, __name__) gauge
sum by (host) (gauge) / on (host) group_left (job) cpus
sum without (job) (gauge) - other
# Functions of values.
{elementwise}(gauge)
{elementwise}(-other)
{elementwise}(nothing)
round(gauge, 0.1)
round(-gauge, 5)
{clamp}(gauge, 1)
clamp(gauge, -1, 2)
clamp(gauge, 2, -1)
clamp(gauge, NaN, 1)
{date}()
{date}(vector(1e9))
{date}(vector(-1))
{date}(cpus * 1e8 offset {offset})
timestamp(gauge)
timestamp(gauge * 1)
timestamp(timestamp(gauge))
timestamp(-gauge)
vector(1.5)
vector(time())
scalar(gauge)
scalar(cpus{{host="a"}})
sort(gauge)
sort_desc(gauge)
absent(gauge)
absent(nothing)
absent(nothing{{a="b",c=~"d"}})
absent(sum(nothing))
absent(sum(gauge))
# Functions of labels.
label_replace(cpus, "job", "to-$1", "instance", "host-(.*)")
label_replace(cpus, "job", "to-$1", "instance", "st-(.*)")
label_replace(cpus, "job", "$1-$2", "instance", "(ho)st(.*)")
label_replace(cpus, "job", "x-$1", "nothing", "x(.*)")
label_replace(cpus, "job", "x-$1", "nothing", "(.*)")
label_replace(cpus, "job", "", "instance", ".*")
label_replace(cpus, "new", "${{name}}", "job", "(?P<name>..).*")
label_replace(cpus, "job", "x", "instance", "(.*")
label_replace(cpus, "~", "", "instance", "(.*)")
label_replace(gauge, "disk", "", "", "")
label_join(cpus, "new", "-", "host", "job")
label_join(cpus, "job", "", "host", "nothing", "job")
label_join(cpus, "job", "-")
label_join(cpus, "~", "-", "host")
label_join(gauge, "disk", "-")
# Functions of windows.
{over_time}_over_time(gauge[{range}])
{over_time}_over_time(gauge[{range}] offset {offset})
quantile_over_time({quantile}, gauge[{range}])
{window}(gauge[{range}])
{window}(counter[{range}])
{window}(bytes[{range}])
{over_time}_over_time(bytes[{range}])
predict_linear(bytes[{range}], 600)
delta(bytes[{range}])
{aggregation}(bytes)
{extrapolated}(counter[{range}])
{instant_rate}(counter[{range}])
{extrapolated}(nothing[5m])
{extrapolated}(counter[{range}] offset {offset})
predict_linear(gauge[{range}], 600)
predict_linear(gauge[245s], -7.5)
holt_winters(gauge[{range}], 0.3, 0.7)
holt_winters(gauge[65s], 1.5, 0.5)
absent_over_time(nothing[{range}])
absent_over_time(nothing{{host="a"}}[{range}])
sum by (host) (rate(counter[65s])) / on (host) cpus
{extrapolated}(counter[65s] @ 1599998700)
# Histograms.
histogram_quantile({quantile}, h_bucket)
histogram_quantile({quantile}, rate(h_bucket[65s]))
histogram_quantile(0.9, sum by (le) (rate(h_bucket[{range}])))
histogram_quantile(0.9, nothing)
histogram_quantile(0.9, gauge)
histogram_quantile(0.9, {{__name__=~"h_bucket|cpus"}})
histogram_quantile(0.5, h_bucket{{le!="+Inf"}})
histogram_quantile(0.5, h_bucket{{le="10"}})
# Subqueries.
{over_time}_over_time(gauge[2m5s:10s])
{over_time}_over_time(rate(counter[35s])[2m5s:20s])
max_over_time((time() - max(cpus) < 1e12)[5m:10s] offset 1m)
gauge[1m5s:10s]
cpus[35s]
sum_over_time(vector(2)[65s:])
avg_over_time(sum(gauge)[185s:20s] @ end())
quantile_over_time({quantile}, max_over_time(gauge[35s])[65s:10s])
"""
"""A template per line; braces of its own are doubled."""


def queries() -> Iterator[str]:
    """Every template with every one of its variants."""
    for template in TEMPLATES.splitlines():
        if not template or template.startswith("#"):
            continue
        names = [name for name in VARIANTS if f"{{{name}}}" in template]
        for chosen in product(*(VARIANTS[name] for name in names)):
            yield template.format(**dict(zip(names, chosen, strict=True)))
