"""Figures: what a benchmark found, as lines of bench/results/latest.jsonl and as a table."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LATEST = Path(__file__).parent / "results" / "latest.jsonl"

Parameters = Mapping[str, str | int | float]


@dataclass(frozen=True)
class Options:
    """What was asked for. runs: of each measurement. full: every size, which takes an hour."""

    runs: int = 3
    full: bool = False


class Failed(Exception):
    """The benchmark measured nothing that could be believed; the text says why."""


@dataclass(frozen=True)
class Figure:
    """The median of some runs. at_most: the target, where there is one."""

    bench: str
    system: str
    figure: str
    values: tuple[float, ...]
    unit: str
    parameters: Parameters = field(default_factory=dict)
    at_most: float | None = None

    @property
    def value(self) -> float:
        return statistics.median(self.values)

    def line(self) -> dict[str, Any]:
        """The object of the results file; its keys stay as they are, others may come."""
        target = {} if self.at_most is None else {"at_most": self.at_most}
        return {
            "bench": self.bench,
            "system": self.system,
            "figure": self.figure,
            "value": rounded(self.value),
            "unit": self.unit,
            **self.parameters,
            "min": rounded(min(self.values)),
            "max": rounded(max(self.values)),
            "runs": len(self.values),
            **target,
        }

    def verdict(self) -> str:
        """Whether the target is met; empty where there is none."""
        if self.at_most is None:
            return ""
        word = "met" if self.value <= self.at_most else "MISSED"
        return f"at most {self.at_most:g}: {word}"


def rounded(value: float) -> float:
    """Four digits: more than any of these measurements repeats."""
    return float(f"{value:.4g}")


def keep(figures: Iterable[Figure], path: Path = LATEST) -> None:
    """Write figures in place of those of the same benchmarks; those of others stay."""
    lines = [figure.line() for figure in figures]
    ran = {line["bench"] for line in lines}
    old = path.read_text().splitlines() if path.exists() else []
    kept = [line for line in map(json.loads, old) if line["bench"] not in ran]
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in kept + lines))


HEADINGS = ("figure", "median", "min", "max", "unit", "target")


def table(figures: Sequence[Figure]) -> str:
    """The figures for people: one line each, grouped under their parameters."""
    groups: dict[str, list[tuple[str, ...]]] = {}
    for one in figures:
        shared = {name: value for name, value in one.parameters.items() if name != "process"}
        title = ", ".join(f"{name} {value}" for name, value in shared.items())
        name = f"{one.figure} {one.parameters.get('process', '')}".strip()
        numbers = (f"{rounded(n):g}" for n in (one.value, min(one.values), max(one.values)))
        groups.setdefault(f"{one.bench}: {one.system}: {title}".rstrip(": "), []).append(
            (name, *numbers, one.unit, one.verdict())
        )
    cells = [HEADINGS, *(row for rows in groups.values() for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEADINGS))]
    lines = [_aligned(HEADINGS, widths)]
    for title, rows in groups.items():
        lines += ["", title, *(_aligned(row, widths) for row in rows)]
    return "\n".join(lines)


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    name, *numbers, unit, target = (
        cell.rjust(width) if 1 <= column <= 3 else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    return "  ".join((name, *numbers, unit, target)).rstrip()
