"""The same samples and expressions through Prometheus' own engine, by Debian's promtool.

Prometheus 2.42 is asked, so what it answers otherwise than Prometheus 3 does is avoided: see the
grammar.
"""

import math
import os
import random
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from engine.promql import QueryError, Vector, parse
from schemas.values import ABSENT, STALE
from tests import promqlgrammar
from tests.promqljudge import SECOND_US, STEP_S, STEPS, Memory, Sampled, samples

CASES = int(os.environ.get("VERVET_TEST_PROMTOOL_CASES", "1000"))
SEED = int(os.environ.get("VERVET_TEST_SEED", "20"))

Answer = dict[frozenset[tuple[str, str]], float]


def test_answers_agree_with_promtool(promtool: Path, tmp_path: Path) -> None:
    rng = random.Random(SEED)
    series = samples(SEED)
    cases = [
        (promqlgrammar.expression(rng), rng.randrange(5, STEPS * STEP_S // 10) * 10 + 3)
        for _ in range(CASES)
    ]
    theirs = asked(promtool, tmp_path, series, cases)
    memory = Memory(series, first_s=0)
    answered = 0
    for (text, at_s), expected in zip(cases, theirs, strict=True):
        context = f"{text} at {at_s}"
        found = ours(text, at_s, memory)
        if isinstance(found, str) and "multiple matches" in found:
            continue  # counted before a comparison filters, in Prometheus 3
        if isinstance(expected, str) and "same labelset" in expected:
            continue  # names are removed at the end: until then the series are told apart
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


def ours(text: str, at_s: int, memory: Memory) -> Answer | str:
    try:
        result = parse(text).instant(at_s * SECOND_US, memory)
    except QueryError as error:
        return str(error)
    assert isinstance(result, Vector)
    return {
        frozenset(labels.items()): float(value)
        for labels, value in zip(result.labels, result.values, strict=True)
    }


def asked(
    promtool: Path, tmp_path: Path, series: Sequence[Sampled], cases: list[tuple[str, int]]
) -> list[Answer | str]:
    """What promtool answers to each case: values by series, or the error."""
    lines = [f"evaluation_interval: {STEP_S}s", "tests:", f"- interval: {STEP_S}s"]
    lines.append("  input_series:")
    for labels, values in series:
        shown = " ".join(
            "_" if value is ABSENT else "stale" if value is STALE else repr(value)
            for value in values
        )
        matched = ",".join(f'{name}="{value}"' for name, value in labels.items())
        lines += [f"  - series: '{{{matched}}}'", f"    values: '{shown}'"]
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
