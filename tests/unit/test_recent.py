"""A memory bounded by weight: what is used stays, what is not goes."""

from hypothesis import given
from hypothesis import strategies as st

from services.recent import Recent

LIMIT = 10


def weigh(value: int) -> int:
    return value


def test_what_is_asked_for_stays_and_what_is_not_goes() -> None:
    recent: Recent[str, int] = Recent(LIMIT)
    recent.put("used", 3, 3)
    recent.put("unused", 3, 3)
    for number in range(12):
        recent.put(f"other {number}", 3, 3)
        assert recent.get("used", weigh) == 3
    assert recent.get("unused", weigh) is None


@given(st.lists(st.integers(1, LIMIT), max_size=60))
def test_no_more_than_two_generations_are_held(weights: list[int]) -> None:
    recent: Recent[int, int] = Recent(LIMIT)
    for number, weight in enumerate(weights):
        recent.put(number, weight, weight)
        assert recent.get(number, weigh) == weight
    held = [
        weight
        for number, weight in enumerate(weights)
        if number in recent._young or number in recent._old
    ]
    assert sum(held) <= 2 * LIMIT
