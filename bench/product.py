"""The product's processes, as its settings come, kept by the stack that the servers are kept by."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.stack.process import free_port, is_alive
from tests.stack.session import Stack

VERVET = Path(sys.executable).with_name("vervet")
END_TIMEOUT_S = 20.0


@contextmanager
def vervet(
    stack: Stack, command: str, settings: Mapping[str, str], log: Path
) -> Iterator[psutil.Process]:
    """`vervet <command>` with these variables; told to stop when the block ends."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("VERVET_")}
    environment = {**own, "VERVET_LISTEN": f"127.0.0.1:{free_port()}", **settings}
    process = stack.keeper.spawn([str(VERVET), command], environment, log)
    try:
        yield process
    finally:
        if is_alive(process):
            process.terminate()
            process.wait(END_TIMEOUT_S)
