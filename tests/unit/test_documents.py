"""Documents and settings: every mistake is shown where it stands."""

from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from schemas.durations import MAX_MILLISECONDS, Duration, format_duration, parse_duration
from services.documents import DocumentError, load_toml, load_yaml, parse_yaml
from services.settings import DatabaseSettings, Settings, load


class Rule(BaseModel):
    model_config = ConfigDict(extra="forbid")
    alert: str
    hold: Duration = Field(timedelta(0), alias="for")
    labels: dict[str, str] = {}


class Rules(BaseModel):
    model_config = ConfigDict(extra="forbid")
    rules: list[Rule]


YAML = {
    "wrong value": (
        "rules:\n  - alert: A\n    for: 5x\n",
        "f.yml:3:5: rules[0].for: read '5x'; '5x' is not a duration such as 15s, 5m or 1h30m",
    ),
    "near key": (
        "rules:\n  - alert: A\n    labls: {}\n",
        "f.yml:3:5: rules[0].labls: unknown key 'labls'; did you mean 'labels'?",
    ),
    "far key": (
        "rules:\n  - alert: A\n    zzz: {}\n",
        "f.yml:3:5: rules[0].zzz: unknown key 'zzz'; known keys: alert, for, labels",
    ),
    "missing": ("rules:\n  - for: 5m\n", "f.yml:2:5: rules[0].alert: missing; it is required"),
    "wrong type": (
        "rules:\n  - alert: [1]\n",
        "f.yml:2:5: rules[0].alert: read [1]; input should be a valid string",
    ),
    "duplicate key": (
        "rules:\n  - alert: A\n    alert: B\n",
        'f.yml:3:5: found duplicate key "alert" with value "B" (original value: "A")',
    ),
    "syntax": ("rules: [\n", "f.yml:2:1: expected the node content, but found '<stream end>'"),
    "no mapping": ("- a\n", "f.yml:1:1: document: read ['a']; input should be a valid dictionary"),
    "empty": ("", "f.yml:1:1: rules: missing; it is required"),
}


@pytest.mark.parametrize("name", YAML)
def test_a_mistake_in_yaml_is_told_with_its_place(name: str) -> None:
    text, expected = YAML[name]
    with pytest.raises(DocumentError) as raised:
        parse_yaml(text, "f.yml", Rules)
    assert str(raised.value).startswith(expected)


def test_all_mistakes_are_told_at_once() -> None:
    text = "rules:\n  - alert: A\n    for: x\n  - alert: B\n    for: y\n"
    with pytest.raises(DocumentError) as raised:
        parse_yaml(text, "f.yml", Rules)
    assert [line.split(" ")[0] for line in raised.value.problems] == ["f.yml:3:5:", "f.yml:5:5:"]


def test_aliases_cannot_ask_for_more_than_the_bound() -> None:
    lines = ["a0: &a0 [x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    with pytest.raises(DocumentError, match="aliases included"):
        parse_yaml("\n".join(lines), "f.yml", Rules)


def test_deep_nesting_is_a_mistake_not_a_crash() -> None:
    with pytest.raises(DocumentError):
        parse_yaml("[" * 10_000, "f.yml", Rules)


def test_a_file_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match=r"absent\.yml: cannot be read: No such file"):
        load_yaml(tmp_path / "absent.yml", Rules)
    (tmp_path / "latin.yml").write_bytes(b"a: 1\nb: \xe9\n")
    with pytest.raises(DocumentError, match=r"latin\.yml:2:1: not UTF-8"):
        load_yaml(tmp_path / "latin.yml", Rules)


class Collector(Settings):
    enabled: bool = True
    interval: Duration = Field(timedelta(seconds=5), description="spacing")


class Example(DatabaseSettings):
    cpu: Collector = Collector()
    labels: dict[str, str] = {}
    names: list[str] = []


def test_a_later_layer_wins(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text('log_level = "debug"\n[cpu]\ninterval = "1s"\n')
    environ = {"VERVET_CPU_INTERVAL": "2s", "VERVET_LABELS": "zone=a,rack=7"}
    loaded = load(Example, environ=environ, flags={"cpu.interval": "3s"}, file=file)
    assert loaded.cpu.interval == timedelta(seconds=3)
    assert loaded.log_level == "debug"
    assert loaded.labels == {"zone": "a", "rack": "7"}
    assert load(Example, environ=environ, file=file).cpu.interval == timedelta(seconds=2)


def test_a_secret_can_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("postgresql://u:p@h/d\n")
    loaded = load(Example, environ={"VERVET_DATABASE_URL_FILE": str(tmp_path / "url")})
    assert loaded.database_url == SecretStr("postgresql://u:p@h/d")
    assert "p@h" not in repr(loaded)


@pytest.mark.parametrize(
    ("environ", "flags", "expected"),
    [
        (
            {"VERVET_CPU_INTERVAL": "soon"},
            {},
            "VERVET_CPU_INTERVAL: cpu.interval: read 'soon'; 'soon' is not a duration",
        ),
        ({}, {"cpu.enabled": "maybe"}, "--cpu-enabled: cpu.enabled: read 'maybe'; input should"),
        ({"VERVET_LABELS": "zone"}, {}, "VERVET_LABELS: read 'zone'; expected name=value"),
        (
            {"VERVET_DATABSE_URL": "x"},
            {},
            "VERVET_DATABSE_URL: unknown setting; did you mean 'VERVET_DATABASE_URL'?",
        ),
    ],
)
def test_a_wrong_setting_names_its_origin(
    environ: dict[str, str], flags: dict[str, str], expected: str
) -> None:
    with pytest.raises(DocumentError) as raised:
        load(Example, environ=environ, flags=flags)
    assert str(raised.value).startswith(expected)


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("listen", "8420"),
        ("listen", "127.0.0.1:99999"),
        ("listen", "127.0.0.1:"),
        ("broker_url", "broker.example"),
        ("broker_url", "http://broker.example"),
        ("broker_url", "amqp://user:pa/ss@broker.example"),
        ("database_url", "db.example/vervet"),
        ("database_url", "mysql://db.example/vervet"),
        ("database_url", "postgresql://user:pa/ss@db.example/vervet"),
    ],
)
def test_an_address_that_cannot_be_is_refused_before_anything_starts(
    setting: str, text: str
) -> None:
    with pytest.raises(DocumentError) as raised:
        load(DatabaseSettings, environ={}, flags={setting: text})
    (problem,) = raised.value.problems
    assert "; expected " in problem or ": expected " in problem
    assert "pa/" not in problem


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("listen", ":8420"),
        ("listen", "[::1]:8420"),
        ("broker_url", "amqps://user:p%2Fss@broker.example/vhost"),
        ("database_url", "postgresql://vervet@/vervet?host=/run/postgres"),
        ("database_url", "postgres://user:secret@a.example:5432,b.example:5433/vervet"),
    ],
)
def test_every_form_of_an_address_is_taken(setting: str, text: str) -> None:
    read = getattr(load(DatabaseSettings, environ={}, flags={setting: text}), setting)
    assert text == (read.get_secret_value() if isinstance(read, SecretStr) else read)


def test_a_span_that_is_out_of_range_is_told_as_it_was_written() -> None:
    class Bounded(Settings):
        patience: Duration = Field(timedelta(seconds=5), le=timedelta(minutes=1))

    with pytest.raises(DocumentError, match="patience: read 1m30s; "):
        load(Bounded, environ={"VERVET_PATIENCE": "90s"})


def test_a_wrong_file_is_told_with_line_and_column(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text('# comment\n[cpu]\n  intervall = "5s"\nenabled = 7\n')
    with pytest.raises(DocumentError) as raised:
        load(Example, environ={}, file=file)
    assert raised.value.problems == [
        f"{file}:4:1: cpu.enabled: read 7; input should be a valid boolean, "
        "unable to interpret input",
        f"{file}:3:3: cpu.intervall: unknown key 'intervall'; did you mean 'interval'?",
    ]


def test_broken_toml_is_told_with_line_and_column(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text("a = 1\nb = \n")
    with pytest.raises(DocumentError) as raised:
        load_toml(file, Rules)
    assert str(raised.value) == f"{file}:2:5: Invalid value"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("15s", 15), ("1h30m", 5400), ("250ms", 0.25), ("1d", 86400), ("0", 0), ("1y", 31_536_000)],
)
def test_durations_are_prometheus_own(text: str, seconds: float) -> None:
    assert parse_duration(text).total_seconds() == seconds


@pytest.mark.parametrize("text", ["", "5", "s", "1.5s", "-1s", "1m1h", "5 m", "999999999999y"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"duration|longer"):
        parse_duration(text)


@given(st.integers(0, MAX_MILLISECONDS))
def test_durations_round_trip(milliseconds: int) -> None:
    span = timedelta(milliseconds=milliseconds)
    assert parse_duration(format_duration(span)) == span
