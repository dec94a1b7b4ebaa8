"""Rule files: what is accepted, what is refused and how, and the built-in rules."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from services.documents import DocumentError
from services.evaluator.rules import load_builtin_rules, load_rule_set, load_rules

BUILTIN = Path("services/evaluator/builtin_rules.yaml")


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "rules.yaml"
    file.write_text(text)
    return file


def one_rule(body: str) -> str:
    lines = "".join(f"        {line}\n" for line in body.splitlines())
    return "groups:\n  - name: g\n    rules:\n      -\n" + lines


def problem(tmp_path: Path, text: str) -> str:
    with pytest.raises(DocumentError) as error:
        load_rules(written(tmp_path, text))
    return str(error.value).replace(str(tmp_path) + "/", "")


def test_a_rule_file_of_prometheus_is_accepted(tmp_path: Path) -> None:
    text = """
groups:
  - name: example
    interval: 30s
    rules:
      - alert: HighLatency
        expr: avg by (instance) (rate(latency_seconds_sum[5m])) > 0.5
        for: 10m
        keep_firing_for: 5m
        labels: {severity: page}
        annotations: {summary: 'High on {{ $labels.instance }}: {{ $value | humanize }}'}
"""
    (loaded,) = load_rule_set([written(tmp_path, text)], builtin=False).rules
    assert loaded.alert.key == "example/HighLatency"
    assert loaded.alert.hold_us == 600_000_000
    assert loaded.alert.keep_firing_us == 300_000_000
    assert [need.window_us for need in loaded.needs] == [300_000_000]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("alert: A\nexpr: up ==", "rules.yaml:6:9: groups[0].rules[0].expr: read 'up =='"),
        ("alert: A\nexpr: rat(x[5m])", "unknown function with name 'rat'; nearest: rate"),
        ("alert: A\nexpr: x\nfro: 5m", "rules.yaml:7:9: groups[0].rules[0].fro: unknown key"),
        ("alert: A\nexpr: x\nfro: 5m", "did you mean 'for'?"),
        ("alert: A\nexpr: x\nfor: 5 minutes", "not a duration such as 15s"),
        ("alert: A", "expr: missing; it is required"),
        ("record: a:b\nexpr: x", "record: recording rules are not supported yet"),
        ("alert: A\nexpr: x\nlevels: []", "levels: several severities in one rule"),
        ("alert: A\nexpr: x\noccurrences: 2 of 3", "`occurrences` is not supported yet"),
        ("alert: A\nexpr: x\nno_data: 1m", "a rule with it has no expr"),
        ("alert: A\nno_data: 0s", "expected a span above 0s"),
        ("alert: A\nexpr: 1", "gives a vector, not a scalar"),
        ("alert: A\nexpr: vector(1)", "vector() loses the instance"),
        ("alert: A\nexpr: sum(x) > 1", "keep the label: sum by (instance) (...)"),
        ("alert: A\nexpr: sum without (instance) (x)", "over several instances is not supported"),
        ("alert: A\nexpr: x * on (job) y", "match on (instance) as well"),
        ("alert: A\nexpr: x * ignoring (instance) y", "match on (instance) as well"),
        ("alert: A\nexpr: x > scalar(y)", "scalar() loses the instance"),
        ("alert: A\nexpr: rate(x[5m] smoothed)", "smoothed is not possible in rules"),
        ("alert: A\nexpr: x @ 5", "@ and negative offsets"),
        ("alert: A\nexpr: rate(x[2d])", "a range of more than 1d"),
        ("alert: A\nexpr: max_over_time(x[2d:])", "a range of more than 1d"),
        ("alert: A\nexpr: max_over_time((x @ 5)[1m:])", "@ and negative offsets"),
        ("alert: A\nexpr: sum(x) > on() group_right y", "match on (instance) as well"),
        ("alert: A\nexpr: x\nlabels: {instance: b}", "instance is the source's own label"),
        ("alert: A\nexpr: x\nlabels: {a-b: c}", "expected a label name"),
        (
            "alert: A\nexpr: x\nannotations:\n  s: '{{ $value | foo }}'",
            "rules.yaml:8:11: groups[0].rules[0].annotations.s: read '{{ $value | foo }}'; "
            "line 1, column 13: 'foo' is not supported",
        ),
    ],
)
def test_what_cannot_be_evaluated_is_refused_with_its_place(
    tmp_path: Path, body: str, message: str
) -> None:
    assert message in problem(tmp_path, one_rule(body))


@pytest.mark.parametrize(
    "expr",
    [
        "x > 1",
        "x / y > 1",
        "x / on (instance) y > 1",
        "x / ignoring (device) y > 1",
        "sum by (job, instance) (x) > 1",
        "sum without (cpu) (rate(x[1m])) > 1",
        "avg_over_time(x[1h]) - x offset 1h > 1",
        "time() - x > 60",
        "clamp_min(x, 0) > bool 1",
    ],
)
def test_what_depends_on_one_instance_is_accepted(tmp_path: Path, expr: str) -> None:
    load_rules(written(tmp_path, one_rule(f"alert: A\nexpr: {expr!r}")))


def test_numbers_stand_for_their_texts_as_in_prometheus(tmp_path: Path) -> None:
    file = written(tmp_path, one_rule("alert: A\nexpr: x\nlabels: {tier: 1}"))
    (loaded,) = load_rule_set([file], builtin=False).rules
    assert [(name, text.text) for name, text in loaded.alert.labels] == [("tier", "1")]


def test_two_rules_that_would_make_the_same_alerts_are_refused(tmp_path: Path) -> None:
    rule = "      - {alert: A, expr: x > 1}\n"
    file = written(tmp_path, "groups:\n  - name: g\n    rules:\n" + 2 * rule)
    with pytest.raises(DocumentError, match="rule g/A with the same labels stands in"):
        load_rule_set([file], builtin=False)


def test_two_groups_of_one_name_are_refused(tmp_path: Path) -> None:
    assert "groups: 'g' stands twice" in problem(tmp_path, "groups: [{name: g}, {name: g}]")


def test_the_built_in_rules_are_on_unless_turned_off() -> None:
    names = [rule.alert.name for rule in load_rule_set([], builtin=True).rules]
    assert {"HostHighCpu", "HostLowMemory", "HostHighLoad", "AgentSilent"} < set(names)
    assert load_rule_set([], builtin=False).rules == ()


def test_the_built_in_rules_pass_promtool_apart_from_our_own_keys(
    promtool: Path, tmp_path: Path
) -> None:
    yaml = YAML(typ="safe")
    document: Any = yaml.load(BUILTIN)
    count = 0
    for group in document["groups"]:
        group["rules"] = [rule for rule in group["rules"] if "no_data" not in rule]
        count += len(group["rules"])
    file = tmp_path / "builtin.yaml"
    yaml.dump(document, file)
    checked = subprocess.run([promtool, "check", "rules", file], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    assert f"SUCCESS: {count} rules found" in checked.stdout
    assert len(load_builtin_rules().groups) == len(document["groups"])


GUIDE = Path("docs/guides/rules.md")


def test_every_example_of_the_guide_is_accepted(tmp_path: Path) -> None:
    examples = re.findall(r"^```yaml\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(examples) == 2
    for text in examples:
        load_rules(written(tmp_path, text))


def test_the_guide_lists_the_built_in_rules_with_their_severities() -> None:
    listed = re.findall(r"^\| `(\w+)` \| (\w+) \|", GUIDE.read_text(), re.MULTILINE)
    (group,) = load_builtin_rules().groups
    assert listed == [(rule.alert, rule.labels["severity"]) for rule in group.rules]
