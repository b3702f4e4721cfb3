"""Freed memory that stays with the process, in a process of its own."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from training.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
fill = lambda: bytearray(b"x") * 100_000_000  # above the largest threshold of malloc
fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_a_second_large_block_meets_no_page_faults():
    faults = {
        way: int(subprocess.run([sys.executable, "-c", PROGRAM, way], capture_output=True, check=True).stdout)
        for way in ("keep", "plain")
    }
    assert faults["keep"] < 100 < faults["plain"]
