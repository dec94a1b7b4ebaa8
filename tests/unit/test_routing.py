from datetime import timedelta
from pathlib import Path

import pytest

from schemas.routing import (
    DEFAULT_ROUTING,
    Node,
    RoutingDocument,
    group_key,
    routing_tree,
)
from services.documents import DocumentError, parse_yaml


def tree(text: str) -> Node:
    return routing_tree(document(text))


def document(text: str) -> RoutingDocument:
    names = sorted({word.split()[-1] for word in text.splitlines() if "receiver:" in word})
    receivers = "".join(f"- name: {name}\n" for name in names)
    return parse_yaml(f"{text}\nreceivers:\n{receivers}", "routing.yml", RoutingDocument)


TREE = """
route:
  receiver: root
  group_by: [alertname]
  routes:
  - matchers: ['owner="team-A"']
    receiver: a
    routes:
    - matchers: ['env="testing"']
      receiver: a-testing
      group_by: ['...']
    - matchers: ['env="production"']
      receiver: a-production
      group_wait: 1m
      continue: true
    - matchers: ['env=~"produ.*", job!=""']
      receiver: a-jobs
      group_by: []
  - matchers: ['owner=~"team-(B|C)"']
    group_by: [owner]
    receiver: bc
"""


@pytest.mark.parametrize(
    ("labels", "receivers"),
    [
        ({}, ["root"]),
        ({"owner": "team-A"}, ["a"]),
        ({"owner": "team-A", "env": "unset"}, ["a"]),
        ({"owner": "team-A", "env": "testing"}, ["a-testing"]),
        ({"owner": "team-A", "env": "production"}, ["a-production"]),
        ({"owner": "team-A", "env": "production", "job": "x"}, ["a-production", "a-jobs"]),
        ({"owner": "team-B"}, ["bc"]),
        ({"owner": "team-BC"}, ["root"]),
    ],
)
def test_an_alert_goes_to_the_first_matching_branch_and_on_where_it_continues(
    labels: dict[str, str], receivers: list[str]
) -> None:
    assert [node.receiver for node in tree(TREE).match(labels)] == receivers


def test_routes_inherit_what_they_do_not_say() -> None:
    (node,) = tree(TREE).match({"owner": "team-A", "env": "production"})
    assert (node.group_wait, node.group_by) == (timedelta(minutes=1), ("alertname",))
    (node,) = tree(TREE).match({"owner": "team-A"})
    assert node.group_wait == timedelta(seconds=30)
    assert node.group_interval == timedelta(minutes=5)
    assert node.repeat_interval == timedelta(hours=4)


def test_grouping_takes_the_named_labels_all_of_them_or_none() -> None:
    labels = {"alertname": "Down", "owner": "team-A", "env": "testing"}
    (node,) = tree(TREE).match(labels)
    assert node.group_labels(labels) == labels
    labels = {"alertname": "Down"}
    (node,) = tree(TREE).match(labels)
    assert node.group_labels(labels) == labels
    labels = {"alertname": "Down", "owner": "team-A", "env": "production", "job": "x"}
    assert tree(TREE).match(labels)[1].group_labels(labels) == {}
    labels = {"alertname": "Down", "owner": "team-B"}
    (node,) = tree(TREE).match(labels)
    assert node.group_labels(labels) == {"owner": "team-B"}


def test_a_group_is_named_as_alertmanager_names_it() -> None:
    (node,) = tree(TREE).match({"owner": "team-A", "env": "testing"})
    assert (
        group_key(node.key, {"owner": 'team"A', "env": "é\n"})
        == r'{}/{owner="team-A"}/{env="testing"}:{env="é\n", owner="team\"A"}'
    )


def test_routes_that_share_a_key_have_different_identities() -> None:
    text = "route:\n  receiver: r\n  routes:\n" + "  - {matchers: [a=b], continue: true}\n" * 2
    first, second = tree(text).children
    assert first.key == second.key
    assert first.id != second.id


def test_without_a_document_everything_goes_to_the_inbox() -> None:
    root = routing_tree(DEFAULT_ROUTING)
    (node,) = root.match({"alertname": "Down", "instance": "web-1", "job": "node"})
    assert node.receiver == "inbox"
    assert node.group_by == ("alertname", "instance")
    assert node.group_wait <= timedelta(seconds=10)
    assert len(DEFAULT_ROUTING.receivers[0].inbox_configs) == 1


VALID = """
global: {smtp_smarthost: 'mail.example.org:587', smtp_from: vervet@example.org}
route:
  receiver: ops
  group_by: [alertname]
receivers:
- name: ops
  email_configs:
  - to: ops@example.org
"""


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "  group_by:",
            "  reciever: x\n  group_by:",
            "route.reciever: unknown key 'reciever'; did you mean 'receiver'?",
        ),
        ("receiver: ops", "receiver: nobody", "route.receiver: receiver 'nobody' is not"),
        ("  receiver: ops", "  group_wait: 1s", "the root route needs a receiver"),
        ("[alertname]", "[alertname, '...']", "stands for all labels"),
        ("[alertname]", "[alertname, alertname]", "expected different label names"),
        ("  group_by:", "  matchers: [a=b]\n  group_by:", "it has no matchers"),
        ("  group_by:", "  continue: true\n  group_by:", "no siblings"),
        ("  group_by:", "  group_interval: 0s\n  group_by:", "route.group_interval: expected more"),
        ("  group_by:", "  group_wait: 5x\n  group_by:", "'5x' is not a duration"),
        ("  group_by:", "  routes: [{matchers: ['a=~(']}]\n  group_by:", "not a regular express"),
        ("  group_by:", "  routes: [{match: {a: b}}]\n  group_by:", "match is deprecated"),
        ("- name: ops", "- name: ops\n- name: ops", "'ops' is defined twice"),
        ("to: ops@example.org", 'to: "ops@example.org\\nBcc: x@example.org"', "expected addresses"),
        ("to: ops@example.org", "to: '{{ .CommonLabels.owner }}'", "expected addresses"),
        ("smtp_from: vervet@example.org", "smtp_hello: x", "from is missing"),
        ("587", "0", "expected host:port"),
        ("  - to:", "  - headers: {'X-A': \"b\\r\\nBcc: c\"}\n    to:", "without line breaks"),
        (
            "email_configs:",
            "webhook_configs: [{url: 'file:///etc/passwd'}]\n  email_configs:",
            "ht",
        ),
    ],
)
def test_a_mistake_is_told_with_its_place(old: str, new: str, said: str) -> None:
    parse_yaml(VALID, "routing.yml", RoutingDocument)
    assert VALID.count(old) >= 1
    with pytest.raises(DocumentError, match=r"^routing\.yml:\d+:\d+: ") as caught:
        parse_yaml(VALID.replace(old, new, 1), "routing.yml", RoutingDocument)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("key", "old", "new"),
    [
        ("inhibit_rules", "route:", "inhibit_rules: [{source_matchers: [a=b]}]\nroute:"),
        ("time_intervals", "route:", "time_intervals: [{name: x}]\nroute:"),
        ("templates", "route:", "templates: ['*.tmpl']\nroute:"),
        ("mute_time_intervals", "  group_by", "  routes: [{mute_time_intervals: [x]}]\n  group_by"),
        ("slack_configs", "  email", "  slack_configs: [{channel: '#x'}]\n  email"),
        ("html", "  - to:", "  - html: x\n    to:"),
    ],
)
def test_what_is_not_built_yet_is_refused_by_name_and_never_ignored(
    key: str, old: str, new: str
) -> None:
    with pytest.raises(DocumentError, match=f"{key} is not supported yet"):
        parse_yaml(VALID.replace(old, new, 1), "routing.yml", RoutingDocument)


def test_an_empty_list_of_what_is_not_built_yet_asks_for_nothing() -> None:
    parse_yaml(VALID + "templates: []\ninhibit_rules:\n", "routing.yml", RoutingDocument)


def test_secrets_are_in_no_message_and_no_representation() -> None:
    text = VALID.replace(
        "  email_configs:",
        "  webhook_configs: [{url: 'https://h/CANARY', http_config: {authorization: "
        "{credentials: CANARY}, http_headers: {X: {secrets: [CANARY]}}}}]\n  email_configs:",
    ).replace("smtp_from", "smtp_auth_password: CANARY, smtp_from")
    assert "CANARY" not in repr(parse_yaml(text, "routing.yml", RoutingDocument))
    with pytest.raises(DocumentError) as caught:
        parse_yaml(text.replace("https:", "ftp:"), "routing.yml", RoutingDocument)
    assert "CANARY" not in str(caught.value)


def test_an_email_channel_takes_from_global_what_it_does_not_say() -> None:
    read = parse_yaml(
        VALID.replace("to: ops", "smarthost: 'other:25'\n    to: ops"), "x", RoutingDocument
    )
    email = read.email(read.receivers[0].email_configs[0])
    assert (email.smarthost, email.from_) == ("other:25", "vervet@example.org")
    assert (email.require_tls, email.hello) == (True, "localhost")


def test_deep_nesting_is_refused_and_not_followed(tmp_path: Path) -> None:
    text = "route: " + "{receiver: a, routes: [" * 3000 + "{}" + "]}" * 3000
    with pytest.raises(DocumentError):
        parse_yaml(text, "routing.yml", RoutingDocument)


def test_the_guide_s_example_is_a_valid_document() -> None:
    guide = Path(__file__).parents[2] / "docs" / "guides" / "routing.md"
    example = guide.read_text().split("```yaml\n")[1].split("```")[0]
    root = routing_tree(parse_yaml(example, "routing.md", RoutingDocument))
    labels = {"severity": "critical", "job": "db-main"}
    assert [node.receiver for node in root.match(labels)] == ["on-call", "databases"]
    assert [node.receiver for node in root.match({"job": "web"})] == ["inbox"]
