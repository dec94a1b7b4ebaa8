"""The same samples and expressions through Prometheus' own engine, by Debian's promtool.

Instants and ranges are chosen so that no sample lies on the edge of a window, where Prometheus 2
(closed) and 3 (open) differ, and counters so high that their extrapolation to zero plays no part.
"""

import math
import os
import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from engine.promql import Block, QueryError, Vector, parse
from schemas.values import ABSENT, STALE
from tests.unit.test_promql_engine import SECOND, Store, block

STEPS = 60
STEP_S = 10
CASES = 400

Series = dict[str, list[float]]
Answer = dict[frozenset[tuple[str, str]], float]


@pytest.fixture(scope="module")
def promtool() -> str:
    found = os.environ.get("VERVET_TEST_PROMTOOL") or shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    return found


def random_series(rng: random.Random) -> Series:
    series: Series = {}
    for name in ("gauge", "counter", "other"):
        for host in "ab":
            for disk in "123":
                if rng.random() < 0.1:
                    continue
                value, values = 1000.0, []
                for _ in range(STEPS):
                    if name == "counter":
                        value = 1000.0 if rng.random() < 0.05 else value + rng.choice([0, 1, 7.5])
                    else:
                        value = rng.choice([-3, -1.5, 0, 0.25, 1, 2, 1e9])
                    kind = rng.random()
                    values.append(ABSENT if kind < 0.06 else STALE if kind < 0.08 else value)
                series[f'{name}{{host="{host}",disk="{disk}"}}'] = values
    series['cpus{host="a"}'] = [4.0] * STEPS
    series['cpus{host="b"}'] = [8.0] * STEPS
    return series


def random_expression(rng: random.Random, depth: int = 0) -> str:
    """A vector expression."""
    roll = rng.random()
    if depth > 3 or roll < 0.2:
        return random_selector(rng)
    inner = random_expression(rng, depth + 1)
    if roll < 0.4:
        function = rng.choice(
            ["rate", "increase", "delta", "irate", "idelta"]
            + [f"{op}_over_time" for op in ("avg", "min", "max", "sum", "count", "last")]
        )
        name = "counter" if function in ("rate", "increase", "irate") else rng.choice(NAMES)
        offset = rng.choice(["", " offset 40s", " offset 2m"])
        return (
            f"{function}({name}{random_matchers(rng)}[{rng.choice(['30s', '1m', '4m'])}]{offset})"
        )
    if roll < 0.55:
        grouping = rng.choice(["", " by (host)", " by (disk, host)", " without (disk)", " by ()"])
        return f"{rng.choice(['sum', 'avg', 'min', 'max', 'count'])}{grouping} ({inner})"
    if roll < 0.7:
        op = rng.choice(["+", "-", "*", "/", "%", "^", ">", "<", "==", "!=", ">=", "<= bool"])
        operands = [f"({inner})", rng.choice(["2", "0", "-1.5", "1e3", "NaN", "time()"])]
        rng.shuffle(operands)
        return f"{operands[0]} {op} {operands[1]}"
    if roll < 0.9:
        op = rng.choice(["+", "-", "*", "/", ">", "< bool", "=="])
        match = rng.choice(["", " on (host)", " on (host, disk)", " ignoring (disk)"])
        return f"({inner}) {op}{match} ({random_expression(rng, depth + 1)})"
    function = rng.choice(["abs", "ceil", "floor", "round", "-", "sgn", "vector(scalar"])
    if function == "vector(scalar":
        return f"vector(scalar({inner}))"
    if rng.random() < 0.3:
        return rng.choice(
            [f"clamp({inner}, -1, 1)", f"clamp_min({inner}, 0)", f"round({inner}, 0.5)"]
        )
    return f"{function}({inner})"


NAMES = ["gauge", "counter", "other", "cpus"]


def random_selector(rng: random.Random) -> str:
    offset = rng.choice(["", "", "", " offset 1m"])
    return f"{rng.choice(NAMES)}{random_matchers(rng)}{offset}"


def random_matchers(rng: random.Random) -> str:
    choices = ["", '{host="a"}', '{disk=~"1|2"}', '{disk!~"[23]"}', '{host!="b",disk=~".+"}']
    return rng.choice([*choices, '{disk=""}'])


def test_answers_agree_with_promtool(promtool: str, tmp_path: Path) -> None:
    rng = random.Random(20)
    series = random_series(rng)
    cases = [
        (random_expression(rng), rng.randrange(5, STEPS * STEP_S // 10) * 10 + 3)
        for _ in range(CASES)
    ]
    theirs = asked(promtool, tmp_path, series, cases)
    columns = block(range(0, STEPS * STEP_S, STEP_S), series)
    answered = 0
    for (text, at_s), expected in zip(cases, theirs, strict=True):
        context = f"{text} at {at_s}"
        found = ours(text, at_s, columns)
        assert type(found) is type(expected), f"{context}: {found}; expected {expected}"
        if isinstance(found, str) or isinstance(expected, str):
            continue
        assert found.keys() == expected.keys(), context
        for key, value in found.items():
            same = math.isclose(value, expected[key], rel_tol=1e-9, abs_tol=1e-12)
            both_nan = math.isnan(value) and math.isnan(expected[key])
            assert same or both_nan, f"{context}: {key}: {value}; expected {expected[key]}"
        answered += bool(found)
    assert answered > CASES / 3


def ours(text: str, at_s: int, columns: Block) -> Answer | str:
    try:
        result = parse(text).instant(at_s * SECOND, Store(columns))
    except QueryError as error:
        return str(error)
    assert isinstance(result, Vector)
    return {
        frozenset(labels.items()): float(value)
        for labels, value in zip(result.labels, result.values, strict=True)
    }


def asked(
    promtool: str, tmp_path: Path, series: Series, cases: list[tuple[str, int]]
) -> list[Answer | str]:
    """What promtool answers to each case: values by series, or the error."""
    lines = [f"evaluation_interval: {STEP_S}s", "tests:", f"- interval: {STEP_S}s"]
    lines.append("  input_series:")
    for name, values in series.items():
        shown = " ".join(
            "_" if value is ABSENT else "stale" if value is STALE else repr(value)
            for value in values
        )
        lines += [f"  - series: '{name}'", f"    values: '{shown}'"]
    lines.append("  promql_expr_test:")
    for text, at_s in cases:
        lines += [f"  - expr: '{text}'", f"    eval_time: {at_s}s"]
        lines.append("    exp_samples: [{labels: no_such_series, value: 0}]")
    file = tmp_path / "cases.yml"
    file.write_text("\n".join(lines))
    run = subprocess.run([promtool, "test", "rules", file], capture_output=True, text=True)
    answers = re.findall(
        r'^ *expr: ".*", time: [^,]*,(?: err: (.*)|\n.*\n *got: ?(.*))$',
        run.stdout + run.stderr,
        re.MULTILINE,
    )
    assert len(answers) == len(cases), run.stderr[:2000]
    return [error or parsed(got) for error, got in answers]


def parsed(got: str) -> Answer:
    if got == "nil":
        return {}
    found = re.findall(r"\{([^}]*)\} ([-+0-9.E]+|NaN|[-+]Inf)(?:, |$)", got)
    return {
        frozenset(re.findall(r'([a-z_]+)="([^"]*)"', labels)): float(value)
        for labels, value in found
    }
