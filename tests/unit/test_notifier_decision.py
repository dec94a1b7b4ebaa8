from datetime import UTC, datetime, timedelta
from random import Random

import pytest

from services.notifier.decision import (
    GroupAlert,
    Pending,
    Plan,
    Reason,
    Told,
    after_failure,
    after_success,
    decide,
    digest_of,
    notification_id,
    plan,
)
from services.notifier.retries import FIRST_DELAY, MAX_DELAY, MAX_RETRY_AFTER, retry_delay

NOW = datetime(2026, 1, 1, tzinfo=UTC)
REPEAT = timedelta(hours=4)
JUST, LONG_AGO = NOW - timedelta(minutes=5), NOW - REPEAT


def told(*firing: int, at: datetime | None = JUST, doubtful: tuple[int, ...] = ()) -> Told:
    return Told(frozenset(firing), frozenset(doubtful), 1, at)


@pytest.mark.parametrize(
    ("known", "firing", "resolved", "reason"),
    [
        (Told(), {1}, set(), Reason.FIRST),
        (Told(), {1}, {2}, Reason.FIRST),
        (Told(), set(), {1}, Reason.NEVER_TOLD),
        (Told(), set(), set(), Reason.NEVER_TOLD),
        (told(), {1}, set(), Reason.FIRST),
        (told(1), {1, 2}, set(), Reason.NEW_ALERTS),
        (told(1), {2}, {1}, Reason.NEW_ALERTS),
        (told(1, 2), {1}, {2}, Reason.SOME_RESOLVED),
        (told(1), set(), {1}, Reason.ALL_RESOLVED),
        (told(1), {1}, {2}, Reason.UNCHANGED),
        (told(1), {1}, set(), Reason.UNCHANGED),
        (told(1, at=LONG_AGO), {1}, set(), Reason.REPEAT),
        (told(1, at=LONG_AGO), {1, 2}, set(), Reason.NEW_ALERTS),
        (told(doubtful=(1,)), set(), {1}, Reason.ALL_RESOLVED),
        (told(doubtful=(1,)), {1}, set(), Reason.FIRST),
        (told(1, doubtful=(2,)), {1}, {2}, Reason.SOME_RESOLVED),
    ],
)
def test_each_state_of_a_group_has_one_named_reason(
    known: Told, firing: set[int], resolved: set[int], reason: Reason
) -> None:
    found = decide(known, frozenset(firing), frozenset(resolved), repeat_interval=REPEAT, now=NOW)
    assert found is reason


def test_what_has_no_repeat_interval_is_not_repeated() -> None:
    reason = decide(
        told(1, at=LONG_AGO), frozenset({1}), frozenset(), repeat_interval=None, now=NOW
    )
    assert reason is Reason.UNCHANGED


def alerts(firing: set[int], resolved: set[int], at: datetime = JUST) -> list[GroupAlert]:
    return [GroupAlert(n, n in firing, at) for n in sorted(firing | resolved)]


def planned(
    known: Told,
    pending: Pending | None,
    group: list[GroupAlert],
    *,
    send_resolved: bool = True,
    retired: bool = False,
) -> Plan:
    return plan(
        known,
        pending,
        group,
        send_resolved=send_resolved,
        repeat_interval=REPEAT,
        retired=retired,
        now=NOW,
    )


def waiting(group: list[GroupAlert], *, doubtful: bool = False, leased: bool = False) -> Pending:
    firing = frozenset(alert.id for alert in group if alert.firing)
    return Pending("x", digest_of(group), firing, 1, doubtful, leased)


def test_a_pending_notification_that_is_still_true_goes_on() -> None:
    group = alerts({1}, set())
    made = planned(Told(), waiting(group), group)
    assert (made.content, made.superseded, made.told) == (None, False, Told())


def test_a_pending_notification_is_replaced_by_what_is_true_now() -> None:
    made = planned(Told(), waiting(alerts({1}, set())), alerts({1, 2}, set()))
    assert made.superseded
    assert made.content is not None
    assert made.content.firing == {1, 2}


def test_a_beginning_that_was_not_told_and_its_end_are_both_dropped() -> None:
    made = planned(Told(), waiting(alerts({1}, set())), alerts(set(), {1}))
    assert (made.reason, made.content, made.superseded) == (Reason.NEVER_TOLD, None, True)


def test_a_beginning_that_may_have_been_told_has_its_end_told() -> None:
    made = planned(Told(), waiting(alerts({1}, set()), doubtful=True), alerts(set(), {1}))
    assert (made.reason, made.superseded) == (Reason.ALL_RESOLVED, True)
    assert made.content is not None
    assert made.content.resolved == {1}


def test_a_notification_that_is_being_sent_is_left_alone() -> None:
    made = planned(Told(), waiting(alerts({1}, set()), leased=True), alerts(set(), {1}))
    assert (made.reason, made.content, made.superseded) == (Reason.BUSY, None, False)


def test_ends_of_alerts_that_were_never_told_are_left_out() -> None:
    made = planned(told(1), None, alerts({1, 3}, {2}))
    assert made.content is not None
    assert (made.content.firing, made.content.resolved) == ({1, 3}, set())


def test_an_alert_that_ended_and_fired_again_is_told_by_another_content() -> None:
    first = digest_of(alerts({1}, set(), JUST))
    assert first == digest_of(reversed(alerts({1}, set(), JUST)))
    assert first != digest_of(alerts({1}, set(), NOW))
    assert first != digest_of(alerts(set(), {1}, JUST))


def test_a_channel_without_ends_forgets_them_in_silence() -> None:
    made = planned(told(1, 2), None, alerts({1}, {2}), send_resolved=False)
    assert (made.reason, made.told.firing) == (Reason.UNCHANGED, {1})
    made = planned(made.told, None, alerts({1, 2}, set()), send_resolved=False)
    assert made.reason is Reason.NEW_ALERTS


def test_a_retired_group_tells_ends_and_nothing_else() -> None:
    assert planned(Told(), None, alerts({1}, set()), retired=True).reason is Reason.NEVER_TOLD
    made = planned(told(1, at=LONG_AGO), None, alerts({1, 2}, set()), retired=True)
    assert made.reason is Reason.UNCHANGED
    made = planned(told(1), None, alerts({2}, {1}), retired=True)
    assert made.reason is Reason.ALL_RESOLVED
    assert made.content is not None
    assert (made.content.firing, made.content.resolved) == (set(), {1})


def test_a_success_settles_what_was_doubtful_and_counts() -> None:
    known = after_success(told(1, doubtful=(2, 3)), {1, 2}, set(), NOW)
    assert known == Told(frozenset({1, 2}), frozenset({3}), 2, NOW)


def test_a_failure_is_remembered_only_where_it_may_have_been_heard() -> None:
    assert after_failure(told(1), {2}, doubtful=False) == told(1)
    assert after_failure(told(1), {2}, doubtful=True) == told(1, doubtful=(2,))


def test_an_id_depends_on_group_channel_round_and_content_alone() -> None:
    base = notification_id(b"g", "ops/webhook/0", 0, "d")
    assert base == notification_id(b"g", "ops/webhook/0", 0, "d")
    others = {
        notification_id(b"h", "ops/webhook/0", 0, "d"),
        notification_id(b"g", "ops/webhook/1", 0, "d"),
        notification_id(b"g", "ops/webhook/0", 1, "d"),
        notification_id(b"g", "ops/webhook/0", 0, "e"),
    }
    assert len(others - {base}) == 4


def test_pauses_double_up_to_a_cap_and_are_spread() -> None:
    chance = Random(1)
    for attempt in range(1, 100):
        bound = min(MAX_DELAY, FIRST_DELAY * 2 ** min(attempt - 1, 30))
        pauses = {retry_delay(attempt, None, chance) for _ in range(20)}
        assert all(bound / 2 <= pause <= bound for pause in pauses)
        assert len(pauses) > 10


def test_a_receiver_can_ask_for_a_longer_pause_up_to_a_cap() -> None:
    assert retry_delay(1, timedelta(minutes=10)) == timedelta(minutes=10)
    assert retry_delay(1, timedelta(days=10)) == MAX_RETRY_AFTER
    assert retry_delay(9, timedelta(0)) >= MAX_DELAY / 2
