"""Runs scripts in Prometheus' own format for tests of PromQL: load, clear, eval, expect.

The format: https://github.com/prometheus/prometheus/blob/main/promql/promqltest/README.md
Histograms of the native kind (`{{...}}`) and the instants at which counters began (`@st`) are left
out: their samples are not loaded, and what expects them is not evaluated.
"""

import ast
import math
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from engine.promql import (
    NAME,
    Block,
    Columns,
    Matrix,
    QueryError,
    Result,
    Scalar,
    Select,
    Vector,
    matches,
    matching_columns,
    parse,
)
from schemas.values import ABSENT, STALE

SECOND_US = 1_000_000
RELATIVE = 1e-6
"""How far a value may be from what is expected, as in Prometheus' own runner."""

Key = frozenset[tuple[str, str]]

_UNITS_S = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800, "y": 31_536_000}
_EVAL = re.compile(
    r"eval(?:_(?P<old>fail|ordered|warn|info))?\s+"
    r"(?:instant\s+(?:at\s+(?P<at>\S+)\s+)?|"
    r"range\s+from\s+(?P<start>\S+)\s+to\s+(?P<end>\S+)\s+step\s+(?P<step>\S+?)s?\s+)"
    r"(?P<query>.*)"
)
_STRING = r"\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'|`[^`]*`"
_SERIES = re.compile(
    rf"(?P<name>[^\s{{]*)\s*(?:\{{(?!\{{)(?P<labels>(?:{_STRING}|[^\"'`}}])*)\}})?"
)
_PAIR = re.compile(rf"\s*(?P<name>{_STRING}|[\w:]+)\s*(?:=\s*(?P<value>{_STRING}))?\s*,?")
_POINT = re.compile(
    r"(?P<value>[-+]?(?:Inf|NaN|[0-9.]+(?:e[-+]?[0-9]+)?))"
    r"(?:(?P<grow>[-+][0-9.]+(?:e[-+]?[0-9]+)?)?x(?P<times>[0-9]+))?\Z",
    re.IGNORECASE,
)


@dataclass
class Case:
    """One eval with what it expects."""

    line: int
    query: str
    at_us: int = 0
    range_us: tuple[int, int, int] | None = None
    fails: bool = False
    messages: list[str] = field(default_factory=list)
    patterns: list[str] = field(default_factory=list)
    ordered: bool = False
    text: str | None = None
    matrix_us: tuple[int, int, int] | None = None
    series: dict[Key, list[float]] = field(default_factory=dict)
    number: float | None = None
    native: bool = False


def run(script: str) -> Iterator[tuple[Case, str]]:
    """Each case of a script with what is wrong about its answer ("" for nothing)."""
    store = Store()
    lines = [
        line.split("#")[0].strip() if _comment(line) else line.strip()
        for line in script.splitlines()
    ]
    place = 0
    while place < len(lines):
        command = lines[place]
        body = []
        place += 1
        if command.startswith(("load", "eval")):
            first = place
            while place < len(lines) and lines[place]:
                body.append(lines[place])
                place += 1
            if command.startswith("load"):
                store.load(command, body)
            else:
                case = read_case(first, command, body)
                if not case.native and not store.reads_native(case.query):
                    yield case, verdict(case, store)
        elif command == "clear":
            store = Store()
        elif command:
            raise ValueError(f"line {place}: {command!r} is no command")


def _comment(line: str) -> bool:
    return line.lstrip().startswith("#")


class Store:
    """What was loaded."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.native: list[dict[str, str]] = []
        """Series with samples that were left out."""

    def load(self, command: str, lines: list[str]) -> None:
        step_us = microseconds(command.split()[1])
        columns, values = [], []
        for line in lines:
            labels, rest = read_series(line)
            if rest.startswith("@st") or labels[NAME].endswith("@st"):
                self.native.append(labels | {NAME: labels[NAME].removesuffix("@st")})
            elif "{{" in rest:
                self.native.append(labels)
            else:
                if command.startswith("load_with_nhcb"):
                    base = {name: value for name, value in labels.items() if name != "le"}
                    self.native.append(base | {NAME: base[NAME].removesuffix("_bucket")})
                columns.append(labels)
                values.append(read_points(rest))
        rows = max((len(one) for one in values), default=0)
        cells = np.full((rows, len(values)), ABSENT)
        for column, points in enumerate(values):
            cells[: len(points), column] = points
        at = step_us * np.arange(rows, dtype=np.int64)
        self.blocks.append(Block(Columns(columns), at, cells))

    def reads_native(self, query: str) -> bool:
        """Whether a query selects series with samples that were left out."""
        try:
            selects = parse(query).selects(0, 0)
        except QueryError as error:
            return "native histograms" in str(error) or "not stored" in str(error)
        return any(matches(one.matchers, labels) for one in selects for labels in self.native)

    def __getitem__(self, select: Select) -> list[Block]:
        found = []
        for one in self.blocks:
            places = matching_columns(select.matchers, one.columns)
            rows = (one.at > select.start_us) & (one.at <= select.end_us)
            if places:
                cells = one.values[np.ix_(rows, np.array(places))]
                found.append(Block(one.columns.take(places), one.at[rows], cells))
        return found


def microseconds(text: str) -> int:
    """A number of seconds, or a duration such as 1h30m."""
    sign, text = (-1, text[1:]) if text.startswith("-") else (1, text)
    found = re.findall(r"([0-9]+)(ms|[smhdwy])", text)
    if "".join(number + unit for number, unit in found) == text:
        return sign * round(sum(int(n) * _UNITS_S[unit] for n, unit in found) * SECOND_US)
    return sign * round(float(text) * SECOND_US)


def read_series(line: str) -> tuple[dict[str, str], str]:
    """The labels at the line's beginning, and the rest."""
    found = _SERIES.match(line)
    assert found is not None
    labels = {NAME: found["name"]} if found["name"] else {}
    for pair in _PAIR.finditer(found["labels"] or ""):
        name = pair["name"]
        name = _unquoted(name) if name[0] in "\"'`" else name
        if pair["value"] is None:
            labels[NAME] = name
        elif pair["value"] not in ('""', "''"):
            labels[name] = _unquoted(pair["value"])
    return labels, line[found.end() :].strip()


def _unquoted(text: str) -> str:
    return text[1:-1] if text[0] == "`" else str(ast.literal_eval(text))


def read_points(text: str) -> list[float]:
    """The points of a series, ABSENT where there is none."""
    points: list[float] = []
    for word in text.split():
        if word == "stale":
            points.append(STALE)
        elif word[0] == "_":
            points += [ABSENT] * int(word[2:] or 1)
        else:
            found = _POINT.match(word)
            if found is None:
                raise ValueError(f"{word!r} is no point")
            value, grow = float(found["value"]), float(found["grow"] or 0)
            points += [value + grow * n for n in range(int(found["times"] or 0) + 1)]
    return points


def read_case(line: int, command: str, body: list[str]) -> Case:
    """An eval command with the lines below it."""
    found = _EVAL.match(command)
    if found is None:
        raise ValueError(f"line {line}: {command!r} is not understood")
    case = Case(line, found["query"].strip(), fails=found["old"] == "fail")
    case.ordered = found["old"] == "ordered"
    if found["start"] is not None:
        case.range_us = (
            microseconds(found["start"]),
            microseconds(found["end"]),
            microseconds(found["step"] + ("s" if found["step"][-1].isdigit() else "")),
        )
    else:
        case.at_us = microseconds(found["at"] or "0")
    for one in body:
        _read_expectation(case, one)
    return case


def _read_expectation(case: Case, line: str) -> None:
    words = line.split()
    if words[0] == "expected_fail_message":
        case.messages.append(line.split(None, 1)[1])
    elif words[0] == "expected_fail_regexp":
        case.patterns.append(line.split(None, 1)[1])
    elif words[0] == "expect":
        _read_expect(case, line)
    elif "{{" in line:
        case.native = True
    elif len(words) == 1:
        case.number = float(words[0])
    else:
        labels, rest = read_series(line)
        case.series[frozenset(labels.items())] = read_points(rest)


def _read_expect(case: Case, line: str) -> None:
    line = re.sub(r"(msg|regex):\s*", r"\1: ", line, count=1)
    match line.split()[1:]:
        case ["fail"]:
            case.fails = True
        case ["fail", "msg:", *_]:
            case.fails = True
            case.messages.append(line.split("msg:", 1)[1].strip())
        case ["fail", "regex:", *_]:
            case.fails = True
            case.patterns.append(line.split("regex:", 1)[1].strip())
        case ["ordered"]:
            case.ordered = True
        case ["string", *_]:
            case.text = _unquoted(line.split("string", 1)[1].strip())
        case ["range", "vector", "from", start, "to", end, "step", step]:
            case.matrix_us = (microseconds(start), microseconds(end), microseconds(step))
        case ["warn" | "info" | "no_warn" | "no_info", *_]:
            pass  # there are no annotations yet
        case _:
            raise ValueError(f"{line!r} is not understood")


def verdict(case: Case, store: Store) -> str:
    """What is wrong about the answer; "" where it is right."""
    try:
        if case.range_us is not None:
            start_us, end_us, step_us = case.range_us
            query = parse(case.query, step_us=step_us, range_us=end_us - start_us)
            result: Result = query.range(start_us, end_us, step_us, store)
        else:
            result = parse(case.query).instant(case.at_us, store)
    except QueryError as error:
        return _of_failure(case, str(error))
    if case.fails:
        return f"answered {shown(result)}; an error was expected"
    if isinstance(result, str):
        return "" if result == case.text else f"answered {result!r}; expected {case.text!r}"
    if isinstance(result, Scalar):
        right = case.number is not None and near(result.value, case.number)
        return "" if right else f"answered {result.value}; expected {case.number}"
    if isinstance(result, Matrix):
        return _of_matrix(case, result)
    return _of_vector(case, result) or _of_range_around(case, store)


def _of_failure(case: Case, message: str) -> str:
    if not case.fails:
        return f"failed: {message}"
    if any(one != message for one in case.messages):
        return f"failed with {message!r}; expected {case.messages}"
    if any(not re.search(one, message) for one in case.patterns):
        return f"failed with {message!r}; expected {case.patterns}"
    return ""


def _of_vector(case: Case, vector: Vector) -> str:
    found = list(zip(map(key, vector.labels), vector.values.tolist(), strict=True))
    wanted = [(one, points[0]) for one, points in case.series.items()]
    if not case.ordered:
        found.sort(key=repr_of)
        wanted.sort(key=repr_of)
    same = [one for one, _ in found] == [one for one, _ in wanted]
    if same and all(near(a, b) for (_, a), (_, b) in zip(found, wanted, strict=True)):
        return ""
    return f"answered {shown(vector)}; expected {[(sorted(one), v) for one, v in wanted]}"


def repr_of(item: tuple[Key, float]) -> list[tuple[str, str]]:
    return sorted(item[0])


def _of_range_around(case: Case, store: Store) -> str:
    """A range query that has the instant in its middle must give the same there."""
    if case.ordered or re.search(r"start\(\)|end\(\)|limit|range\(|step\(", case.query):
        return ""
    minute = 60 * SECOND_US
    query = parse(case.query)
    matrix = query.range(case.at_us - minute, case.at_us + minute, minute, store)
    here = matrix.present[1]
    found = {
        key(one): value
        for one, value, there in zip(matrix.labels, matrix.values[1], here, strict=True)
        if there
    }
    wanted = {one: points[0] for one, points in case.series.items()}
    if found.keys() == wanted.keys() and all(near(found[k], wanted[k]) for k in found):
        return ""
    return f"in a range query answered {found}; expected {wanted}"


def _of_matrix(case: Case, matrix: Matrix) -> str:
    start, _, step = case.range_us or case.matrix_us or (0, 0, 1)
    if case.number is not None:
        case.series[frozenset()] = [case.number] * len(matrix.at)
    wanted = {
        one: [(start + step * n, value) for n, value in enumerate(points) if not absent(value)]
        for one, points in case.series.items()
    }
    found = {
        key(labels): list(zip(at.tolist(), values.tolist(), strict=True))
        for labels, at, values in matrix.series()
    }
    wanted = {one: points for one, points in wanted.items() if points}
    same = found.keys() == wanted.keys() and all(
        [at for at, _ in found[one]] == [at for at, _ in wanted[one]]
        and all(near(a, b) for (_, a), (_, b) in zip(found[one], wanted[one], strict=True))
        for one in found
    )
    return "" if same else f"answered {found}; expected {wanted}"


def key(labels: Mapping[str, str]) -> Key:
    return frozenset(labels.items())


def absent(value: float) -> bool:
    bits = np.array(value).view(np.uint64)
    return bool(bits == np.array(ABSENT).view(np.uint64))


def near(found: float, wanted: float) -> bool:
    """Whether two values are the same but for rounding."""
    if math.isnan(found) or math.isnan(wanted):
        return math.isnan(found) and math.isnan(wanted)
    return math.isclose(found, wanted, rel_tol=RELATIVE, abs_tol=1e-12)


def shown(result: Result) -> str:
    """A result for people."""
    if isinstance(result, Vector):
        items = zip(result.labels, result.values.tolist(), strict=True)
        return str([(sorted(one.items()), value) for one, value in items])
    return str(result)


def main() -> None:
    """Run the scripts that are named, and print what is wrong: `python -m tests.promqltest F…`."""
    for name in sys.argv[1:]:
        cases = list(run(Path(name).read_text()))
        wrong = [(case, message) for case, message in cases if message]
        print(f"{Path(name).name}: {len(cases) - len(wrong)} of {len(cases)} right")
        for case, message in wrong:
            print(f"  {name}:{case.line}: {case.query}\n      {message[:600]}")


if __name__ == "__main__":
    main()
