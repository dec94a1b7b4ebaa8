"""The routing document, in Alertmanager's format, and the tree that alerts are routed by.

https://prometheus.io/docs/alerting/latest/configuration/
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, SecretStr, model_validator

from schemas.durations import Duration
from schemas.matchers import Matcher, go_quote, matches_all, parse_matchers
from schemas.receivers import (
    Addresses,
    EmailConfig,
    HostPort,
    HttpConfig,
    Line,
    Problem,
    Receiver,
    RoutingModel,
    TlsConfig,
    refuse,
)

GROUP_WAIT = timedelta(seconds=30)
GROUP_INTERVAL = timedelta(minutes=5)
REPEAT_INTERVAL = timedelta(hours=4)
"""Alertmanager's defaults of the root route."""

GROUP_BY_ALL = "..."
"""The word in `group_by` that stands for all of an alert's labels."""


def _matchers(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError('expected a text such as severity="critical"')
    return parse_matchers(value)


MatcherLine = Annotated[tuple[Matcher, ...], BeforeValidator(_matchers)]


class Route(RoutingModel):
    """A node of the routing tree; what is None is inherited from the parent."""

    not_yet = frozenset({"mute_time_intervals", "active_time_intervals", "labels"})

    receiver: str | None = None
    group_by: tuple[str, ...] | None = None
    matchers: tuple[MatcherLine, ...] = ()
    continue_: bool = Field(False, alias="continue")
    group_wait: Duration | None = None
    group_interval: Duration | None = None
    repeat_interval: Duration | None = None
    routes: tuple["Route", ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _refuse_deprecated(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            old = [key for key in ("match", "match_re") if key in data]
            refuse(cls, [((key,), f"{key} is deprecated; write it as matchers") for key in old])
        return data

    @model_validator(mode="after")
    def _check(self) -> "Route":
        problems: list[Problem] = []
        for key in ("group_interval", "repeat_interval"):
            if getattr(self, key) == timedelta(0):
                problems.append(((key,), "expected more than 0"))
        names = self.group_by or ()
        if GROUP_BY_ALL in names and len(names) > 1:
            problems.append((("group_by",), "'...' stands for all labels; name no others beside"))
        elif len(set(names)) < len(names) or "" in names:
            problems.append((("group_by",), "expected different label names"))
        refuse(type(self), problems)
        return self


class Global(RoutingModel):
    """What receivers have in common."""

    not_yet = frozenset(
        {"smtp_auth_secret", "smtp_auth_secret_file", "smtp_auth_identity"}
        | {"slack_api_url", "slack_api_url_file", "slack_app_token", "slack_app_token_file"}
        | {"slack_app_url", "pagerduty_url", "opsgenie_api_key", "opsgenie_api_key_file"}
        | {"opsgenie_api_url", "wechat_api_url", "wechat_api_secret", "wechat_api_secret_file"}
        | {"wechat_api_corp_id", "victorops_api_key", "victorops_api_key_file"}
        | {"victorops_api_url", "telegram_api_url", "telegram_bot_token"}
        | {"telegram_bot_token_file", "webex_api_url", "rocketchat_api_url", "rocketchat_token"}
        | {"rocketchat_token_file", "rocketchat_token_id", "rocketchat_token_id_file"}
        | {"jira_api_url", "mattermost_webhook_url", "mattermost_webhook_url_file"}
    )

    resolve_timeout: Duration = timedelta(minutes=5)
    """Never used, as with alerts from Prometheus: our transitions say themselves when one ends."""
    http_config: HttpConfig | None = None
    smtp_from: Addresses | None = None
    smtp_smarthost: HostPort | None = None
    smtp_hello: Line = "localhost"
    smtp_auth_username: Line | None = None
    smtp_auth_password: SecretStr | None = None
    smtp_auth_password_file: str | None = None
    smtp_require_tls: bool = True
    smtp_force_implicit_tls: bool | None = None
    smtp_tls_config: TlsConfig | None = None


class RoutingDocument(RoutingModel):
    """A whole document. After validation every receiver that a route names exists."""

    not_yet = frozenset(
        {"inhibit_rules", "time_intervals", "mute_time_intervals", "templates", "tracing"}
        | {"event_recorder"}
    )

    global_: Global = Field(Global(), alias="global")
    route: Route
    receivers: tuple[Receiver, ...]

    @model_validator(mode="after")
    def _check(self) -> "RoutingDocument":
        refuse(type(self), [*self._bad_root(), *self._bad_receivers(), *self._bad_names()])
        return self

    def _bad_root(self) -> Iterator[Problem]:
        if not self.route.receiver:
            yield ("route",), "the root route needs a receiver"
        if self.route.matchers:
            yield ("route", "matchers"), "the root route takes every alert: it has no matchers"
        if self.route.continue_:
            yield ("route", "continue"), "the root route has no siblings to continue with"

    def _bad_receivers(self) -> Iterator[Problem]:
        seen: set[str] = set()
        for index, receiver in enumerate(self.receivers):
            if receiver.name in seen:
                yield ("receivers", index, "name"), f"{receiver.name!r} is defined twice"
            seen.add(receiver.name)
            for position, email in enumerate(receiver.email_configs):
                for key, value in (
                    ("smarthost", email.smarthost or self.global_.smtp_smarthost),
                    ("from", email.from_ or self.global_.smtp_from),
                ):
                    if value is None:
                        loc = ("receivers", index, "email_configs", position)
                        yield loc, f"{key} is missing, here and as smtp_{key} in global"

    def _bad_names(self) -> Iterator[Problem]:
        known = [receiver.name for receiver in self.receivers]
        stack: list[tuple[tuple[int | str, ...], Route]] = [(("route",), self.route)]
        while stack:
            loc, route = stack.pop()
            if route.receiver and route.receiver not in known:
                yield (
                    (*loc, "receiver"),
                    f"receiver {route.receiver!r} is not defined; known: {', '.join(known)}",
                )
            stack += [((*loc, "routes", i), child) for i, child in enumerate(route.routes)]

    def email(self, config: EmailConfig) -> EmailConfig:
        """An e-mail channel with everything that it takes from `global`."""
        common = self.global_
        own = config.model_copy(
            update={
                "from_": config.from_ or common.smtp_from,
                "smarthost": config.smarthost or common.smtp_smarthost,
                "hello": config.hello or common.smtp_hello,
                "auth_username": config.auth_username or common.smtp_auth_username,
                "tls_config": config.tls_config or common.smtp_tls_config,
            }
        )
        if own.auth_password is None and own.auth_password_file is None:
            own = own.model_copy(
                update={
                    "auth_password": common.smtp_auth_password,
                    "auth_password_file": common.smtp_auth_password_file,
                }
            )
        if own.require_tls is None:
            own = own.model_copy(update={"require_tls": common.smtp_require_tls})
        if own.force_implicit_tls is None:
            own = own.model_copy(update={"force_implicit_tls": common.smtp_force_implicit_tls})
        return own


DEFAULT_ROUTING = RoutingDocument.model_validate(
    {
        "route": {
            "receiver": "inbox",
            "group_by": ["alertname", "instance"],
            "group_wait": "2s",
            "group_interval": "10s",
            "repeat_interval": "1d",
        },
        "receivers": [{"name": "inbox", "inbox_configs": [{}]}],
    }
)
"""Without a document of the user's, all goes to the inbox; short waits, since it wakes nobody."""


@dataclass(frozen=True)
class Node:
    """A route with everything it inherits."""

    receiver: str
    group_by: tuple[str, ...]
    group_wait: timedelta
    group_interval: timedelta
    repeat_interval: timedelta
    matchers: tuple[Matcher, ...]
    continues: bool
    key: str
    """Alertmanager's route key: the matchers from the root down; routes can share one."""
    id: str
    """The same with the position among siblings: unique in a document."""
    children: tuple["Node", ...] = ()

    def match(self, labels: Mapping[str, str]) -> list["Node"]:
        """The routes that an alert goes to: depth first, the first child that matches ends the
        search unless it continues, and a route answers itself where no child of it matches."""
        if not matches_all(self.matchers, labels):
            return []
        found: list[Node] = []
        for child in self.children:
            matched = child.match(labels)
            found += matched
            if matched and not child.continues:
                break
        return found or [self]

    def group_labels(self, labels: Mapping[str, str]) -> dict[str, str]:
        """The labels that an alert is grouped by here."""
        if self.group_by == (GROUP_BY_ALL,):
            return dict(labels)
        return {name: labels[name] for name in self.group_by if name in labels}


def routing_tree(document: RoutingDocument) -> Node:
    """The root of the tree that a document describes."""
    root = Node(
        receiver="",
        group_by=(),
        group_wait=GROUP_WAIT,
        group_interval=GROUP_INTERVAL,
        repeat_interval=REPEAT_INTERVAL,
        matchers=(),
        continues=False,
        key="",
        id="",
    )
    return _node(document.route, root, None)


def _node(route: Route, parent: Node, position: int | None) -> Node:
    matchers = tuple(sorted(matcher for line in route.matchers for matcher in line))
    own = "{" + ",".join(str(matcher) for matcher in matchers) + "}"
    root = position is None
    node = Node(
        receiver=route.receiver or parent.receiver,
        group_by=parent.group_by if route.group_by is None else route.group_by,
        group_wait=_given(route.group_wait, parent.group_wait),
        group_interval=_given(route.group_interval, parent.group_interval),
        repeat_interval=_given(route.repeat_interval, parent.repeat_interval),
        matchers=matchers,
        continues=route.continue_,
        key=own if root else f"{parent.key}/{own}",
        id=own if root else f"{parent.id}/{own}/{position}",
    )
    children = tuple(_node(child, node, index) for index, child in enumerate(route.routes))
    return replace(node, children=children)


def _given(value: timedelta | None, inherited: timedelta) -> timedelta:
    return inherited if value is None else value


def group_key(route_key: str, group_labels: Mapping[str, str]) -> str:
    """Alertmanager's name of a group: `{}/{severity="critical"}:{alertname="Down"}`."""
    pairs = sorted(f"{name}={go_quote(value)}" for name, value in group_labels.items())
    return f"{route_key}:{{{', '.join(pairs)}}}"
