"""The routing document as this process uses it: the tree, and the channels of each receiver."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from schemas.receivers import Receiver
from schemas.routing import (
    DEFAULT_ROUTING,
    Node,
    RoutingDocument,
    group_key,
    routing_tree,
)
from services.database import Pool
from services.documents import load_yaml
from services.notifier.channels import Channel
from services.notifier.channels.email import EmailChannel
from services.notifier.channels.inbox import InboxChannel
from services.notifier.channels.webhook import WebhookChannel


def load_routing(path: Path | None) -> RoutingDocument:
    """The document at `path`, or the built-in one. Raises DocumentError."""
    return load_yaml(path, RoutingDocument) if path else DEFAULT_ROUTING


@dataclass(frozen=True)
class Routing:
    """Where alerts go. `channels`: by receiver, then by target."""

    root: Node
    digest: str
    channels: Mapping[str, Mapping[str, Channel]]

    @property
    def targets(self) -> dict[str, Channel]:
        """All channels by target, which is unique in a document."""
        return {
            target: one for channels in self.channels.values() for target, one in channels.items()
        }


def build_routing(document: RoutingDocument, directory: Path, pool: Pool) -> Routing:
    """The routing of a document; files that it names are relative to `directory`."""
    channels = {
        receiver.name: _channels(receiver, document, directory, pool)
        for receiver in document.receivers
    }
    text = document.model_dump_json(by_alias=True)
    return Routing(
        routing_tree(document), hashlib.blake2b(text.encode(), digest_size=16).hexdigest(), channels
    )


def _channels(
    receiver: Receiver, document: RoutingDocument, directory: Path, pool: Pool
) -> dict[str, Channel]:
    http = document.global_.http_config
    made: dict[str, list[Channel]] = {
        "inbox": [
            InboxChannel(pool, send_resolved=c.send_resolved) for c in receiver.inbox_configs
        ],
        "webhook": [
            WebhookChannel(c, c.http_config or http, directory) for c in receiver.webhook_configs
        ],
        "email": [EmailChannel(document.email(c), directory) for c in receiver.email_configs],
    }
    return {
        target_name(receiver.name, kind, position): channel
        for kind, channels in made.items()
        for position, channel in enumerate(channels)
    }


def target_name(receiver: str, channel: str, position: int) -> str:
    """Name of one channel of one receiver."""
    return f"{receiver}/{channel}/{position}"


def channel_kind(target: str) -> str:
    """`webhook` of `ops/webhook/0`."""
    return target.rsplit("/", 2)[1]


@dataclass(frozen=True)
class Placement:
    """A group that an alert belongs to."""

    identity: str
    receiver: str
    group_key: str
    group_labels: dict[str, str]
    group_interval_s: float
    repeat_interval_s: float
    due_at: datetime
    """When the group is first told of, if it doesn't exist yet."""


def placements(
    root: Node, labels: Mapping[str, str], starts_at: datetime, now: datetime
) -> list[Placement]:
    """The groups of an alert. One that has fired for `group_wait` already waits no more."""
    found = []
    for node in root.match(labels):
        group_labels = node.group_labels(labels)
        text = json.dumps([node.id, node.receiver, sorted(group_labels.items())])
        waited = starts_at + node.group_wait < now
        found.append(
            Placement(
                hashlib.blake2b(text.encode(), digest_size=16).hexdigest(),
                node.receiver,
                group_key(node.key, group_labels),
                group_labels,
                node.group_interval.total_seconds(),
                node.repeat_interval.total_seconds(),
                now if waited else now + node.group_wait,
            )
        )
    return found
