"""The benchmarks' own arithmetic: what is counted, kept and shown."""

import asyncio
import json
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from bench.__main__ import environment
from bench.figures import Figure, keep, rounded, table
from bench.hosts import FRAMES, HOSTS, STEP_US, Fleet
from bench.ingest import figures_of, ratios
from bench.pipeline import Run
from bench.processes import cpu_s, memory_mib, peaks_mib
from schemas.layouts import decode_layout
from schemas.samples import SampleMessage, decode, from_little
from tests.stack.choice import STACK_VARIABLE
from tests.stack.process import await_condition

BUSY = "import time\nwhile time.process_time() < {0}: pass\n"


def figure(bench: str = "ingest", at_most: float | None = None, **parameters: str) -> Figure:
    return Figure(bench, "vervet", "cpu", (3.0, 1.0, 2.0), "µs", parameters, at_most)


def test_a_line_has_the_median_and_how_far_the_runs_were_from_it() -> None:
    line = figure(process="broker", at_most=2.5).line()
    assert line == {
        "bench": "ingest",
        "system": "vervet",
        "figure": "cpu",
        "value": 2.0,
        "unit": "µs",
        "process": "broker",
        "min": 1.0,
        "max": 3.0,
        "runs": 3,
        "at_most": 2.5,
    }


def test_numbers_have_four_digits() -> None:
    assert rounded(123456.0) == 123500.0
    assert rounded(0.000123456) == 0.0001235


def test_a_target_is_met_or_missed_by_the_median() -> None:
    assert figure(at_most=2.0).verdict() == "at most 2: met"
    assert figure(at_most=1.9).verdict() == "at most 1.9: MISSED"
    assert figure().verdict() == ""


def test_figures_replace_those_of_the_same_benchmark_only(tmp_path: Path) -> None:
    path = tmp_path / "results" / "latest.jsonl"
    keep([figure("ingest", old="yes"), figure("agent")], path)
    keep([figure("ingest", old="no")], path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["bench"], line.get("old")) for line in lines] == [
        ("agent", None),
        ("ingest", "no"),
    ]


def test_the_table_groups_by_parameters_and_tells_processes_apart() -> None:
    shown = table([figure(queues="all", process="broker"), figure(queues="ingest", at_most=1.0)])
    assert [line.split() for line in shown.splitlines()] == [
        ["figure", "median", "min", "max", "unit", "target"],
        [],
        ["ingest:", "vervet:", "queues", "all"],
        ["cpu", "broker", "2", "1", "3", "µs"],
        [],
        ["ingest:", "vervet:", "queues", "ingest"],
        ["cpu", "2", "1", "3", "µs", "at", "most", "1:", "MISSED"],
    ]


def test_a_stack_that_was_asked_for_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STACK_VARIABLE, "docker")
    assert environment()[STACK_VARIABLE] == "docker"


def spawn(code: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)


def test_processor_time_counts_children_those_that_ended_included() -> None:
    child = f"[sys.executable, '-c', {BUSY.format(0.2)!r}]"
    code = f"import subprocess, sys\nsubprocess.run({child})\nsys.stdin.read()"
    with spawn(code) as parent:
        # The kernel counts in ticks of 10 ms, the child on a finer clock.
        assert await_condition(lambda: cpu_s(parent.pid) >= 0.18, 20)
        assert await_condition(lambda: not psutil.Process(parent.pid).children(), 20)
        ended = cpu_s(parent.pid)
        assert 0.18 <= ended < 10
        assert cpu_s(parent.pid) >= ended
        parent.communicate()


def test_processor_time_is_that_of_the_kernel() -> None:
    before, began = cpu_s(psutil.Process().pid), time.process_time()
    while time.process_time() < began + 0.2:
        pass
    assert 0.18 <= cpu_s(psutil.Process().pid) - before < 5


async def test_the_peak_of_memory_is_seen_while_the_block_runs() -> None:
    code = "import sys\nheld = b'x' * (64 * 1024**2)\nprint(flush=True)\nsys.stdin.read()"
    with spawn(code) as held:
        assert await asyncio.to_thread(await_condition, lambda: memory_mib(held.pid) > 64, 20)
        async with peaks_mib({"held": held.pid}) as peaks:
            seen = await asyncio.to_thread(await_condition, lambda: peaks["held"] > 0, 20)
        held.communicate()
    assert seen
    assert 64 < peaks["held"] < 200


def messages(fleet: Fleet, count: int) -> list[SampleMessage]:
    return [decode(message.body, message.content_type) for _, message in fleet.messages(count)]


def test_a_message_of_the_load_holds_the_samples_that_were_asked_for() -> None:
    (made,) = messages(Fleet(50, 0), 1)
    assert len(made.frames) == FRAMES
    assert sum(len(decode_layout(one.layout)) for one in made.frames) == 50
    assert sum(len(one.values) for one in made.frames) == 50 * 8


def test_samples_that_make_no_whole_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="55 samples"):
        Fleet(55, 0)


def test_hosts_take_turns_and_go_on_where_they_were() -> None:
    fleet = Fleet(10, 1_000_000)
    made = messages(fleet, HOSTS + 1) + messages(fleet, HOSTS - 1)
    assert len({one.message_id for one in made}) == 2 * HOSTS
    of_one = [one for one in made if one.source["instance"] == "host-0000"]
    assert [one.seq for one in of_one] == [0, 1]
    at = [from_little("q", one.frames[0].at)[0] for one in of_one]
    assert [later - earlier for earlier, later in pairwise(at)] == [STEP_US]


def test_the_load_is_routed_as_an_agents_messages_are() -> None:
    ((key, message),) = Fleet(10, 0).messages(1)
    assert key == "node.host-0000"
    assert message.headers == {"instance": "host-0000"}
    assert message.message_id.startswith("host-0000/")


def run(publisher_s: float, broker_s: float) -> Run:
    cpu = {"publisher": publisher_s, "broker": broker_s}
    return Run(1_000_000, 2_000, 4.0, cpu, {"publisher": 10.0, "broker": 20.0})


def test_processor_time_becomes_microseconds_per_sample() -> None:
    found = {
        (one.figure, one.parameters.get("process")): one.value
        for one in figures_of([run(0.25, 0.5)], {"queues": "all"}, 1.5)
    }
    assert found == {
        ("cpu_us_per_sample", "publisher"): 0.25,
        ("cpu_us_per_sample", "broker"): 0.5,
        ("server_cpu_us_per_sample", None): 0.5,
        ("all_cpu_us_per_sample", None): 0.75,
        ("messages_per_s", None): 500,
        ("samples_per_s", None): 250_000,
        ("peak_memory", "publisher"): 10,
        ("peak_memory", "broker"): 20,
    }


def test_the_evaluators_copies_are_told_as_a_ratio() -> None:
    figures = [
        one
        for queues, broker_s in (("all", 1.25), ("ingest", 0.5))
        for one in figures_of(
            [run(0.25, broker_s)], {"samples_per_message": 500, "queues": queues}, None
        )
    ]
    assert [one.value for one in ratios(figures)] == [2.0]
