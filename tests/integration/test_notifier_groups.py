"""Groups, waits and repeats on a real database, by a clock that the test turns."""

from datetime import timedelta

import pytest

from services.database import Pool
from tests.notifier_rig import DOCUMENT, DOWN, LOST, REFUSED, START, FakeChannel, Rig, transition

SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)


@pytest.fixture
def ops() -> FakeChannel:
    return FakeChannel()


@pytest.fixture
def rig(pool: Pool, ops: FakeChannel) -> Rig:
    return Rig(pool, {"ops": [ops]})


async def test_a_group_waits_then_tells_all_its_alerts_at_once(rig: Rig, ops: FakeChannel) -> None:
    await rig.fire("web-1")
    await rig.advance(20 * SECOND)
    await rig.fire("web-2")
    await rig.advance(9 * SECOND)
    assert ops.told() == []
    await rig.advance(SECOND)
    assert ops.told() == ["firing web-1 web-2"]


async def test_changes_are_told_at_the_group_interval(rig: Rig, ops: FakeChannel) -> None:
    await rig.fire("web-1")
    await rig.advance(30 * SECOND)
    await rig.advance(MINUTE)
    await rig.fire("web-2")
    await rig.advance(4 * MINUTE - SECOND)
    assert len(ops.told()) == 1
    await rig.advance(SECOND)
    assert ops.told()[1:] == ["firing web-1 web-2"]
    await rig.advance(12 * MINUTE)
    await rig.resolve("web-1")
    await rig.advance(3 * MINUTE)
    assert ops.told()[2:] == ["firing web-2 | resolved web-1"]
    await rig.resolve("web-2")
    await rig.advance(5 * MINUTE)
    assert ops.told()[3:] == ["resolved web-2"]
    assert await rig.pool.fetchval("select count(*) from notify_groups") == 0


async def test_what_still_fires_is_repeated_at_the_repeat_interval(
    rig: Rig, ops: FakeChannel
) -> None:
    await rig.fire("web-1")
    await rig.advance(30 * SECOND + 8 * HOUR + MINUTE)
    assert ops.told() == ["firing web-1"] * 3
    assert len({one.id for one in ops.taken}) == 3
    assert [one.reason for one in ops.taken] == [
        "first notification",
        "repeat interval elapsed",
        "repeat interval elapsed",
    ]


async def test_an_alert_that_ends_within_the_wait_is_never_told(rig: Rig, ops: FakeChannel) -> None:
    await rig.fire("web-1")
    await rig.advance(SECOND)
    await rig.resolve("web-1")
    await rig.advance(HOUR)
    assert ops.told() == []
    assert await rig.pool.fetchval("select count(*) from notify_groups") == 0


async def test_an_alert_that_has_fired_for_long_waits_no_more(rig: Rig, ops: FakeChannel) -> None:
    old = [transition("web-1", "firing", START - MINUTE)]
    await rig.store.record(old, rig.routing.root, rig.now)
    await rig.advance(timedelta(0))
    assert ops.told() == ["firing web-1"]


async def test_an_alert_that_flaps_within_the_interval_is_not_told_again(
    rig: Rig, ops: FakeChannel
) -> None:
    await rig.fire("web-1")
    await rig.advance(MINUTE)
    await rig.resolve("web-1")
    await rig.advance(SECOND)
    await rig.fire("web-1")
    await rig.advance(HOUR)
    assert ops.told() == ["firing web-1"]


async def test_repeated_older_and_pending_transitions_change_nothing(
    rig: Rig, ops: FakeChannel
) -> None:
    fire = transition("web-1", "firing", START + SECOND)
    assert (await rig.store.record([fire, fire], rig.routing.root, rig.now)).applied == 1
    assert (await rig.store.record([fire], rig.routing.root, rig.now)).stale == 1
    older = transition("web-1", "inactive", START)
    assert (await rig.store.record([older], rig.routing.root, rig.now)).applied == 0
    pending = transition("web-1", "pending", START + MINUTE)
    assert (await rig.store.record([pending], rig.routing.root, rig.now)).applied == 0
    await rig.advance(HOUR)
    assert ops.told() == ["firing web-1"]


async def test_a_firing_that_arrives_after_its_end_is_old_news(rig: Rig, ops: FakeChannel) -> None:
    end = transition("web-1", "inactive", START + SECOND)
    begin = transition("web-1", "firing", START)
    for one in (end, begin):
        await rig.store.record([one], rig.routing.root, rig.now)
    await rig.advance(HOUR)
    assert ops.told() == []


async def test_a_receiver_that_was_away_hears_what_is_true_when_it_is_back(
    rig: Rig, ops: FakeChannel
) -> None:
    ops.answer = DOWN
    await rig.fire("web-1")
    await rig.advance(10 * MINUTE)
    await rig.fire("web-2")
    await rig.advance(HOUR)
    await rig.resolve("web-1")
    await rig.advance(HOUR)
    assert len(ops.attempts) < 60
    ops.answer = None
    await rig.advance(5 * MINUTE)
    assert ops.told() == ["firing web-2"]


async def test_what_began_and_ended_while_the_receiver_was_away_is_not_told(
    rig: Rig, ops: FakeChannel
) -> None:
    ops.answer = DOWN
    await rig.fire("web-1")
    await rig.advance(HOUR)
    await rig.resolve("web-1")
    await rig.advance(HOUR)
    ops.answer = None
    await rig.advance(HOUR)
    assert ops.told() == []
    assert await ledger(rig) == [("failed", "first notification")]
    error = await rig.pool.fetchval("select error from deliveries")
    assert error == "superseded before it was sent: resolved before it was told"


async def test_an_end_is_told_where_a_lost_answer_may_have_told_the_beginning(
    rig: Rig, ops: FakeChannel
) -> None:
    ops.answer = LOST
    await rig.fire("web-1")
    await rig.advance(MINUTE)
    ops.answer = DOWN
    await rig.advance(HOUR)
    await rig.resolve("web-1")
    await rig.advance(HOUR)
    ops.answer = None
    await rig.advance(HOUR)
    assert ops.told() == ["firing web-1", "resolved web-1"]


async def test_an_attempt_is_repeated_under_the_same_id(rig: Rig, ops: FakeChannel) -> None:
    ops.answer = LOST
    await rig.fire("web-1")
    await rig.advance(5 * MINUTE)
    ops.answer = None
    await rig.advance(5 * MINUTE)
    assert len(ops.attempts) > 5
    assert len(set(ops.attempts)) == 1
    assert await ledger(rig) == [("sent", "first notification")]


async def test_a_refusal_is_final_until_the_next_flush(rig: Rig, ops: FakeChannel) -> None:
    ops.answer = REFUSED
    await rig.fire("web-1")
    await rig.advance(5 * MINUTE)
    assert len(ops.attempts) == 1
    row = await rig.pool.fetchrow("select state, permanent, error, due_at from deliveries")
    assert tuple(row) == ("failed", True, "HTTP 400", None)
    ops.answer = None
    await rig.advance(MINUTE)
    assert ops.told() == ["firing web-1"]
    assert len(set(ops.attempts)) == 1


async def test_what_nobody_takes_is_given_up(rig: Rig, ops: FakeChannel) -> None:
    ops.answer = LOST
    await rig.fire("web-1")
    await rig.advance(2 * MINUTE)
    await rig.resolve("web-1")
    ops.answer = REFUSED
    await rig.advance(timedelta(days=4))
    ops.answer = None
    await rig.advance(timedelta(days=1))
    assert ops.told() == ["firing web-1"]
    assert await rig.pool.fetchval("select count(*) from notify_groups") == 0


async def test_a_failing_channel_delays_no_other_of_its_receiver(pool: Pool) -> None:
    good, bad = FakeChannel(), FakeChannel(answer=DOWN)
    rig = Rig(pool, {"ops": [bad, good]})
    await rig.fire("web-1")
    await rig.advance(MINUTE)
    await rig.resolve("web-1")
    await rig.advance(10 * MINUTE)
    assert good.told() == ["firing web-1", "resolved web-1"]
    assert bad.told() == []


async def test_a_channel_that_wants_no_ends_is_told_beginnings_only(pool: Pool) -> None:
    quiet = FakeChannel(send_resolved=False)
    rig = Rig(pool, {"ops": [quiet]})
    for _ in range(2):
        await rig.fire("web-1", "web-2")
        await rig.advance(6 * MINUTE)
        await rig.resolve("web-1")
        await rig.advance(6 * MINUTE)
        await rig.resolve("web-2")
        await rig.advance(6 * MINUTE)
    assert quiet.told() == ["firing web-1 web-2"] * 2


async def test_an_alert_goes_to_every_route_that_matches(pool: Pool) -> None:
    a, b = FakeChannel(), FakeChannel()
    document = {
        "route": {
            **DOCUMENT["route"],  # type: ignore[dict-item]
            "routes": [
                {"matchers": ["severity=critical"], "receiver": "a", "continue": True},
                {"matchers": ["severity=~.+"], "receiver": "b", "group_wait": "0s"},
            ],
        },
        "receivers": [{"name": "ops"}, {"name": "a"}, {"name": "b"}],
    }
    rig = Rig(pool, {"ops": [], "a": [a], "b": [b]}, document)
    await rig.fire("web-1", severity="critical")
    await rig.advance(timedelta(0))
    assert (a.told(), b.told()) == ([], ["firing web-1"])
    await rig.advance(30 * SECOND)
    assert a.told() == ["firing web-1"]


async def test_a_lease_that_ends_lets_another_notifier_send_under_the_same_id(
    rig: Rig, ops: FakeChannel
) -> None:
    await rig.fire("web-1")
    rig.time += 30 * SECOND
    await rig.flush()
    (crashed,) = await rig.claim()
    assert await rig.claim() == []
    await rig.advance(29 * SECOND)
    assert ops.attempts == []
    await rig.advance(2 * SECOND)
    assert ops.attempts == [crashed.id]
    assert await rig.ledger.succeeded(crashed, "", rig.now) is False
    assert await ledger(rig) == [("sent", "first notification")]


async def test_a_success_that_is_recorded_twice_counts_once(rig: Rig, ops: FakeChannel) -> None:
    await rig.fire("web-1")
    rig.time += 30 * SECOND
    await rig.flush()
    (claimed,) = await rig.claim()
    for _ in range(2):
        await rig.ledger.succeeded(claimed, "", rig.now)
    assert await rig.pool.fetchval("select sends from notify_told") == 1


async def test_what_changes_during_a_send_is_told_right_after_it(
    rig: Rig, ops: FakeChannel
) -> None:
    await rig.fire("web-1")
    rig.time += 30 * SECOND
    await rig.flush()
    (slow,) = await rig.claim()
    await rig.fire("web-2")
    rig.time += 5 * MINUTE - 20 * SECOND
    (slow,) = [slow] if not (again := await rig.claim()) else again
    rig.time += 20 * SECOND
    assert [reason.value for reason in await rig.flush()] == ["the last notification is being sent"]
    await rig.attempt(slow)
    await rig.advance(2 * SECOND)
    assert ops.told() == ["firing web-1", "firing web-1 web-2"]


async def test_ends_are_told_after_the_routing_document_changed(pool: Pool) -> None:
    old, new = FakeChannel(), FakeChannel()
    before = Rig(pool, {"ops": [old], "new": [new]}, DOCUMENT)
    assert await before.reconcile()
    assert not await before.reconcile()
    await before.fire("web-1", "web-2")
    await before.advance(MINUTE)
    moved = {
        "route": {**DOCUMENT["route"], "receiver": "new"},  # type: ignore[dict-item]
        "receivers": [{"name": "ops"}, {"name": "new"}],
    }
    after = Rig(pool, {"ops": [old], "new": [new]}, moved)
    after.time = before.time
    assert await after.reconcile()
    await after.advance(10 * HOUR)
    assert old.told() == ["firing web-1 web-2"]
    assert new.told() == ["firing web-1 web-2"] * 3
    await after.fire("web-3")
    await after.resolve("web-1", "web-2")
    await after.advance(HOUR)
    assert old.told()[1:] == ["resolved web-1 web-2"]
    assert new.told()[3:] == ["firing web-3 | resolved web-1 web-2"]


async def test_a_receiver_that_the_document_lost_is_told_nothing_more(pool: Pool) -> None:
    old, new = FakeChannel(answer=DOWN), FakeChannel()
    before = Rig(pool, {"ops": [old]})
    await before.fire("web-1")
    await before.advance(MINUTE)
    document = {
        "route": {**DOCUMENT["route"], "receiver": "new"},  # type: ignore[dict-item]
        "receivers": [{"name": "new"}],
    }
    after = Rig(pool, {"new": [new]}, document)
    after.time = before.time
    await after.reconcile()
    old.answer = None
    await after.advance(HOUR)
    assert (old.told(), new.told()) == ([], ["firing web-1"])
    assert ("failed", "first notification") in await ledger(after)


async def test_what_is_old_is_forgotten_and_what_lives_is_kept(rig: Rig, ops: FakeChannel) -> None:
    await rig.fire("web-1", "web-2")
    await rig.advance(MINUTE)
    await rig.resolve("web-1")
    await rig.advance(timedelta(days=40))
    keep = {"ledger_retention": timedelta(days=30), "inbox_retention": timedelta(days=90)}
    assert await rig.store.forget(rig.now, **keep) > 0
    assert await rig.pool.fetchval("select count(*) from notify_alerts") == 1
    await rig.resolve("web-2")
    await rig.advance(HOUR)
    assert ops.told()[-1] == "resolved web-2"


async def ledger(rig: Rig) -> list[tuple[str, str]]:
    rows = await rig.pool.fetch("select state, reason from deliveries order by sequence")
    return [(row["state"], row["reason"]) for row in rows]
