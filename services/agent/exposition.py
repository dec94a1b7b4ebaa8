"""The agent's own series on its /metrics, from the collector that also publishes them."""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import REGISTRY
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from services.agent.collectors import Host, Options
from services.agent.collectors.agent import agent


class _OwnSeries(Collector):
    def __init__(self, host: Host) -> None:
        self._host = host

    def collect(self) -> Iterator[Family]:
        families: dict[str, Family] = {}
        for metric, labels, value in agent(self._host, Options()):
            if not metric.name.startswith("vervet_"):
                continue  # `up` is for the scraper to say
            family = families.setdefault(
                metric.name, Family(metric.name.removesuffix("_total"), metric.help, metric.type)
            )
            family.add_sample(metric.name, dict(zip(metric.labels, labels, strict=True)), value)
        yield from families.values()


@contextmanager
def exposed(host: Host) -> Iterator[None]:
    """Show the agent's series in the default registry while this context lasts."""
    own = _OwnSeries(host)
    REGISTRY.register(own)
    try:
        yield
    finally:
        REGISTRY.unregister(own)
