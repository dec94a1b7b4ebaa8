"""The benchmarks' own arithmetic: what is counted, kept and shown."""

import asyncio
import json
import lzma
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import psutil
import pytest

from bench import disk, growth, query, tables
from bench.__main__ import environment
from bench.disk import Used
from bench.figures import Figure, Options, keep, rounded, table
from bench.hosts import STEP_MS, Fleet, Load
from bench.ingest import Contender, figures_of, ratios, rounds
from bench.pipeline import Run
from bench.plot import plot
from bench.processes import cpu_s, memory_mib, peaks_mib
from bench.recording import Recording, assemble, read, scrapes, write
from bench.replay import Replay, resized
from bench.wire import Lines, RemoteWrite, full_labels, line_prefix
from schemas.layouts import Series, decode_layout
from schemas.samples import SampleMessage, decode, from_little
from schemas.values import ABSENT, ABSENT_BITS
from tests.stack.choice import STACK_VARIABLE
from tests.stack.process import await_condition
from tests.stack.remote_write import write_request

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
        async with peaks_mib({"held": [held.pid]}) as peaks:
            seen = await asyncio.to_thread(await_condition, lambda: peaks["held"] > 0, 20)
        held.communicate()
    assert seen
    assert 64 < peaks["held"] < 200


def load(samples: int, hosts: int = 3, first_ms: int = 1_000_000) -> Load:
    return Load.of(samples, hosts, first_ms)


def messages(fleet: Fleet, count: int) -> list[SampleMessage]:
    return [decode(message.body, message.content_type) for _, message in fleet.messages(count)]


@pytest.mark.parametrize("samples", [50, 500, 2000])
def test_a_message_of_the_load_holds_the_samples_that_were_asked_for(samples: int) -> None:
    (made,) = messages(Fleet(load(samples)), 1)
    assert sum(len(decode_layout(one.layout)) for one in made.frames) == samples
    assert sum(len(one.values) for one in made.frames) == samples * 8


def test_hosts_take_turns_and_go_on_where_they_were() -> None:
    fleet = Fleet(load(50, hosts=3))
    made = messages(fleet, 4) + messages(fleet, 2)
    assert len({one.message_id for one in made}) == 6
    of_one = [one for one in made if one.source["instance"] == "host-00000"]
    assert [one.seq for one in of_one] == [0, 1]
    at = [from_little("q", one.frames[0].at)[0] for one in of_one]
    assert [later - earlier for earlier, later in pairwise(at)] == [STEP_MS * 1000]


def test_the_load_is_routed_as_an_agents_messages_are() -> None:
    ((key, message),) = Fleet(load(50)).messages(1)
    assert key == "node.host-00000"
    assert message.headers == {"instance": "host-00000"}
    assert message.message_id.startswith("host-00000/")


def test_a_request_of_remote_write_is_the_one_that_the_plain_encoder_makes() -> None:
    replay = Replay(read(), 1_700_000_000_000)
    source = {"job": "node", "instance": "a"}
    pieces = list(replay.pieces(1, 0, 3))
    plain = write_request(
        (labels, list(zip(column.tolist(), piece.at_ms.tolist(), strict=True)))
        for piece in pieces
        for labels, column in zip(
            full_labels(piece.part.series, source), piece.values.T, strict=True
        )
    )
    assert RemoteWrite().body(source, pieces) == plain


def test_a_request_has_the_samples_of_the_message_of_the_same_tick() -> None:
    one = load(50)
    message = messages(Fleet(one), 5)[4]  # host 1, tick 1
    pieces = list(one.pieces(1, 1))
    assert [piece.values.tobytes() for piece in pieces] == [part.values for part in message.frames]
    instants = {from_little("q", part.at)[0] for part in message.frames}
    assert {int(piece.at_ms[0]) * 1000 for piece in pieces} == instants


def test_lines_have_every_value_that_is_a_number() -> None:
    series = (COUNTER, GAUGE)
    replay = Replay(recording([[0.1, float("nan")], [1e300, -0.0]], series), 5, jitter_ms=0)
    lines = Lines().body({"instance": "a"}, replay.pieces(0, 0, 2)).decode().splitlines()
    assert sorted(lines) == [
        "node_cpu_seconds_total,cpu=0,instance=a value=0.1 5",
        "node_cpu_seconds_total,cpu=0,instance=a value=1e+300 5005",
        "node_load1,instance=a value=-0.0 5005",
    ]


def test_a_line_escapes_what_separates_and_leaves_out_empty_tags() -> None:
    labels = {"__name__": "m", "b": "x y,z=\\", "a": "", "c": "1"}
    assert line_prefix(labels) == "m,b=x\\ y\\,z\\=\\\\,c=1 value="


def run(publisher_s: float, server_s: float) -> Run:
    cpu = {"publisher": publisher_s, "server": server_s}
    return Run(1_000_000, 2_000, 4.0, cpu, {"publisher": 10.0, "server": 20.0})


OURS = Contender("vervet", 500, 10_000, "all")


def test_processor_time_becomes_microseconds_per_sample() -> None:
    found = {
        (one.figure, one.parameters.get("process")): one.value
        for one in figures_of(OURS, [run(0.25, 0.5)])
    }
    assert found == {
        ("cpu_us_per_sample", "publisher"): 0.25,
        ("cpu_us_per_sample", "server"): 0.5,
        ("server_cpu_us_per_sample", None): 0.5,
        ("all_cpu_us_per_sample", None): 0.75,
        ("messages_per_s", None): 500,
        ("samples_per_s", None): 250_000,
        ("peak_memory", "publisher"): 10,
        ("peak_memory", "server"): 20,
    }


def test_the_evaluators_copies_and_the_peers_are_told_as_ratios_run_by_run() -> None:
    found = ratios(
        {
            OURS: [run(0.25, 1.0), run(0.25, 1.0)],
            Contender("vervet", 500, 10_000, "ingest"): [run(0.25, 0.5), run(0.25, 0.5)],
            Contender("victoria-metrics", 500, 10_000): [run(9.0, 2.0), run(9.0, 4.0)],
        }
    )
    assert [(one.figure, one.parameters["queues"], one.values, one.at_most) for one in found] == [
        ("server_cpu_by_victoria_metrics", "all", (0.5, 0.25), 0.5),
        ("server_cpu_by_victoria_metrics", "ingest", (0.25, 0.125), 0.5),
        ("server_cpu_by_ingest_queue_alone", "all", (2.0, 2.0), None),
    ]


@pytest.mark.parametrize("full", [False, True])
def test_every_round_of_ingest_has_ours_and_each_contender_once(full: bool) -> None:
    for contenders in rounds(Options(full=full)):
        assert contenders[0].system == "vervet"
        assert len(set(contenders)) == len(contenders)


def recording(values: list[list[float]], series: tuple[Series, ...]) -> Recording:
    at_ms = np.arange(len(values), dtype=np.int64) * 5000 + 1_000
    return Recording(series, at_ms, np.array(values))


COUNTER = Series("node_cpu_seconds_total", {"cpu": "0"}, "counter")
GAUGE = Series("node_load1", {}, "gauge")


def test_a_recording_is_read_as_it_was_written(tmp_path: Path) -> None:
    nan = float("nan")
    written = recording([[1.5, ABSENT], [nan, -0.0], [ABSENT, 1e300]], (COUNTER, GAUGE))
    write(written, tmp_path / "a.xz")
    kept = read(tmp_path / "a.xz")
    assert kept.series == written.series
    assert kept.at_ms.tolist() == written.at_ms.tolist()
    assert kept.values.tobytes() == written.values.tobytes()
    assert kept.absent().tolist() == [[False, True], [False, False], [True, False]]


def test_a_file_that_is_no_recording_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.xz").write_bytes(lzma.compress(b"{}"))
    with pytest.raises(ValueError, match="is no recording"):
        read(tmp_path / "a.xz")


def test_scrapes_become_columns_with_the_types_of_their_families(tmp_path: Path) -> None:
    (tmp_path / "raw").write_text(
        '# at 10.001\n# HELP a x\n# TYPE a summary\na{q="0 1"} 2\na_sum 3\n'
        "# at 15\n# TYPE b counter\nb 1e3\na_sum 4\n"
        "# at 20\nhalf"
    )
    found = assemble(scrapes(tmp_path / "raw"))
    assert found.at_ms.tolist() == [10_001, 15_000]
    assert found.series == (
        Series("a", {"q": "0 1"}, "summary"),
        Series("a_sum", {}, "summary"),
        Series("b", {}, "counter"),
    )
    assert found.absent().tolist() == [[False, False, True], [True, False, False]]
    assert found.values[1].tolist()[1:] == [4.0, 1000.0]


def test_a_replay_goes_on_counting_where_the_recording_ends() -> None:
    values = [[0.1, 4096, 8], [0.25, 8192, 8], [0.5, 4096, 8]]
    series = (COUNTER, GAUGE, Series("node_boot_time_seconds", {}, "gauge"))
    replay = Replay(recording(values, series), 0, jitter_ms=0)
    found = replay.values(0, 0, 9)
    assert found[:3].tolist() == values
    assert (np.diff(found[:, 0]) >= 0).all()
    assert np.round(found[:, 0], 2).tolist() == found[:, 0].tolist()
    assert (found[:, 1] % 4096 == 0).all()
    assert (found[:, 2] == 8).all()
    assert np.diff(replay.at_ms(0, 0, 7)).tolist() == [5000] * 6


def test_a_replay_does_not_repeat_itself() -> None:
    values = [[float(n * n), float(n % 7 * 1000)] for n in range(50)]
    found = Replay(recording(values, (COUNTER, GAUGE)), 0).values(0, 0, 200)
    steps = np.diff(found[:, 0]).reshape(-1)[:49], np.diff(found[:, 0])[50:99]
    assert (steps[0] != steps[1]).mean() > 0.9
    assert (found[:50, 1] != found[50:100, 1]).mean() > 0.8


def test_an_absent_value_stays_absent_each_time_again() -> None:
    replay = Replay(recording([[1, ABSENT], [2, 3.0]], (COUNTER, GAUGE)), 0)
    bits = replay.values(0, 0, 6).view(np.uint64)
    assert (bits[::2, 1] == np.uint64(ABSENT_BITS)).all()


def test_hosts_of_a_replay_begin_at_other_places_of_the_recording() -> None:
    replay = Replay(recording([[float(n), 0] for n in range(9)], (COUNTER, GAUGE)), 0)
    assert len({replay.values(host, 0, 1)[0, 0] for host in range(9)}) == 9


@pytest.mark.parametrize("first", [0, 4])
def test_a_host_is_the_same_however_many_ticks_are_asked_for_at_once(first: int) -> None:
    replay = Replay(recording([[float(n), 0] for n in range(5)], (COUNTER, GAUGE)), 0)
    assert replay.values(2, 0, 12)[first:].tolist() == replay.values(2, first, 12 - first).tolist()
    assert replay.at_ms(2, 0, 12)[first:].tolist() == replay.at_ms(2, first, 12 - first).tolist()


def test_a_series_that_comes_and_goes_changes_the_layout_of_its_collector_only() -> None:
    values = [[0, 1, 2], [0, ABSENT, 2], [0, 1, 2]]
    columns = (COUNTER, Series("node_cpu_other", {}, "gauge"), Series("node_disk_x", {}, "gauge"))
    replay = Replay(recording(values, columns), 0)
    found = [(one.part.collector, one.values.tolist()) for one in replay.pieces(0, 0, 3)]
    assert sorted(found) == [
        ("cpu", [[0.0]]),
        ("cpu", [[0.0, 1.0], [0.0, 1.0]]),
        ("disk", [[2.0]] * 3),
    ]


def test_the_recording_that_is_shipped_is_of_a_host_at_work() -> None:
    shipped = read()
    assert len(shipped.series) > 300
    assert len(shipped.at_ms) >= 100
    assert (np.diff(shipped.at_ms) > 0).all()
    names = {one.name for one in shipped.series}
    assert {"node_cpu_seconds_total", "node_memory_MemAvailable_bytes"} <= names


def test_bytes_are_told_by_part_and_compared_with_and_without_rollups() -> None:
    used = {
        "vervet": Used({"history": 800, "rollups": 400, "head": 0}, {"wal": 5000}, cpu_s=0.002),
        "prometheus": Used({"data": 1500, "indexes": 500}, {"wal": 9}),
        "influxdb": Used({"data": 3000}, {}),
    }
    found = {
        (one.system, one.figure, one.parameters.get("part")): one.value
        for one in disk.figures_of(used, 1000, {"hours": 6})
    }
    assert found["vervet", "bytes_per_sample", None] == 1.2
    assert found["vervet", "bytes_per_sample_of", "wal"] == 5.0
    assert found["vervet", "compact_cpu_us_per_sample", None] == pytest.approx(2.0)
    assert found["prometheus", "bytes_per_sample", None] == 2.0
    assert found["vervet", "bytes_by_prometheus", None] == pytest.approx(0.6)
    assert found["vervet", "raw_bytes_by_prometheus", None] == pytest.approx(0.4)
    assert ("vervet", "bytes_by_victoria_metrics", None) not in found


def test_what_a_file_has_reserved_and_does_not_use_is_not_counted(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "used").write_bytes(b"x" * 100)
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(4 * 1024**2)
    assert disk.bytes_of(tmp_path) == 100


def test_a_question_ends_where_it_is_told_and_asks_for_whole_steps() -> None:
    asked = query.Question("query_range", "x", 1, "24h").parameters(1_000_000_123.4)
    assert asked["end"] == "1000000080.000"
    assert asked["start"] == "999913680.000"
    assert asked["step"] == "60s"
    assert query.Question("query", "x[1h]", 1, "1h").parameters(5.5)["time"] == "5.500"


def test_one_and_a_hundred_series_are_labelled_collector_by_collector() -> None:
    found = query.labelled(resized(read(), 250))
    slots = [one.labels.get(query.SLOT) for one in found.series]
    assert (slots.count("one"), slots.count("many")) == (1, query.MANY - 1)
    labelled = {one.name.split("_")[1] for one in found.series if query.SLOT in one.labels}
    assert len(labelled) < len({one.name.split("_")[1] for one in found.series})


def test_what_an_answer_costs_is_compared_run_by_run() -> None:
    runs = {
        "vervet": [query.Asked(2.0, 3.0), query.Asked(4.0, 3.0)],
        "prometheus": [query.Asked(1.0, 6.0), query.Asked(8.0, 6.0)],
        "victoria-metrics": [query.Asked(1.0, 1.0), query.Asked(1.0, 1.0)],
    }
    asked = query.Question("query_range", "x", 1, "1h")
    found = {one.figure: one for one in query.figures_of(asked, runs, 10) if "_by_" in one.figure}
    assert found["cpu_by_prometheus"].values == (2.0, 0.5)
    assert found["latency_by_prometheus"].values == (0.5, 0.5)
    assert found["latency_by_prometheus"].at_most == 1.0
    assert found["cpu_by_victoria_metrics"].at_most is None


def test_answers_are_compared_by_labels_instants_and_numbers() -> None:
    result = [{"metric": {"b": "1", "a": "2"}, "values": [[1.5, "1e3"], [2, "-0"]]}]
    assert query.numbers(result) == {(("a", "2"), ("b", "1")): [(1500, 1000.0), (2000, 0.0)]}


def test_growth_is_the_largest_size_by_the_smallest() -> None:
    sizes = {growth.Size("stored", factor): (1.0 * factor, 2.0) for factor in (1, 10, 100)}
    found = growth.figures_of("server_cpu_us_per_sample", sizes)
    assert [one.figure for one in found] == ["server_cpu_us_per_sample"] * 3 + [
        "server_cpu_us_per_sample_by_x1"
    ]
    assert found[-1].values == (100.0, 1.0)
    assert found[-1].at_most == growth.MOST_GROWTH
    drawn = growth.plots(found)
    assert list(drawn) == ["server_cpu_us_per_sample"]


def test_a_plot_is_wellformed_and_higher_values_stand_higher() -> None:
    drawn = plot("a < b", {"one & two": [(1, 1.0), (10, 2.0), (100, 0.0)]})
    root = ElementTree.fromstring(drawn)
    names = [element.text for element in root if element.tag.endswith("text")]
    assert {"a < b", "one & two", "×1", "×10", "×100"} <= set(names)
    places = [
        (float(element.attrib["cx"]), float(element.attrib["cy"]))
        for element in root
        if element.tag.endswith("circle") and element.attrib["r"] == "3.5"
    ]
    assert places == sorted(places)
    assert places[1][1] < places[0][1] < places[2][1]


def line(**own: object) -> dict[str, object]:
    return {"bench": "growth", "system": "vervet", "value": 1234.5, "unit": "µs", **own}


def test_a_table_is_put_between_its_marks_and_the_text_stays() -> None:
    lines = [
        line(figure="query_cpu", axis="stored", factor=1, value=0.12345),
        line(figure="query_cpu", axis="stored", factor=10),
        line(system="machine", figure="cores"),
    ]
    text = "before\n<!-- table: growth -->\nold\n<!-- end -->\nafter\n"
    found = tables.renewed(text, lines)
    assert found == (
        "before\n<!-- table: growth -->\n"
        "| what grows | size | query, ms |\n| --- | --- | --- |\n"
        "| stored | ×1 | 0.123 |\n| stored | ×10 | 1,234 |\n"
        "<!-- end -->\nafter\n"
    )
    assert tables.renewed(found, lines) == found


def test_a_cell_says_whether_its_target_is_met() -> None:
    lines = [line(figure="a", value=2.0, at_most=1.5), line(figure="b", value=1.0, at_most=1.5)]
    assert tables.cell(lines, figure="a") == "2 (at most 1.5: **missed**)"
    assert tables.cell(lines, figure="b") == "1 (at most 1.5: met)"
    assert tables.cell(lines, figure="c") == tables.NONE


def test_the_document_has_a_place_for_every_table() -> None:
    text = tables.DOCUMENT.read_text()
    assert {found["name"] for found in tables.MARKED.finditer(text)} == set(tables.TABLES)
