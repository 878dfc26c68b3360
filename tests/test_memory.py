"""Freed memory stays with the process: counted in page faults, in a process of its own, with and without."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

COUNT = """
import resource, torch
from pixelkiln.engine.memory import keep_memory
print(keep_memory(), keep_memory())
def work():
    for _ in range(20):
        torch.ones(6_000_000)  # 24 MB
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(**more: str) -> tuple[str, int]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k not in ("GLIBC_TUNABLES", "LD_PRELOAD")} | more
    done = subprocess.run([sys.executable, "-c", COUNT], env=env, check=True, capture_output=True, text=True)
    said, number = done.stdout.strip().splitlines()
    return said, int(number)


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="this is about Linux with the GNU C library")
def test_what_was_freed_is_used_again_without_a_page_fault() -> None:
    said, number = faults()
    assert said == "True True"
    assert number < 100, "20 tensors of 24 MB are 120,000 pages, or 240 huge ones, where nothing is kept"
    said, number = faults(MALLOC_MMAP_THRESHOLD_="1000000")
    assert said == "False False", "settings of the user's own are left alone"
    assert number > 10_000, "nothing to gain here: the test shows nothing"
