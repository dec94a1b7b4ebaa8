"""Collectors: what they make of a host's files, held to what node_exporter makes of them."""

import os
import re
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.agent.collectors import AgentFacts, Host, Reading, filesystem, load
from services.agent.collectors.filesystem import FilesystemOptions
from services.agent.spool import SpoolStats
from services.agent.spool_state import Count
from tests.processes import eventually, free_port

GOLDEN = Path(__file__).with_name("test_collectors_golden.txt")
PORTED = ("cpu", "diskstats", "filesystem", "loadavg", "meminfo", "netdev")
PORTED_TOO = ("os", "stat", "time", "uname")

FILES = {
    "proc/stat": """\
cpu  300 20 90 4000 50 6 7 8 9 10
cpu0 100 10 50 2000 25 3 4 5 6 7
cpu12 200 10 40 2000 25 3 3 3 3 3
intr 5151 20 0 3
ctxt 4976311
btime 1795166905
processes 50009
procs_running 3
procs_blocked 1
softirq 984280 0 41195
""",
    "proc/loadavg": "2.23 1.17 0.52 3/211 50009\n",
    "proc/meminfo": "MemTotal:  24684096 kB\nActive(anon):  1632 kB\nHugePages_Total:  7\n",
    "proc/diskstats": """\
   7       0 loop0 1 0 0 0 0 0 0 0 0 0 0
 254       0 vda 104818 28694 3971466 27284 400821 129590 15278344 84104 2 32796 119156 65098 30 \
3797808 4378 97272 3388
   8       1 sda1 1 2 3 4 5 6 7 8 9 10 11
   8       0 sda 1 2 3 4 5 6 7 8 9 10 11
""",
    "run/udev/data/b254:0": "S:disk/by-id/x\nE:ID_PATH=pci-0\nE:ID_SERIAL=abc=d\n",
    "proc/1/net/dev": """\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes packets errs drop \
fifo colls carrier compressed
    lo: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16
eth0.5:641467734  139842    0    0    0     0          0         0 1 2 0 0 0 0 0 0
""",
    "sys/class/net/lo/statistics/rx_nohandler": "17\n",
    "proc/sys/kernel/domainname": "(none)\n",
    "etc/os-release": """\
PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"
NAME="Debian GNU/Linux"
# a comment
VERSION_ID="12.5"
ID=debian
""",
}


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A host whose files are FILES, and whose mounts are this test's own directories."""
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Host(tmp_path)


def read(host: Host, name: str, **options: str) -> dict[str, float]:
    """The values of a collector by series, written as Prometheus writes them."""
    found = load()[name]
    return {series(r): r.value for r in found.read(host, found.options(**options))}


def series(reading: Reading) -> str:
    pairs = zip(reading.metric.labels, reading.labels, strict=True)
    labels = ",".join(f'{name}="{value}"' for name, value in sorted(pairs))
    return reading.metric.name + (f"{{{labels}}}" if labels else "")


def test_cpu_time_is_in_seconds_by_cpu_and_mode(host: Host) -> None:
    values = read(host, "cpu")
    tick = 1 / os.sysconf("SC_CLK_TCK")
    assert values['node_cpu_seconds_total{cpu="0",mode="user"}'] == 100 * tick
    assert values['node_cpu_seconds_total{cpu="12",mode="steal"}'] == 3 * tick
    assert values['node_cpu_guest_seconds_total{cpu="0",mode="nice"}'] == 7 * tick
    assert len(values) == 2 * 10


def test_an_old_kernel_without_guest_time_has_the_other_modes(host: Host) -> None:
    (host.rootfs / "proc/stat").write_text("cpu 1 2 3 4 5 6 7\ncpu0 1 2 3 4 5 6 7\nintr 1\n")
    assert len(read(host, "cpu")) == 7


def test_the_kernels_counts_and_boot_time(host: Host) -> None:
    assert read(host, "stat") == {
        "node_intr_total": 5151,
        "node_context_switches_total": 4976311,
        "node_boot_time_seconds": 1795166905,
        "node_forks_total": 50009,
        "node_procs_running": 3,
        "node_procs_blocked": 1,
    }


def test_load_averages(host: Host) -> None:
    assert read(host, "loadavg") == {"node_load1": 2.23, "node_load5": 1.17, "node_load15": 0.52}


def test_memory_is_in_bytes_where_the_kernel_says_kilobytes(host: Host) -> None:
    assert read(host, "meminfo") == {
        "node_memory_MemTotal_bytes": 24684096 * 1024,
        "node_memory_Active_anon_bytes": 1632 * 1024,
        "node_memory_HugePages_Total": 7,
    }


def test_disks_are_in_bytes_and_seconds(host: Host) -> None:
    values = read(host, "diskstats")
    assert values['node_disk_read_bytes_total{device="vda"}'] == 3971466 * 512
    assert values['node_disk_write_time_seconds_total{device="vda"}'] == pytest.approx(84.104)
    assert values['node_disk_io_now{device="vda"}'] == 2
    assert values['node_disk_discarded_sectors_total{device="vda"}'] == 3797808
    assert values['node_disk_flush_requests_time_seconds_total{device="vda"}'] == 3.388


def test_partitions_and_loop_devices_are_left_out_unless_asked_for(host: Host) -> None:
    assert 'node_disk_io_now{device="sda1"}' not in read(host, "diskstats")
    assert 'node_disk_io_now{device="loop0"}' in read(host, "diskstats", device_exclude="^sda")


def test_a_disk_of_an_old_kernel_has_no_discards(host: Host) -> None:
    values = read(host, "diskstats")
    assert values['node_disk_io_time_weighted_seconds_total{device="sda"}'] == 0.011
    assert 'node_disk_discards_completed_total{device="sda"}' not in values


def test_what_udev_knows_of_a_disk(host: Host) -> None:
    assert read(host, "diskstats")[
        'node_disk_info{device="vda",major="254",minor="0",model="",path="pci-0",revision="",'
        'serial="abc=d",wwn=""}'
    ]


def test_network_devices_are_those_of_the_first_process(host: Host) -> None:
    values = read(host, "netdev")
    assert values['node_network_receive_multicast_total{device="lo"}'] == 8
    assert values['node_network_transmit_compressed_total{device="lo"}'] == 16
    assert values['node_network_receive_nohandler_total{device="lo"}'] == 17
    assert values['node_network_receive_bytes_total{device="eth0.5"}'] == 641467734
    assert 'node_network_receive_nohandler_total{device="eth0.5"}' not in values


def test_network_devices_can_be_left_out(host: Host) -> None:
    assert all("lo" not in key for key in read(host, "netdev", device_exclude="^lo$"))


def test_the_own_process_serves_where_the_first_one_is_hidden(host: Host) -> None:
    first = host.rootfs / "proc/1/net/dev"
    own = host.rootfs / "proc/self/net/dev"
    own.parent.mkdir(parents=True)
    first.rename(own)
    assert 'node_network_receive_bytes_total{device="lo"}' in read(host, "netdev")


def test_the_operating_systems_name_and_version(host: Host) -> None:
    values = read(host, "os")
    key = 'node_os_version{id="debian",id_like="",name="Debian GNU/Linux"}'
    assert values[key] == 12.5
    assert any('pretty_name="Debian GNU/Linux 12 (bookworm)"' in series for series in values)


def test_an_operating_system_without_a_number_has_no_version(host: Host) -> None:
    (host.rootfs / "etc/os-release").write_text("ID=arch\nNAME='Arch Linux'\n")
    assert [key.partition("{")[0] for key in read(host, "os")] == ["node_os_info"]


def mount(host: Host, *lines: str) -> None:
    path = host.rootfs / "proc/1/mounts"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def test_a_file_system_is_what_statvfs_says_of_it_under_the_root(host: Host) -> None:
    (host.rootfs / "data set").mkdir()
    mount(host, r"/dev/vdb /data\040set ext4 rw,noatime 0 0")
    values = read(host, "filesystem")
    status = os.statvfs(host.rootfs)
    labels = '{device="/dev/vdb",fstype="ext4",mountpoint="/data set"}'
    assert values.pop("node_filesystem_files_free" + labels) > 0
    assert values.pop("node_filesystem_free_bytes" + labels) > 0
    assert values.pop("node_filesystem_avail_bytes" + labels) == pytest.approx(
        status.f_bavail * status.f_frsize, rel=0.02
    )
    assert values == {
        "node_filesystem_device_error" + labels: 0,
        "node_filesystem_size_bytes" + labels: status.f_blocks * status.f_frsize,
        "node_filesystem_files" + labels: status.f_files,
        "node_filesystem_readonly" + labels: 0,
    }


def test_a_file_system_is_read_only_when_the_hosts_mount_is(host: Host) -> None:
    mount(host, "/dev/vda / ext4 rw,errors=remount-ro 0 0", "/dev/vdb /etc ext4 ro,noatime 0 0")
    values = read(host, "filesystem")
    readonly = {key: value for key, value in values.items() if "_readonly" in key}
    assert list(readonly.values()) == [0, 1]


def test_mount_points_seen_through_the_root_are_told_as_the_host_names_them(host: Host) -> None:
    mount(host, f"/dev/vdb {host.rootfs} ext4 rw 0 0", f"/dev/vdc {host.rootfs}/etc ext4 rw 0 0")
    points = {re.findall('mountpoint="([^"]*)"', key)[0] for key in read(host, "filesystem")}
    assert points == {"/", "/etc"}


def test_a_file_system_that_cannot_be_asked_has_an_error_and_no_values(host: Host) -> None:
    mount(host, "/dev/vdb /gone ext4 rw 0 0", "/dev/vda / ext4 rw 0 0")
    values = read(host, "filesystem")
    gone = {key: value for key, value in values.items() if "/gone" in key}
    assert list(gone.values()) == [1]
    assert len(values) == 1 + 7


def test_pseudo_file_systems_are_left_out_and_a_double_mount_counts_once(host: Host) -> None:
    mount(
        host,
        "proc /proc proc rw 0 0",
        "tmpfs /dev/shm tmpfs rw 0 0",
        "overlay /x overlay rw 0 0",
        "/dev/vda / ext4 rw 0 0",
        "/dev/vda / ext4 ro 0 0",
    )
    assert len(read(host, "filesystem")) == 7


def test_what_lies_on_top_of_a_mount_point_says_whether_it_is_read_only(host: Host) -> None:
    mount(host, "/dev/vda / ext4 rw 0 0", "/dev/vda / ext4 noatime,ro 0 0")
    labels = '{device="/dev/vda",fstype="ext4",mountpoint="/"}'
    assert read(host, "filesystem")["node_filesystem_readonly" + labels] == 1


def test_a_file_system_that_does_not_answer_is_an_error_and_is_not_asked_again(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, answer = [], threading.Event()

    def statvfs(path: Path) -> None:
        asked.append(path)
        answer.wait(20)
        raise OSError("stale")

    monkeypatch.setattr(filesystem, "PATIENCE_S", 0.01)
    monkeypatch.setattr(os, "statvfs", statvfs)
    mount(host, "server:/ /far nfs4 rw 0 0")
    try:
        for _ in range(3):
            assert list(read(host, "filesystem").values()) == [1]
        assert len(asked) == 1
    finally:
        answer.set()


def test_the_agents_books_are_among_its_own_series() -> None:
    books = SpoolStats(
        epoch="e",
        last_seq=9,
        generated=Count(9, 900),
        confirmed=Count(5, 500),
        dropped={"full": Count(1, 100)},
        waiting=Count(3, 300),
        disk_bytes=4096,
        oldest_at_us=40_000_000,
    )
    values = read(Host(agent=AgentFacts(spool=books, now_s=lambda: 100.0)), "agent")
    assert values["vervet_agent_samples_generated_total"] == 900
    assert values["vervet_agent_samples_published_total"] == 500
    assert values['vervet_agent_samples_dropped_total{reason="full"}'] == 100
    assert values['vervet_agent_samples_dropped_total{reason="age"}'] == 0
    assert values["vervet_agent_spool_messages"] == 3
    assert values["vervet_agent_spool_oldest_age_seconds"] == 60
    assert values["vervet_agent_message_seq"] == 9
    assert values["vervet_agent_resident_bytes"] > 5e6
    assert values["up"] == values["vervet_agent_up"] == 1


def golden() -> dict[str, tuple[str, tuple[str, ...]]]:
    lines = [line for line in GOLDEN.read_text().splitlines() if not line.startswith("#")]
    found = {}
    for line in lines:
        name, kind, *labels = line.split(" ")
        found[name] = (kind, tuple(",".join(labels).split(",")) if labels else ())
    return found


def test_names_types_and_labels_are_node_exporters() -> None:
    expected = golden()
    seen = set()
    for name in PORTED + PORTED_TOO:
        found = load()[name]
        for reading in found.read(Host(), found.options()):
            metric = reading.metric
            if metric.name.startswith("node_memory_") and metric.name not in expected:
                continue  # a kernel newer than the one of the golden list
            assert (metric.type, tuple(sorted(metric.labels))) == expected[metric.name]
            seen.add(metric.name)
    missing = {name for name in expected.keys() - seen if not name.startswith("node_memory_")}
    depends_on_the_host = {name for name in missing if re.match("node_(disk|filesystem|os)_", name)}
    assert missing == depends_on_the_host


@pytest.fixture
def exporter_page(node_exporter: Path) -> Iterator[str]:
    """The metrics page of a real node_exporter with upstream's defaults."""
    port = free_port()
    arguments = [f"--collector.{name}" for name in PORTED + PORTED_TOO]
    process = subprocess.Popen(
        [
            node_exporter,
            f"--web.listen-address=127.0.0.1:{port}",
            "--collector.disable-defaults",
            # Debian's package changes these two defaults.
            "--collector.netdev.device-exclude=^$",
            f"--collector.filesystem.mount-points-exclude={filesystem.POINTS_EXCLUDED}",
            *arguments,
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield f"http://127.0.0.1:{port}/metrics"
    finally:
        process.terminate()
        process.wait(10)


def fetch(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""


async def test_live_values_are_those_of_a_real_node_exporter(exporter_page: str) -> None:
    await eventually(lambda: bool(fetch(exporter_page)))
    page = fetch(exporter_page)
    ours: dict[str, float] = {}
    for name in PORTED + PORTED_TOO:
        ours |= read(Host(), name)
    theirs = {}
    for line in page.splitlines():
        match = re.match(r"(node_\w+)(?:\{(.*)\})? (\S+)$", line)
        if match and not match[1].startswith(
            ("node_scrape_", "node_exporter_", "node_time_clock", "node_time_zone")
        ):
            labels = ",".join(sorted(re.findall(r'\w+="[^"]*"', match[2] or "")))
            theirs[match[1] + (f"{{{labels}}}" if labels else "")] = float(match[3])
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        close = pytest.approx(value, rel=0.02, abs=max(5.0, allowed_change(key)))
        assert ours[key] == close, key


def allowed_change(key: str) -> float:
    """What may happen between the two readings on a busy host."""
    if "_memory_" in key or "_bytes" in key:
        return 64 * 1024**2
    return 5000.0 if "_total" in key else 0.0


def test_a_broken_pattern_is_told() -> None:
    with pytest.raises(ValueError, match="not a regular expression"):
        FilesystemOptions(fs_types_exclude="(")
