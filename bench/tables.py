"""The tables of docs/measurements.md, out of bench/results/latest.jsonl: `python -m bench.tables`.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; what is there is replaced. Numbers
stand in tables only, so that the text needs no change after another run.
"""

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.figures import LATEST

DOCUMENT = Path(__file__).parents[1] / "docs" / "measurements.md"
MARKED = re.compile(r"(<!-- table: (?P<name>[\w-]+) -->\n).*?(?=<!-- end -->)", re.DOTALL)
NONE = "–"

Line = Mapping[str, Any]
Lines = Sequence[Line]

SHOWN = {
    "vervet": "Vervet",
    "prometheus": "Prometheus",
    "victoria-metrics": "VictoriaMetrics",
    "influxdb": "InfluxDB",
}
PEERS = tuple(SHOWN)[1:]


def main() -> int:
    text = DOCUMENT.read_text()
    lines = [json.loads(line) for line in LATEST.read_text().splitlines()]
    DOCUMENT.write_text(renewed(text, lines))
    return 0


def renewed(text: str, lines: Lines) -> str:
    """The document with its tables made anew. Raises KeyError for a name that is none's."""
    return MARKED.sub(lambda found: found[1] + TABLES[found["name"]](lines) + "\n", text)


def ingest(lines: Lines) -> str:
    """What each process costs, by size of message and number of workers."""
    own = of(lines, bench="ingest", system="vervet")
    processes = ("publisher", "broker", "ingest", "database")
    keys = ("series", "samples_per_message", "queues", "workers")
    rows = []
    for key in distinct(own, *keys):
        here = of(own, **dict(zip(keys, key, strict=True)))
        rows.append(
            [
                *(f"{one:,}" if isinstance(one, int) else str(one) for one in key),
                *(cell(here, figure="cpu_us_per_sample", process=name) for name in processes),
                cell(here, figure="server_cpu_us_per_sample"),
                cell(here, figure="all_cpu_us_per_sample"),
                cell(here, figure="samples_per_s"),
            ]
        )
    heads = ["series", "samples a message", "queues", "workers", *processes]
    return table([*heads, "servers", "all", "samples/s"], rows)


def ingest_peers(lines: Lines) -> str:
    """Servers' cost per sample beside the peers', with ratios."""
    here = of(lines, bench="ingest")
    rows = []
    for series, samples in distinct(here, "series", "samples_per_message"):
        size = of(here, series=series, samples_per_message=samples)
        for queues in ("all", "ingest"):
            own = of(size, system="vervet", queues=queues, workers=1)
            if own:
                rows.append(
                    [
                        f"{series:,}", str(samples), queues,
                        cell(own, figure="server_cpu_us_per_sample"),
                        *(cell(of(size, system=peer), figure="server_cpu_us_per_sample")
                          for peer in PEERS),
                        *(cell(own, figure=f"server_cpu_by_{peer.replace('-', '_')}")
                          for peer in PEERS),
                    ]
                )  # fmt: skip
    heads = ["series", "samples a message", "queues", *SHOWN.values()]
    return table([*heads, *(f"by {SHOWN[peer]}" for peer in PEERS)], rows)


def saturation(lines: Lines) -> str:
    """Samples a second, and peak memory."""
    here = of(lines, bench="ingest", samples_per_message=500)
    keys = ("series", "system", "queues", "workers")
    rows = []
    for key in distinct(here, *keys):
        series, system, queues, workers = key
        one = of(here, **dict(zip(keys, key, strict=True)))
        memory = of(one, figure="peak_memory")
        peaks = ", ".join(
            f"{line['process']} {number(line['value'])}"
            for line in memory
            if line["process"] != "publisher"
        )
        said = f"{SHOWN[system]}, queues {queues}, workers {workers}" if queues else SHOWN[system]
        rows.append([f"{series:,}", said, cell(one, figure="samples_per_s"), peaks])
    return table(["series", "system", "samples/s", "peak memory, MiB"], rows)


def disk(lines: Lines) -> str:
    """Bytes of a sample."""
    here = of(lines, bench="disk")
    rows = []
    for jitter, system in distinct(here, "jitter_ms", "system"):
        one = of(here, jitter_ms=jitter, system=system)
        parts = ", ".join(
            f"{line['part']} {number(line['value'])}"
            for line in of(one, figure="bytes_per_sample_of")
            if line["value"]
        )
        total = cell(one, figure="bytes_per_sample")
        if total != NONE:
            cpu = cell(one, figure="compact_cpu_us_per_sample")
            rows.append([str(jitter), SHOWN[system], total, parts, cpu])
    return table(
        ["jitter, ms", "system", "bytes a sample", "of which, or apart", "µs to seal"], rows
    )


def disk_ratios(lines: Lines) -> str:
    """Ours by the peers'."""
    here = of(lines, bench="disk", system="vervet")
    peers = ("prometheus", "victoria_metrics")
    rows = [
        [
            str(jitter),
            *(cell(of(here, jitter_ms=jitter), figure=f"{kind}_by_{peer}")
              for kind in ("raw_bytes", "bytes") for peer in peers),
        ]
        for (jitter,) in distinct(here, "jitter_ms")
    ]  # fmt: skip
    by = [f"by {SHOWN[peer.replace('_', '-')]}" for peer in peers]
    return table(["jitter, ms", *by, *(f"with rollups, {one}" for one in by)], rows)


def query(lines: Lines) -> str:
    """What an answer costs: processor and latency."""
    here = of(lines, bench="query")
    systems = ("vervet", "prometheus", "victoria-metrics")
    keys = ("stored", "api", "series", "range")
    rows = []
    for key in distinct(here, *keys):
        one = of(here, **dict(zip(keys, key, strict=True)))
        rows.append(
            [
                *map(str, key[1:]),
                *(cell(of(one, system=system), figure=figure)
                  for figure in ("cpu", "latency") for system in systems),
                cell(one, figure="cpu_by_prometheus"),
                cell(one, figure="latency_by_prometheus"),
            ]
        )  # fmt: skip
    short = [SHOWN[system] for system in systems]
    heads = ["api", "series", "range", *(f"ms of processor, {one}" for one in short)]
    heads += [f"ms of latency, {one}" for one in short]
    return table([*heads, "processor by Prometheus", "latency by Prometheus"], rows)


def promql(lines: Lines) -> str:
    """Expressions of dashboards."""
    here = of(lines, bench="promql")
    rows = []
    for expression, state in distinct(here, "expression", "state"):
        one = of(here, expression=expression, state=state)
        rows.append(
            [
                f"`{expression}`", str(state),
                *(cell(of(one, system=system), figure=figure)
                  for figure in ("cpu", "latency") for system in ("vervet", "prometheus")),
                cell(one, figure="cpu_by_prometheus"), cell(one, figure="latency_by_prometheus"),
            ]
        )  # fmt: skip
    heads = ["expression", "state", "ms of processor, Vervet", "Prometheus"]
    heads += ["ms of latency, Vervet", "Prometheus"]
    return table([*heads, "processor by Prometheus", "latency by Prometheus"], rows)


def growth(lines: Lines) -> str:
    """Each figure at each size."""
    here = of(lines, bench="growth", system="vervet")
    figures = ("server_cpu_us_per_sample", "query_cpu", "bytes_per_sample")
    rows = [
        [str(axis), f"×{factor}", *(cell(of(here, axis=axis, factor=factor), figure=name)
                                    for name in figures)]
        for axis, factor in distinct(here, "axis", "factor")
    ]  # fmt: skip
    rows += [
        [str(axis), f"×{factor} by ×1",
         *(cell(of(here, axis=axis, factor=factor), figure=f"{name}_by_x1") for name in figures)]
        for axis, factor in distinct(of(here, unit="ratio"), "axis", "factor")
    ]  # fmt: skip
    heads = ["what grows", "size", "ingest, µs a sample", "query, ms", "bytes a sample"]
    return table(heads, rows)


def agent(lines: Lines) -> str:
    """What an agent costs its host."""
    here = of(lines, bench="agent", system="vervet")
    found = [[line["figure"], cell([line]), line["unit"]] for line in here]
    return table(["figure", "value", "unit"], found)


def stalls(lines: Lines) -> str:
    """For how long each request keeps others waiting."""
    here = of(lines, bench="stalls", system="vervet")
    found = [[str(line["request"]), cell([line]), number(line["max"])] for line in here]
    return table(["request", "longest stall, ms", "of all runs"], found)


TABLES: Mapping[str, Callable[[Lines], str]] = {
    "ingest": ingest,
    "ingest-peers": ingest_peers,
    "saturation": saturation,
    "disk": disk,
    "disk-ratios": disk_ratios,
    "query": query,
    "promql": promql,
    "growth": growth,
    "agent": agent,
    "stalls": stalls,
}


def of(lines: Lines, **wanted: object) -> list[Line]:
    """The lines that have these; None is what they must not have. The machine's are left out."""
    return [
        line
        for line in lines
        if line["system"] != "machine"
        and all(line.get(name) == value for name, value in wanted.items())
    ]


def distinct(lines: Lines, *names: str) -> list[tuple[Any, ...]]:
    """The combinations of these parameters, as they first appear."""
    return list(dict.fromkeys(tuple(line.get(name) for name in names) for line in of(lines)))


def cell(lines: Lines, **wanted: object) -> str:
    """The value of the line that has these, and its target; NONE where there is no such line."""
    found = of(lines, **wanted)
    if not found:
        return NONE
    value, target = found[0]["value"], found[0].get("at_most")
    if target is None:
        return number(value)
    verdict = "met" if value <= target else "**missed**"
    return f"{number(value)} (at most {target:g}: {verdict})"


def number(value: float) -> str:
    """Three digits are what these measurements are worth."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown. Columns that are empty throughout are left out."""
    every = list(rows)
    kept = [i for i in range(len(heads)) if any(row[i] != NONE for row in every)]
    lines = [
        [heads[i] for i in kept],
        ["---"] * len(kept),
        *([row[i] for i in kept] for row in every),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
