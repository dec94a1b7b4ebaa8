"""The agent's settings, from every layer."""

import os
from datetime import timedelta
from pathlib import Path

import pytest

from services.agent.service import choose_stations
from services.agent.settings import AgentSettings, state_directory
from services.documents import DocumentError
from services.settings import load

EXAMPLE = Path(__file__).parents[2] / "deploy/agent.toml"


def from_toml(tmp_path: Path, text: str, **environ: str) -> AgentSettings:
    path = tmp_path / "agent.toml"
    path.write_text(text)
    return load(AgentSettings, environ=environ, file=path)


def refusal(tmp_path: Path, text: str) -> str:
    with pytest.raises(DocumentError) as refused:
        from_toml(tmp_path, text)
    return str(refused.value)


def test_the_defaults_are_those_of_this_host() -> None:
    settings = AgentSettings()
    assert settings.source == {"job": "node", "instance": os.uname().nodename}
    assert settings.interval == timedelta(seconds=5)


def test_a_file_sets_everything(tmp_path: Path) -> None:
    settings = from_toml(
        tmp_path,
        """
        instance = "web-1"
        interval = "15s"
        labels = { site = "Zürich" }
        [collectors.cpu]
        interval = "1s"
        [collectors.filesystem]
        fs_types_exclude = "^tmpfs$"
        [collectors.netdev]
        enabled = false
        """,
    )
    assert settings.source == {"job": "node", "instance": "web-1", "site": "Zürich"}
    stations = choose_stations(settings)
    assert "netdev" not in stations
    assert stations["cpu"].interval == timedelta(seconds=1)
    assert stations["loadavg"].interval == timedelta(seconds=15)
    assert stations["uname"].interval == timedelta(minutes=1)
    assert settings.options()["filesystem"].fs_types_exclude == "^tmpfs$"  # type: ignore[attr-defined]


def test_a_collectors_own_default_is_never_shorter_than_the_agents_interval() -> None:
    stations = choose_stations(AgentSettings(interval=timedelta(minutes=10)))
    assert stations["uname"].interval == timedelta(minutes=10)


def test_the_environment_reaches_into_tables(tmp_path: Path) -> None:
    settings = from_toml(tmp_path, "", VERVET_COLLECTORS_CPU_ENABLED="false")
    assert "cpu" not in choose_stations(settings)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('interval = "5 seconds"', "agent.toml:1:1: interval: read '5 seconds'"),
        ('interval = "1ms"', "expected 100ms to 1h"),
        ('interval = "2h"', "expected 100ms to 1h"),
        ('[collectors.cpu]\ninterval = "1ms"', "agent.toml:2:1: collectors.cpu.interval: read"),
        ("[collectors.cpuu]\nenabled = true", "cpu"),
        ('[collectors.netdev]\ndevice_exclude = "("', "agent.toml:2:1: collectors.netdev.device"),
        ('instance = ""', "instance is missing"),
        (f'job = "a"\ninstance = "{"x" * 201}"', "agent.toml:2:1: instance: read"),
        ('labels = { "a-b" = "c" }', "not a label name"),
        ('labels = { job = "c" }', "has a setting of its own"),
        ("spool_max_bytes = 1000", "spool_max_bytes"),
        ('format = "xml"', "msgpack"),
    ],
)
def test_a_mistake_is_told_where_it_stands(tmp_path: Path, text: str, told: str) -> None:
    message = refusal(tmp_path, text)
    assert told in message
    assert str(tmp_path / "agent.toml") in message


def test_a_mistake_of_the_whole_shows_no_password(tmp_path: Path) -> None:
    secret = 'broker_url = "amqp://user:CANARY@broker.example"\ninstance = ""'
    message = refusal(tmp_path, secret)
    assert "instance is missing" in message
    assert "CANARY" not in message


def test_an_agent_without_any_collector_is_refused(tmp_path: Path) -> None:
    names = AgentSettings().options()
    text = "".join(f"[collectors.{name}]\nenabled = false\n" for name in names)
    assert "none is enabled" in refusal(tmp_path, text)


def test_the_example_file_is_valid_and_shows_the_defaults(tmp_path: Path) -> None:
    assert load(AgentSettings, environ={}, file=EXAMPLE) == AgentSettings()
    lines = EXAMPLE.read_text().splitlines()
    uncommented = "\n".join(line.removeprefix("#") for line in lines if not line.startswith("# "))
    settings = from_toml(tmp_path, uncommented)
    assert settings.broker_url is not None
    shown = settings.model_dump(exclude={"broker_url", "instance", "labels", "spool_directory"})
    own = AgentSettings().model_dump(
        exclude={"broker_url", "instance", "labels", "spool_directory"}
    )
    assert shown == own


def test_every_setting_is_in_the_example_file() -> None:
    text = EXAMPLE.read_text()
    for name in AgentSettings.model_fields:
        assert name in text, name
    for name, options in AgentSettings().options().items():
        assert f"[collectors.{name}]" in text
        for option in type(options).model_fields:
            assert option in text


def test_state_lies_where_the_platform_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VERVET_HOME", "STATE_DIRECTORY", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert state_directory() == Path("/var/lib/vervet")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert state_directory() == Path("/home/ann/.local/state/vervet")
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert state_directory() == Path("/state/vervet")
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/agent")
    assert state_directory() == Path("/var/lib/agent")
    monkeypatch.setenv("VERVET_HOME", "/srv/vervet")
    assert state_directory() == Path("/srv/vervet")
    assert AgentSettings().spool() == Path("/srv/vervet/spool")
