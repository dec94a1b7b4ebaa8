"""What ingest has malloc keep. In a process of its own: it is a setting of the whole process."""

import platform
import subprocess
import sys

import pytest

TWICE = """
import resource
from services.ingest.service import keep_freed_memory

def faults_of_a_batch():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    batch = [b"x" * 100_000 for _ in range(300)]
    del batch
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_freed_memory()
print(faults_of_a_batch(), faults_of_a_batch())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc's malloc")
def test_a_batch_takes_the_memory_that_the_one_before_has_freed() -> None:
    done = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True, check=True)
    first, second = map(int, done.stdout.split())
    assert second < first / 10
