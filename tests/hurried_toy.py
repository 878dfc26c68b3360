"""A recipe whose steps move the clock, on a machine that is busy at first, for process 0 alone: what one process finds, both do."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from pixelkiln.core.recipe import Recipe, Size

sys.path.insert(0, str(Path(__file__).parent))
from toys import Slower, slower

time.perf_counter = lambda: Slower.clock  # of this process, from now on
Slower.busy = 60.0 if os.environ.get("RANK", "0") == "0" else 0.0


def hurried(size: Size = "tiny") -> Recipe:
    """`slower` of the other toys."""
    return slower(size)
