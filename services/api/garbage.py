"""Objects that only hold each other, looked for when nobody waits for an answer.

By itself the interpreter looks through all objects that there are whenever many were made: in the
midst of a large query, for some tenths of a second in which nothing else runs, again and again.
What a query makes goes without it.
"""

import asyncio
import gc
import time
from collections.abc import Callable

EVERY_S = 5.0
PATIENCE_S = 300.0
"""After so long they are looked for, whatever is being answered."""

LONG_S = 0.02
"""Of the processor. Where it takes longer, what was found to be in use is not looked at again."""

USUAL = (700, 10, 10)
NEVER = 2**31 - 1


async def collect_in_pauses(is_idle: Callable[[], bool]) -> None:
    """Until it is cancelled, only young objects are looked through while something is answered."""
    gc.set_threshold(*USUAL[:2], NEVER)
    gc.collect()
    gc.freeze()
    waited_s = 0.0
    try:
        while True:
            await asyncio.sleep(EVERY_S)
            waited_s += EVERY_S
            if is_idle() or waited_s >= PATIENCE_S:
                _collect()
                waited_s = 0.0
    finally:
        gc.unfreeze()
        gc.set_threshold(*USUAL)


def _collect() -> None:
    began_s = time.thread_time()
    gc.collect()
    if time.thread_time() - began_s > LONG_S:
        gc.freeze()
