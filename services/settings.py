"""Settings: one model per service, read from default < file < environment < flag.

A field `spool_directory` is the TOML key of that name (where the service reads a file), the
variable VERVET_SPOOL_DIRECTORY, its twin VERVET_SPOOL_DIRECTORY_FILE (a file that holds the value,
for secrets), and the flag --spool-directory. A table's field `cpu.interval` is VERVET_CPU_INTERVAL
and --cpu-interval. Every mistake is told with the place that it came from.
"""

import argparse
import difflib
import json
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
)

from schemas.durations import format_duration
from services.documents import DocumentError, explain, parse_toml, read_document, toml_position

PREFIX = "VERVET_"
S = TypeVar("S", bound="Settings")
Path_ = tuple[str, ...]


def _checked_listen(text: str) -> str:
    host, colon, port = text.rpartition(":")
    if not colon or any(char.isspace() for char in host) or not port.isascii():
        raise ValueError("expected host:port, such as 127.0.0.1:8420")
    if not port.isdigit() or int(port) > 65_535:
        raise ValueError("expected a port from 0 to 65535 after the last colon")
    return text


def _checked_url(secret: SecretStr, *schemes: str) -> SecretStr:
    """Says nothing of what it read: that may be a password in the wrong place."""
    url = secret.get_secret_value()
    expected = f"expected {schemes[0]}://user:password@host:port/…"
    try:
        parts = urlsplit(url)
        known = parts.scheme in schemes and (parts.netloc or parts.path)
        # asyncpg takes several hosts, each with its port.
        fits = known and ("," in parts.netloc or parts.port is None or parts.port > 0)
    except ValueError:
        fits = False
    if url and not fits:  # an empty one is a missing one, which is told where it is needed
        raise ValueError(f"{expected}, special characters of a password as %XX")
    return secret


Listen = Annotated[str, AfterValidator(_checked_listen)]
"""host:port, where an empty host is every address."""

BrokerUrl = Annotated[SecretStr, AfterValidator(lambda url: _checked_url(url, "amqp", "amqps"))]
DatabaseUrl = Annotated[
    SecretStr, AfterValidator(lambda url: _checked_url(url, "postgresql", "postgres"))
]


class Settings(BaseModel):
    """Base of all settings: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class ServiceSettings(Settings):
    """What every process has."""

    broker_url: BrokerUrl | None = Field(
        None, description="amqp://user:password@host:5672/vhost, or amqps:// with TLS"
    )
    listen: Listen = Field(
        "127.0.0.1:8420",
        description="host:port of /metrics, /-/healthy and /-/ready (and of the api)",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least severity that is logged"
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="text for people, json for machines"
    )


class DatabaseSettings(ServiceSettings):
    """What every process with a database has."""

    database_url: DatabaseUrl | None = Field(
        None, description="postgresql://user:password@host:5432/database"
    )
    database_pool_size: int = Field(
        4, ge=1, le=100, description="connections that this process opens at most"
    )

    @property
    def database(self) -> str:
        """The database's URL. Raises MissingSetting."""
        return required(self.database_url, "database_url")


class MissingSetting(DocumentError):
    """A setting without which this process cannot run."""


def required(secret: SecretStr | None, name: str) -> str:
    """The value of a setting that has no default. Raises MissingSetting."""
    if secret is None or not secret.get_secret_value():
        variable, flag = variable_name((name,)), flag_name((name,))
        raise MissingSetting([f"{name}: missing; set {variable} (or {variable}_FILE) or {flag}"])
    return secret.get_secret_value()


def variable_name(path: Path_) -> str:
    """Environment variable of a setting."""
    return PREFIX + "_".join(path).upper()


def flag_name(path: Path_) -> str:
    """Command-line flag of a setting."""
    return "--" + "-".join(path).replace("_", "-")


def fields(model: type[BaseModel], path: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    """Every setting of a model with its path; tables are walked into."""
    for name, info in model.model_fields.items():
        inner = info.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from fields(inner, (*path, name))
        else:
            yield (*path, name), info


def add_flags(parser: argparse.ArgumentParser, model: type[BaseModel]) -> None:
    """A flag for every setting, with its description and default."""
    for path, info in fields(model):
        default = info.get_default(call_default_factory=True)
        shown = "" if default in (None, "", [], {}) else f" (default: {_shown(default)})"
        parser.add_argument(
            flag_name(path),
            dest=".".join(path),
            default=argparse.SUPPRESS,
            metavar=path[-1].upper(),
            help=f"{info.description or path[-1]}{shown} [{variable_name(path)}]".replace(
                "%", "%%"
            ),
        )


def _shown(value: Any) -> str:
    return format_duration(value) if isinstance(value, timedelta) else str(value)


def load(
    model: type[S],
    *,
    environ: Mapping[str, str],
    flags: Mapping[str, str] | None = None,
    file: Path | None = None,
) -> S:
    """The settings from all layers. `flags` maps dotted paths to texts. Raises DocumentError."""
    tree: dict[str, Any] = {}
    origins: dict[Path_, str] = {}
    text = ""
    if file is not None:
        text = read_document(file)
        tree = parse_toml(text, str(file))
    known = dict(fields(model))
    problems = []
    for path, value, origin in _overrides(known, environ, flags or {}):
        try:
            _put(tree, path, _parse(known[path].annotation, value))
        except ValueError as error:
            problems.append(f"{origin}: {error}")
        origins[path] = origin
    problems += _unknown_variables(known, environ)
    if problems:
        raise DocumentError(problems)
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise DocumentError(
            [
                f"{_origin(details['loc'], origins, file, text)}: {explain(details, model)}"
                for details in error.errors(include_url=False)
            ]
        ) from error


def _overrides(
    known: Mapping[Path_, Any], environ: Mapping[str, str], flags: Mapping[str, str]
) -> Iterator[tuple[Path_, str, str]]:
    for path in known:
        variable = variable_name(path)
        if f"{variable}_FILE" in environ:
            name = Path(environ[f"{variable}_FILE"])
            yield path, read_document(name).strip(), f"{variable}_FILE"
        if variable in environ:
            yield path, environ[variable], variable
        if ".".join(path) in flags:
            yield path, flags[".".join(path)], flag_name(path)


def _put(tree: dict[str, Any], path: Path_, value: Any) -> None:
    for part in path[:-1]:
        inner = tree.setdefault(part, {})
        tree = inner if isinstance(inner, dict) else {}
    tree[path[-1]] = value


def _parse(annotation: Any, text: str) -> Any:
    """Texts become what a model takes; lists are `a,b`, maps are `a=b,c=d` or JSON."""
    kind = next((a for a in get_args(annotation) if a is not type(None)), annotation)
    kind = get_origin(annotation) or kind if get_origin(annotation) in (list, dict, tuple) else kind
    kind = get_origin(kind) or kind
    if kind not in (list, tuple, dict):
        return text
    if text.lstrip().startswith(("[", "{")):
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"read {text[:60]!r}; not JSON: {error}") from error
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if kind is not dict:
        return parts
    if bad := next((part for part in parts if "=" not in part), None):
        raise ValueError(f"read {bad!r}; expected name=value")
    return dict(part.split("=", 1) for part in parts)


_OTHER_VARIABLES = (
    "VERVET_API",
    "VERVET_HOME",
    "VERVET_CONFIG",
    "VERVET_FAILPOINT",
    "VERVET_TEST_",
)


def _unknown_variables(known: Mapping[Path_, Any], environ: Mapping[str, str]) -> list[str]:
    """Variables that are nearly a setting's: a typing error must not pass in silence.

    Processes of one host share an environment, so a variable of another service is no mistake.
    """
    names = {variable_name(path) for path in known}
    problems = []
    for variable in environ:
        plain = variable.removesuffix("_FILE")
        if not variable.startswith(PREFIX) or plain in names:
            continue
        if variable.startswith(_OTHER_VARIABLES):
            continue
        near = difflib.get_close_matches(plain, sorted(names), n=1, cutoff=0.9)
        if near:
            problems.append(f"{variable}: unknown setting; did you mean {near[0]!r}?")
    return problems


def _origin(
    loc: tuple[int | str, ...], origins: Mapping[Path_, str], file: Path | None, text: str
) -> str:
    path = tuple(str(part) for part in loc)
    for end in range(len(path), 0, -1):
        if path[:end] in origins:
            return origins[path[:end]]
    if file is None:
        return "settings"
    line, column = toml_position(text, loc)
    return f"{file}:{line}:{column}"
