"""Reading what an evaluator saved: alerts, and the frames that rules look back on."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np

from engine.alerting import Alert
from schemas.transitions import AlertState
from services.clock import microseconds
from services.database import Connection
from services.evaluator.evaluation import AlertKey, Instance
from services.evaluator.memory import Tracked, restored_row, track
from services.evaluator.rules import RuleSet


async def load_alerts(
    connection: Connection, rules: RuleSet, instances: dict[str, Instance]
) -> list[tuple[Instance, AlertKey, Alert]]:
    """Fill in the instances' alerts; returns those whose rule is gone."""
    orphans = []
    for row in await connection.fetch(
        "select * from alerts where instance = any($1)", list(instances)
    ):
        instance = instances[row["instance"]]
        alert = Alert(
            row["labels"],
            row["annotations"],
            AlertState(row["state"]),
            microseconds(row["active_at"]),
            row["value"],
            row["fired_at"] and microseconds(row["fired_at"]),
            row["kept_since"] and microseconds(row["kept_since"]),
        )
        index = _rule_of(rules, row["rule"], alert)
        if index is None:
            orphans.append((instance, AlertKey(row["rule"], row["fingerprint"]), alert))
        else:
            instance.alerts.setdefault(index, {})[row["fingerprint"]] = alert
    return orphans


def _rule_of(rules: RuleSet, key: str, alert: Alert) -> int | None:
    """Which of the rules of one key made an alert: one whose plain labels the alert has."""
    for index in rules.index_of.get(key, ()):
        plain = [(n, t.text) for n, t in rules.rules[index].alert.labels if "{{" not in t.text]
        if all(alert.labels.get(name, "") == text for name, text in plain):
            return index
    return None


async def load_windows(
    connection: Connection, rules: RuleSet, instances: dict[str, Instance]
) -> None:
    """Fill the instances' memories with the frames that were saved."""
    saved: dict[int, tuple[Tracked, Any]] = {}
    for row in await connection.fetch(
        "select * from window_layouts where instance = any($1)", list(instances)
    ):
        memory = instances[row["instance"]].memory
        job = row["source"]["job"]
        tracked = memory.tracked.get((job, row["layout"]))
        if tracked is None or tracked.source != row["source"]:
            tracked = track(rules, row["instance"], row["source"], row["layout"])
            memory.add(job, tracked)
        tracked.saved = tracked.saved or tracked.key == row["key"]
        saved[row["key"]] = (tracked, np.frombuffer(row["columns"], "<i4"))
    frames: defaultdict[tuple[int, int], dict[int, bytes]] = defaultdict(dict)
    for row in await connection.fetch(
        "select key, at, values from window_frames where key = any($1) order by at", list(saved)
    ):
        frames[row["at"], id(saved[row["key"]][0])][row["key"]] = row["values"]
    for (at_us, _), rows in frames.items():
        _restore(saved, at_us, rows.items())


def _restore(
    saved: dict[int, tuple[Tracked, Any]], at_us: int, rows: Iterable[tuple[int, bytes]]
) -> None:
    """One instant of one layout. Of several selections of columns, the present one is preferred."""
    key, values = max(rows, key=lambda row: saved[row[0]][0].key == row[0])
    tracked, columns = saved[key]
    if tracked.ring is not None:
        tracked.ring.append(at_us, restored_row(columns, values, tracked.positions))
    tracked.last_us = max(tracked.last_us, at_us)
