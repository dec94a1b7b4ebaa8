"""The runner: what one collector does is its own affair."""

import threading
from collections.abc import Iterable
from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from schemas.layouts import decode_layout
from schemas.samples import from_little
from services.agent.collectors import Collector, Host, Options, Read, Reading, gauge
from services.agent.columns import Columns
from services.agent.runner import Runner, Station

ONE = gauge("one", "One.")


def station(name: str, read: Read) -> Station:
    found = Collector(name, read, None, ("linux",), Options)
    return Station(found, Options(), timedelta(seconds=1))


def well(host: Host, options: Options) -> Iterable[Reading]:
    yield ONE(1)


def values(columns: Columns) -> dict[str, float]:
    """The last frame's values by metric, without the duration."""
    frame = columns.frames[-1]
    names = [series.name for series in decode_layout(frame.layout)]
    found = dict(zip(names, from_little("d", frame.values), strict=True))
    assert found.pop("node_scrape_collector_duration_seconds") >= 0
    return found


async def test_a_collector_is_marked_with_success_and_its_duration() -> None:
    runner = Runner({"a": station("a", well)}, Host())
    (columns,) = await runner.tick(["a"], 5)
    assert values(columns) == {"one": 1, "node_scrape_collector_success": 1}
    runner.rest()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (PermissionError(13, "Permission denied", "/proc/x"), "Permission denied: '/proc/x'"),
        (ValueError("no number"), "ValueError: no number"),
        (KeyError("x"), "KeyError: 'x'"),
    ],
)
async def test_one_that_raises_marks_only_itself_and_says_why_once(
    error: Exception, told: str
) -> None:
    def ill(host: Host, options: Options) -> Iterable[Reading]:
        yield ONE(1)
        raise error

    runner = Runner({"ill": station("ill", ill), "well": station("well", well)}, Host())
    with capture_logs() as logs:
        for _ in range(3):
            bad, good = await runner.tick(["ill", "well"], 5)
    assert values(bad) == {"node_scrape_collector_success": 0}
    assert values(good) == {"one": 1, "node_scrape_collector_success": 1}
    assert [line["collector"] for line in logs] == ["ill"]
    assert told in logs[0]["reason"]
    runner.rest()


async def test_one_that_gives_a_series_twice_marks_only_itself() -> None:
    def double(host: Host, options: Options) -> Iterable[Reading]:
        return [ONE(1), ONE(2)]

    runner = Runner({"a": station("a", double)}, Host())
    (columns,) = await runner.tick(["a"], 5)
    assert values(columns) == {"node_scrape_collector_success": 0}
    runner.rest()


async def test_recovery_is_told() -> None:
    broken = [True]

    def changing(host: Host, options: Options) -> Iterable[Reading]:
        if broken:
            broken.clear()
            raise OSError("once")
        return [ONE(1)]

    runner = Runner({"a": station("a", changing)}, Host())
    with capture_logs() as logs:
        await runner.tick(["a"], 5)
        await runner.tick(["a"], 6)
    assert [line["event"] for line in logs] == ["collector failed", "collector reads again"]
    runner.rest()


async def test_one_that_hangs_does_not_hold_the_others_and_is_not_called_again_meanwhile() -> None:
    back, calls = threading.Event(), []

    def hanging(host: Host, options: Options) -> Iterable[Reading]:
        calls.append(1)
        back.wait(20)
        return [ONE(1)]

    stations = {"hangs": station("hangs", hanging), "well": station("well", well)}
    runner = Runner(stations, Host(), patience_s=0.05)
    try:
        for _ in range(3):
            bad, good = await runner.tick(["hangs", "well"], 5)
            assert values(bad) == {"node_scrape_collector_success": 0}
            assert values(good)["node_scrape_collector_success"] == 1
        assert len(calls) == 1
    finally:
        back.set()
    await stations["hangs"].stuck  # type: ignore[misc]
    (columns,) = await runner.tick(["hangs"], 6)
    assert values(columns) == {"one": 1, "node_scrape_collector_success": 1}
    runner.rest()
