"""The same samples and expressions through Prometheus' own engine, by Debian's promtool.

Prometheus 2.42 is asked, so what it answers otherwise than Prometheus 3 does is avoided: see the
grammar. Counters are so high that their extrapolation to zero plays no part.
"""

import math
import os
import random
import re
import subprocess
from pathlib import Path

from engine.promql import Block, QueryError, Vector, parse
from schemas.values import ABSENT, STALE
from tests import promqlgrammar
from tests.unit.test_promql_engine import SECOND, Store, block

STEPS = 60
STEP_S = 10
CASES = int(os.environ.get("VERVET_TEST_PROMTOOL_CASES", "1000"))
SEED = int(os.environ.get("VERVET_TEST_SEED", "20"))

Series = dict[str, list[float]]
Answer = dict[frozenset[tuple[str, str]], float]


def random_series(rng: random.Random) -> Series:
    """Series in the order in which Prometheus stores them."""
    series: Series = {}
    for name in ("counter", "gauge", "other"):
        for disk in "123":
            for host in "ab":
                if rng.random() < 0.1:
                    continue
                value, values = 1000.0, []
                for _ in range(STEPS):
                    if name == "counter":
                        value = 1000.0 if rng.random() < 0.05 else value + rng.choice([0, 1, 7.5])
                    else:
                        value = rng.choice([-3, -1.5, 0, 0.25, 1, 2, 1e3])
                    if name == "gauge":
                        value += 0.001 * len(series)  # no two are equal
                    values.append(with_holes(rng, value))
                series[f'{name}{{host="{host}",disk="{disk}"}}'] = values
    series['cpus{host="a"}'] = [4.0] * STEPS
    series['cpus{host="b"}'] = [8.0] * STEPS
    for host in "ab":
        total = 1000.0
        counts: list[list[float]] = [[], [], [], []]
        for _ in range(STEPS):
            for place in range(4):
                total += rng.randrange(5)
                counts[place].append(with_holes(rng, total))
        for bound, values in zip(("0.1", "1", "10", "+Inf"), counts, strict=True):
            series[f'h_bucket{{host="{host}",le="{bound}"}}'] = values
    return series


def with_holes(rng: random.Random, value: float) -> float:
    kind = rng.random()
    return ABSENT if kind < 0.06 else STALE if kind < 0.08 else value


def test_answers_agree_with_promtool(promtool: Path, tmp_path: Path) -> None:
    rng = random.Random(SEED)
    series = random_series(rng)
    cases = [
        (promqlgrammar.expression(rng), rng.randrange(5, STEPS * STEP_S // 10) * 10 + 3)
        for _ in range(CASES)
    ]
    theirs = asked(promtool, tmp_path, series, cases)
    columns = block(range(0, STEPS * STEP_S, STEP_S), series)
    answered = 0
    for (text, at_s), expected in zip(cases, theirs, strict=True):
        context = f"{text} at {at_s}"
        found = ours(text, at_s, columns)
        if isinstance(found, str) and "multiple matches" in found:
            continue  # counted before a comparison filters, in Prometheus 3
        assert type(found) is type(expected), f"{context}: {found}; expected {expected}"
        if isinstance(found, str) or isinstance(expected, str):
            continue
        assert found.keys() == expected.keys(), context
        for key, value in found.items():
            same = math.isclose(value, expected[key], rel_tol=1e-9, abs_tol=1e-9)
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
    promtool: Path, tmp_path: Path, series: Series, cases: list[tuple[str, int]]
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
