"""A process among others; how workers are kept and lost is tested in `test_pool.py`."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to")
def test_memory_that_was_freed_is_not_cleared_again() -> None:
    faults = """
import resource, sys
from unet_batch.processes.process import keep_memory
if sys.argv[1] == "keep":
    keep_memory()
for _ in range(6):
    b"1" * 2**26
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""
    given_back, kept = (
        int(subprocess.run([sys.executable, "-c", faults, how], capture_output=True, check=True).stdout)
        for how in ("", "keep")
    )
    assert given_back - kept > 4 * 2**26 / 4096
