"""Receivers of a routing document, in Alertmanager's format: where notifications go, and how.

https://prometheus.io/docs/alerting/latest/configuration/#receiver
"""

from collections.abc import Iterable, Mapping
from email.errors import MessageError
from email.headerregistry import HeaderRegistry
from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from schemas.durations import Duration

REFUSED = "refused"
"""pydantic's error type of what refuse() raises: the reason says it all."""


class RoutingModel(BaseModel):
    """A part of a routing document: immutable, an unknown key is an error.

    What Alertmanager knows and we do not build yet is refused by name: a silence or a receiver that
    is quietly ignored would be found out during an outage.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    not_yet: ClassVar[frozenset[str]] = frozenset()
    """Keys of Alertmanager's that are refused with a message of their own."""

    @model_validator(mode="wrap")
    @classmethod
    def _refuse_not_yet(cls, data: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(data, Mapping):
            return validate(data)
        found = [key for key in data if key in cls.not_yet and data[key] not in (None, [], {})]
        problems = [_problem((key,), f"{key} is not supported yet; remove it") for key in found]
        try:
            model = validate({key: data[key] for key in data if key not in cls.not_yet})
        except ValidationError as error:
            problems += [_again(details) for details in error.errors(include_url=False)]
        if problems:
            raise ValidationError.from_exception_data(cls.__name__, problems)
        return model


Problem = tuple[tuple[int | str, ...], str]


def refuse(model: type[BaseModel], problems: Iterable[Problem]) -> None:
    """Raises one error that shows each problem at its own place of the document, if any."""
    if found := [_problem(loc, reason) for loc, reason in problems]:
        raise ValidationError.from_exception_data(model.__name__, found)


def _problem(loc: tuple[int | str, ...], reason: str) -> InitErrorDetails:
    kind = PydanticCustomError(REFUSED, "{reason}", {"reason": reason})
    return InitErrorDetails(type=kind, loc=loc, input=None)


def _again(details: ErrorDetails) -> InitErrorDetails:
    if details["type"] == REFUSED:
        return _problem(details["loc"], details["msg"])
    return InitErrorDetails(
        type=details["type"],
        loc=details["loc"],
        input=details["input"],
        ctx=details.get("ctx", {}),
    )


def _one_line(text: str) -> str:
    if any(ord(char) < 32 or ord(char) == 127 for char in text):
        raise ValueError("expected text without line breaks or other control characters")
    if "{{" in text:
        raise ValueError("templates ({{ … }}) are not supported yet; write plain text")
    return text


def _http_url(url: SecretStr) -> SecretStr:
    try:
        parts = urlsplit(_one_line(url.get_secret_value()))
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError as error:
        raise ValueError(f"expected http://host/… or https://host/…; {error}") from error
    if not usable:
        raise ValueError("expected http://host/… or https://host/…")
    return url


_registry = HeaderRegistry()


def _addresses(text: str) -> str:
    try:
        header: Any = _registry("to", _one_line(text))
        usable = header.addresses and all(a.username and a.domain for a in header.addresses)
    except (MessageError, ValueError, IndexError):
        usable = False
    if not usable or header.defects:
        raise ValueError('expected addresses such as ops@example.org or "Ops <ops@example.org>"')
    return text


def _host_port(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not host.strip("[]") or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError("expected host:port, such as mail.example.org:587")
    return _one_line(text)


Line = Annotated[str, AfterValidator(_one_line)]
"""Text that goes into a header: no line break can start another header."""

HttpUrl = Annotated[SecretStr, AfterValidator(_http_url)]
"""A URL, kept secret since many hold a token. Written by the administrator, so any address goes."""

Addresses = Annotated[str, AfterValidator(_addresses)]
HostPort = Annotated[str, AfterValidator(_host_port)]


class TlsConfig(RoutingModel):
    """TLS of a client; the server is verified against the system's authorities by default."""

    not_yet = frozenset({"ca", "cert", "key", "ca_ref", "cert_ref", "key_ref"} | {"max_version"})

    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    server_name: Line | None = None
    min_version: Literal["TLS12", "TLS13"] = "TLS12"
    insecure_skip_verify: bool = False


class Authorization(RoutingModel):
    """The Authorization header: a token, "Bearer" unless `type` says otherwise."""

    not_yet = frozenset({"credentials_ref"})

    type: Line = "Bearer"
    credentials: SecretStr | None = None
    credentials_file: str | None = None


class BasicAuth(RoutingModel):
    """HTTP basic authentication."""

    not_yet = frozenset({"username_file", "username_ref", "password_ref"})

    username: Line = ""
    password: SecretStr | None = None
    password_file: str | None = None


class HttpHeader(RoutingModel):
    """Values of one HTTP header."""

    not_yet = frozenset({"files"})

    values: tuple[Line, ...] = ()
    secrets: tuple[SecretStr, ...] = ()


HeaderName = Annotated[str, Field(pattern=r"\A[A-Za-z0-9!#$%&'*+.^_`|~-]+\z")]


def _never(value: Any) -> Any:
    if value not in (None, False):
        raise ValueError("redirects are never followed; a webhook's answer must not choose a host")
    return False


class HttpConfig(RoutingModel):
    """How an HTTP receiver is reached. A proxy of the environment is not used."""

    not_yet = frozenset(
        {"oauth2", "bearer_token", "bearer_token_file", "proxy_url", "no_proxy", "enable_http2"}
        | {"proxy_from_environment", "proxy_connect_header"}
    )

    authorization: Authorization | None = None
    basic_auth: BasicAuth | None = None
    http_headers: dict[HeaderName, HttpHeader] = {}
    tls_config: TlsConfig | None = None
    follow_redirects: Annotated[bool, BeforeValidator(_never)] = False

    @model_validator(mode="after")
    def _one_way_to_authorize(self) -> "HttpConfig":
        if self.authorization and self.basic_auth:
            refuse(type(self), [(("basic_auth",), "authorization and basic_auth exclude another")])
        return self


class InboxConfig(RoutingModel):
    """Our own receiver: kept in the database and shown on the page."""

    send_resolved: bool = True


class WebhookConfig(RoutingModel):
    """An HTTP receiver of Alertmanager's webhook body, version 4."""

    not_yet = frozenset({"payload"})

    send_resolved: bool = True
    url: HttpUrl | None = None
    url_file: str | None = None
    max_alerts: int = Field(0, ge=0)
    """Alerts in one body, at most; 0 is all of them."""
    timeout: Duration | None = None
    http_config: HttpConfig | None = None

    @model_validator(mode="after")
    def _one_url(self) -> "WebhookConfig":
        if (self.url is None) == (self.url_file is None):
            refuse(type(self), [((), "expected one of url and url_file")])
        return self


class EmailConfig(RoutingModel):
    """Recipients and the server that takes their mail. What is None comes from `global`."""

    not_yet = frozenset({"html", "text", "auth_secret", "auth_secret_file", "auth_identity"})
    not_yet |= {"threading"}

    send_resolved: bool = False
    to: Addresses
    from_: Addresses | None = Field(None, alias="from")
    smarthost: HostPort | None = None
    hello: Line | None = None
    auth_username: Line | None = None
    auth_password: SecretStr | None = None
    auth_password_file: str | None = None
    require_tls: bool | None = None
    force_implicit_tls: bool | None = None
    tls_config: TlsConfig | None = None
    headers: dict[HeaderName, Line] = {}

    @model_validator(mode="after")
    def _different_headers(self) -> "EmailConfig":
        names = [name.lower() for name in self.headers]
        if len(set(names)) < len(names):
            refuse(type(self), [(("headers",), "a header stands here twice")])
        return self


class Receiver(RoutingModel):
    """A named list of channels; without any, alerts routed here are told to nobody."""

    not_yet = frozenset(
        f"{kind}_configs"
        for kind in (
            *("discord", "incidentio", "jira", "mattermost", "msteams", "msteamsv2", "opsgenie"),
            *("pagerduty", "pushover", "rocketchat", "slack", "sns", "telegram", "victorops"),
            *("webex", "wechat"),
        )
    ) | {"labels"}

    name: Annotated[Line, Field(min_length=1, max_length=200)]
    inbox_configs: tuple[InboxConfig, ...] = ()
    webhook_configs: tuple[WebhookConfig, ...] = ()
    email_configs: tuple[EmailConfig, ...] = ()
