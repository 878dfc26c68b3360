"""How the images of a source are reached: arguments of the command, never part of a recipe."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..core.recipe import DataConfig
from ..data import ImageSet, Split, Streamed, open_source
from .log import Log

__all__ = ["Access", "available"]

AS_IS = DataConfig()
LISTED = 10  # images left out that are named on the terminal; recipe.json names all


def available() -> int:
    """Bytes of memory that this process may still take: what the system has and its control group (cgroup v2) leaves, shared with the other
    processes that torchrun started on this machine."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found = 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    with suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        found = min(found, int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return max(found, 0) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


@dataclass(frozen=True)
class Access:
    """skip_bad: leave out the images that cannot be decoded, and say which, instead of stopping at the first one. memory: bytes beyond
    which decoded images are streamed instead of kept (default: half of what is available). workers: processes that then decode."""

    skip_bad: bool = False
    memory: int | None = None
    workers: int | None = None

    def open(self, source: str, config: DataConfig = AS_IS, split: Split = "train", log: Log | None = None) -> ImageSet:
        """One split of the source; what is left out is said, and whether it is streamed."""
        bad: list[str] | None = [] if self.skip_bad else None
        memory = available() // 2 if self.memory is None else self.memory
        data = open_source(source, config, split, bad, memory, self.workers)
        if log is None:
            return data
        if isinstance(data.images, Streamed):
            size, by = len(data) * data.info.shape.numel / 2**20, data.images.workers
            log.say(f"{source}, {split}: {len(data):,} images would take {size:,.1f} MiB, and --memory is {memory / 2**20:,.1f} MiB: "
                    f"they are decoded on the way (--workers {by})")
        if bad:
            log.say(f"{source}, {split}: {len(bad)} of {len(bad) + len(data)} images cannot be used and are left out:")
            for line in bad[:LISTED]:
                log.say(f"  {line}")
            if len(bad) > LISTED:
                log.say(f"  and {len(bad) - LISTED} more")
        return data
