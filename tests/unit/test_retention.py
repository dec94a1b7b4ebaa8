"""What retention drops, in which order; and what it may be set to."""

from collections.abc import Collection
from datetime import UTC, datetime, timedelta

import pytest

from schemas.errors import Invalid
from services.ingest.partitions import Partition
from services.ingest.retention import next_drop, overdue
from services.retention import Retention, check, parse_keep, parse_size, show_size

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
MIDNIGHT = datetime(2026, 6, 1, tzinfo=UTC)
DAY = timedelta(days=1)
SPANS = {"frames": 1, "blocks": 1, "rollups_5m": 7, "rollups_1h": 28}


def stored(**ages: Collection[int]) -> dict[str, list[Partition]]:
    """By table partitions that ended so many days before midnight, each of 100 bytes."""
    return {
        table: [
            Partition(
                table,
                f"{table}_{age}",
                MIDNIGHT - (age + days) * DAY,
                MIDNIGHT - age * DAY,
                100,
            )
            for age in sorted(ages.get(table, ()), reverse=True)
        ]
        for table, days in SPANS.items()
    }


def retention(
    raw: int | None = 15, five: int | None = 90, hour: int | None = 730, size: int | None = None
) -> Retention:
    spans = {"raw": raw, "5m": five, "1h": hour}
    keep = {tier: None if days is None else days * DAY for tier, days in spans.items()}
    return Retention(keep, {}, size)


@pytest.mark.parametrize(
    ("have", "kept", "expected"),
    [
        pytest.param({}, retention(), None, id="nothing is stored"),
        pytest.param({"blocks": [14]}, retention(), None, id="some of it is young enough"),
        pytest.param({"blocks": [15]}, retention(), "blocks_15", id="all of it is too old"),
        pytest.param({"blocks": [15, 17]}, retention(), "blocks_17", id="the oldest first"),
        pytest.param({"blocks": [999]}, retention(raw=None), None, id="for ever"),
        pytest.param({"frames": [99]}, retention(), None, id="the head is not its business"),
        pytest.param({"rollups_5m": [89]}, retention(), None, id="5m: young enough"),
        pytest.param({"rollups_5m": [90]}, retention(), "rollups_5m_90", id="5m: too old"),
        pytest.param({"rollups_1h": [730]}, retention(), "rollups_1h_730", id="1h: too old"),
        pytest.param(
            {"blocks": [96], "rollups_5m": [90]},
            retention(raw=None),
            None,
            id="what a finer tier still has stays",
        ),
        pytest.param(
            {"frames": [96], "rollups_5m": [90]}, retention(), None, id="the head is of that tier"
        ),
        pytest.param(
            {"blocks": [89], "rollups_5m": [90]},
            retention(raw=None),
            "rollups_5m_90",
            id="what a finer tier has of later does not matter",
        ),
        pytest.param({"blocks": [5, 6]}, retention(size=200), None, id="no more than the bound"),
        pytest.param({"blocks": [5, 6]}, retention(size=199), "blocks_6", id="above the bound"),
        pytest.param({"blocks": [0]}, retention(size=1), None, id="a day stays, whatever its size"),
        pytest.param({"blocks": [1]}, retention(size=1), "blocks_1", id="but not more than that"),
        pytest.param(
            {"blocks": [5], "rollups_5m": [9]}, retention(size=1), "blocks_5", id="raw goes first"
        ),
        pytest.param(
            {"rollups_5m": [9], "rollups_1h": [20]}, retention(size=1), "rollups_5m_9", id="then 5m"
        ),
    ],
)
def test_the_next_partition_to_drop(
    have: dict[str, list[int]], kept: Retention, expected: str | None
) -> None:
    found = next_drop(stored(**have), kept, NOW, ())
    assert (found and found.partition.name) == expected


def test_a_tier_that_is_stuck_holds_up_only_what_is_made_of_it() -> None:
    have = stored(blocks=[100], rollups_5m=[200, 95], rollups_1h=[800])
    first = next_drop(have, retention(), NOW, ["raw"])
    assert first is not None
    assert first.partition.name == "rollups_5m_200"
    have["rollups_5m"].pop(0)
    second = next_drop(have, retention(), NOW, ["raw"])
    assert second is not None
    assert second.partition.name == "rollups_1h_800"
    have["rollups_1h"].pop()
    assert next_drop(have, retention(), NOW, ["raw"]) is None
    assert overdue(have, retention(), NOW) == 85.5 * DAY


def test_what_is_stored_within_its_time_is_not_overdue() -> None:
    assert overdue(stored(blocks=[3], rollups_5m=[3]), retention(hour=None), NOW) == timedelta(0)


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        pytest.param(retention(), None, id="the defaults"),
        pytest.param(retention(1, 1, 1), None, id="a day of each"),
        pytest.param(retention(None, None, None), None, id="all for ever"),
        pytest.param(retention(0), "--raw: 0s; expected at least 1d", id="too short"),
        pytest.param(
            retention(15, 14),
            "--5m: 2w is shorter than the 15d of raw; expected at least as long",
            id="a rollup shorter than what it is made of",
        ),
        pytest.param(
            retention(15, None, 730),
            "--1h: 2y is shorter than the forever of 5m; expected at least as long",
            id="shorter than for ever",
        ),
    ],
)
def test_spans_are_checked(kept: Retention, expected: str | None) -> None:
    if expected is None:
        check(kept.keep)
        return
    with pytest.raises(Invalid) as refused:
        check(kept.keep)
    assert str(refused.value) == expected


def test_a_span_or_forever() -> None:
    assert parse_keep("raw", "2w") == 14 * DAY
    assert parse_keep("raw", "forever") is None
    with pytest.raises(Invalid, match="'ever' is not a duration"):
        parse_keep("raw", "ever")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("50GB", 50_000_000_000),
        ("1.5T", 1_500_000_000_000),
        ("512MiB", 512 << 20),
        ("2000000", 2_000_000),
        ("none", None),
    ],
)
def test_a_size_is_read(text: str, size: int | None) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-5GB", "5 apples", "1000", "1e9", "9999999999TB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(Invalid, match="--max-size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_600, "1 MB"), (3_210_000_000, "3.21 GB")],
)
def test_a_size_is_shown_with_three_digits(size: int, text: str) -> None:
    assert show_size(size) == text
