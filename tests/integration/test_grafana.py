"""The dashboards in deploy/grafana on demo data: panels have rows, variables have values."""

import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from ruamel.yaml import YAML

from schemas.topology import topology
from services.bus_memory import memory_bus
from services.clock import now_us
from tests.api_rig import answers, serving, store
from tests.demo_data import INSTANCES, fleet, series
from tests.processes import eventually

GRAFANA = Path(__file__).parents[2] / "deploy" / "grafana"
DASHBOARDS = sorted((GRAFANA / "dashboards").glob("*.json"))
COLUMNS = 24
WITHOUT_EXPRESSION = {"row", "alertlist"}

VARIABLES = {
    "$__rate_interval": "4m",
    "$__interval": "1m",
    "$__range": "1h",
    "$job": ".*",
    "$instance": ".*",
}

NODE_EXPORTER_FULL = [
    '100 * (1 - avg(rate(node_cpu_seconds_total{mode="idle", instance="web-1"}[4m])))',
    'scalar(node_load1{instance="web-1",job="node"}) * 100'
    ' / count(count(node_cpu_seconds_total{instance="web-1",job="node"}) by (cpu))',
    'sum by(instance) (irate(node_cpu_seconds_total{instance="web-1",mode="system"}[4m]))'
    " / on(instance) group_left sum by (instance)((irate(node_cpu_seconds_total[4m])))",
    'clamp_max((1 - (node_memory_MemAvailable_bytes{instance="web-1"}'
    ' / node_memory_MemTotal_bytes{instance="web-1"})) * 100, 100)',
    'node_memory_MemTotal_bytes{instance="web-1"} - node_memory_MemFree_bytes{instance="web-1"}'
    ' - (node_memory_Cached_bytes{instance="web-1"} + node_memory_Buffers_bytes{instance="web-1"}'
    ' + node_memory_SReclaimable_bytes{instance="web-1"})',
    "((node_memory_SwapTotal_bytes - node_memory_SwapFree_bytes)"
    " / (node_memory_SwapTotal_bytes)) * 100",
    '100 - ((node_filesystem_avail_bytes{mountpoint="/",fstype!="rootfs"} * 100)'
    ' / node_filesystem_size_bytes{mountpoint="/",fstype!="rootfs"})',
    'node_time_seconds{instance="web-1"} - node_boot_time_seconds{instance="web-1"}',
    'irate(node_network_receive_bytes_total{instance="web-1"}[4m])*8',
    'irate(node_disk_reads_completed_total{device=~"[a-z]+|nvme[0-9]+n[0-9]+|mmcblk[0-9]+"}[4m])',
    'irate(node_disk_io_time_seconds_total{device=~"[a-z]+|nvme[0-9]+n[0-9]+"} [4m])',
    "irate(node_disk_read_time_seconds_total[4m]) / irate(node_disk_reads_completed_total[4m])",
    "count(count(node_cpu_seconds_total) without (mode)) without (cpu)",
    'topk(5, sum by (device) (rate(node_network_transmit_bytes_total{device!~"lo"}[4m])))',
    'label_replace(node_uname_info, "host", "$1", "instance", "(.+)-.*")',
    "predict_linear(node_filesystem_free_bytes[1h], 4 * 3600)",
    "quantile by (job) (0.9, node_load5)",
    "irate(node_context_switches_total[4m])",
    "node_procs_running",
]


def dashboard(path: Path) -> Any:
    return json.loads(path.read_text())


def targets() -> Iterator[Any]:
    """(dashboard, panel, target) of every expression."""
    for path in DASHBOARDS:
        for panel in dashboard(path)["panels"]:
            for target in panel.get("targets", ()):
                yield pytest.param(target, id=f"{path.stem}: {panel['title']} {target['refId']}")


@pytest.fixture(scope="module")
def now_s() -> float:
    return now_us() // 60_000_000 * 60.0


@pytest.fixture
async def client(database_url: str, now_s: float) -> AsyncIterator[httpx.AsyncClient]:
    await store(database_url, *fleet(round(now_s * 1e6)))
    async with memory_bus() as bus:
        await bus.declare(topology(1))
        async with serving(bus, database_url) as opened:
            await eventually(lambda: answers(opened, "/-/ready"))
            yield opened


def substituted(expression: str) -> str:
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    assert "$" not in expression.replace('"$1"', "")
    return expression


async def test_every_panel_has_rows(client: httpx.AsyncClient, now_s: float) -> None:
    empty = []
    for param in targets():
        (target,) = param.values
        given = {"query": substituted(target["expr"])}
        if target.get("instant"):
            answer = await client.post("/api/v1/query", data={**given, "time": str(now_s)})
        else:
            span = {"start": str(now_s - 1800), "end": str(now_s), "step": "60"}
            answer = await client.post("/api/v1/query_range", data=given | span)
        assert answer.status_code == 200, (param.id, answer.text)
        if not answer.json()["data"]["result"]:
            empty.append(param.id)
    assert empty == []


async def test_expressions_of_dashboards_of_the_world_have_rows(
    client: httpx.AsyncClient, now_s: float
) -> None:
    for expression in NODE_EXPORTER_FULL:
        given = {"query": expression, "time": str(now_s)}
        answer = await client.get("/api/v1/query", params=given)
        assert answer.status_code == 200, (expression, answer.text)
        assert answer.json()["data"]["result"], expression


async def test_every_variable_has_values(client: httpx.AsyncClient) -> None:
    for path in DASHBOARDS:
        for variable in dashboard(path)["templating"]["list"]:
            if variable["type"] == "datasource":
                continue
            found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
            assert found, variable
            match = {"match[]": substituted(found[1])}
            answer = await client.get(f"/api/v1/label/{found[2]}/values", params=match)
            expected = list(INSTANCES) if found[2] == "instance" else ["node"]
            assert answer.json()["data"] == expected, (path.stem, variable["name"])


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_is_whole(path: Path) -> None:
    board = dashboard(path)
    assert board["uid"] == f"vervet-{path.stem}"
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }
        assert max(x for x, _ in cells) < COLUMNS, panel["title"]
        assert not cells & taken, panel["title"]
        taken |= cells
        assert bool(panel.get("targets")) == (panel["type"] not in WITHOUT_EXPRESSION)
        for target in panel.get("targets", ()):
            assert target["datasource"]["uid"] == "${datasource}"


def test_dashboards_ask_for_nothing_that_agents_do_not_report() -> None:
    known = {one.name for one in series()}
    asked = {
        name
        for param in targets()
        for name in re.findall(r"\b(?:node|vervet)_\w+", param.values[0]["expr"])
    }
    assert asked <= known
    assert len(asked) > 50


def test_the_provisioning_names_what_the_dashboards_use() -> None:
    yaml = YAML(typ="safe")
    (source,) = yaml.load(GRAFANA / "provisioning/datasources/vervet.yaml")["datasources"]
    assert (source["type"], source["uid"]) == ("prometheus", "vervet")
    (provider,) = yaml.load(GRAFANA / "provisioning/dashboards/vervet.yaml")["providers"]
    assert provider["type"] == "file"
    for path in DASHBOARDS:
        (choice,) = [
            one for one in dashboard(path)["templating"]["list"] if one["type"] == "datasource"
        ]
        assert choice["current"]["value"] == source["uid"]
        alert_lists = [one for one in dashboard(path)["panels"] if one["type"] == "alertlist"]
        assert {one["options"]["datasource"] for one in alert_lists} <= {source["name"]}
