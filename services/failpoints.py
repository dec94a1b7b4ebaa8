"""Places where a test may kill the process, to prove what a crash there loses: nothing."""

import os
import signal


def failpoint(name: str) -> None:
    """Kill this process, as `kill -9` would, when VERVET_FAILPOINT names this place."""
    if os.environ.get("VERVET_FAILPOINT") == name:
        os.kill(os.getpid(), signal.SIGKILL)
