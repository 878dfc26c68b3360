"""How the images of a source are reached: an argument of the command, never part of a recipe."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.recipe import DataConfig
from ..data import ImageSet, Split, open_source
from .log import Log

__all__ = ["Access"]

AS_IS = DataConfig()
LISTED = 10  # images left out that are named on the terminal; recipe.json names all


@dataclass(frozen=True)
class Access:
    """skip_bad: leave out the images that cannot be decoded, and say which, instead of stopping at the first one."""

    skip_bad: bool = False

    def open(self, source: str, config: DataConfig = AS_IS, split: Split = "train", log: Log | None = None) -> ImageSet:
        """One split of the source; what is left out is said."""
        bad: list[str] | None = [] if self.skip_bad else None
        data = open_source(source, config, split, bad)
        if bad and log is not None:
            log.say(f"{source}, {split}: {len(bad)} of {len(bad) + len(data)} images cannot be used and are left out:")
            for line in bad[:LISTED]:
                log.say(f"  {line}")
            if len(bad) > LISTED:
                log.say(f"  and {len(bad) - LISTED} more")
        return data
