"""The wall clock, as everything here counts it: microseconds since 1970 UTC."""

import time


def now_us() -> int:
    return time.time_ns() // 1000
