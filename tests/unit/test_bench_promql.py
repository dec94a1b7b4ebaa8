"""The arithmetic of the benchmark of PromQL."""

import numpy as np

from bench import promql
from bench.query import Asked


def ticks(history: promql.History) -> np.ndarray:
    return np.concatenate([history.replay.at_ms(n, 0, 100) for n in range(history.hosts)])


def test_no_sample_stands_on_the_edge_of_a_window() -> None:
    assert (ticks(promql.processors()) % promql.STEP_MS).all()


def test_a_host_has_four_processors_and_further_series_of_the_last_minutes() -> None:
    day = promql.processors()
    cpus = {one.labels["cpu"] for one in day.replay.recording.series}
    assert cpus == {"0", "1", "2", "3"}
    wide = promql.others(day)
    assert len(wide.replay.recording.series) == promql.WIDE
    assert not {wide.source(n)["instance"] for n in range(2)} & {day.source(0)["instance"]}
    last = max(wide.replay.at_ms(n, 0, wide.ticks)[-1] for n in range(wide.hosts))
    assert 0 <= day.end_ms - last < promql.MINUTES_S * 1000 / 2


def test_ratios_are_of_the_same_run() -> None:
    found = {
        promql.OURS: (Asked(0, 30), [Asked(1, 10), Asked(3, 20)]),
        promql.THEIRS: (Asked(0, 10), [Asked(2, 10), Asked(2, 5)]),
    }
    figures = promql.figures_of(promql.ASKINGS[0], found, 5)
    ratios = {
        (one.figure, one.parameters["state"]): one.values for one in figures if one.unit == "ratio"
    }
    assert ratios == {
        ("cpu_by_prometheus", "warm"): (0.5, 1.5),
        ("latency_by_prometheus", "warm"): (1.0, 4.0),
        ("latency_by_prometheus", "cold"): (3.0,),
    }
