"""When a notification that could not be sent is tried again."""

import random
from datetime import timedelta

FIRST_DELAY = timedelta(seconds=2)
MAX_DELAY = timedelta(minutes=5)
"""A receiver that is back hears of it within this, however long it was away."""

MAX_RETRY_AFTER = timedelta(hours=1)
"""A receiver may ask for a pause, not for silence."""


def retry_delay(
    attempts: int, retry_after: timedelta | None, chance: random.Random | None = None
) -> timedelta:
    """The pause after attempt number `attempts` (from 1): doubled each time, capped, and between
    half and all of that, so that notifications which failed together don't return together."""
    part = chance.uniform(0.5, 1.0) if chance else random.uniform(0.5, 1.0)
    delay = min(MAX_DELAY, FIRST_DELAY * float(2 ** min(attempts - 1, 16))) * part
    if retry_after is not None:
        delay = max(delay, min(retry_after, MAX_RETRY_AFTER))
    return delay
