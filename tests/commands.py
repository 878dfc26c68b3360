"""What the tests of commands share: a call as from a shell, in this process, and small runs of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pixelkiln.cli.main import main
from pixelkiln.data import shapes

CHOSEN = ["--precision", "fp32", "--layout", "contiguous", "--quiet"]
TINY = ["--size", "tiny", *CHOSEN]


def pixelkiln(*args: object) -> int:
    """The exit status of a command."""
    try:
        return main([str(a) for a in args])
    except SystemExit as e:
        return int(e.code or 0)


@contextmanager
def linear_runs(base: Path, train: int, test: int) -> Iterator[None]:
    """Within, `shapes` has so many images (22,000 take seconds to draw) and the cache is in `base`, which has a run `pca` of it, and of digits two steps of `vae` and `ddpm`."""
    patch = pytest.MonkeyPatch()
    patch.setenv("PIXELKILN_CACHE", str(base / "cache"))
    patch.setattr(shapes, "NUM", {"train": train, "test": test})
    assert pixelkiln("train", "pca", "--data", "shapes", "--out", base / "pca", "--data.resolution", 16, *TINY) == 0
    for name in ("vae", "ddpm"):
        assert pixelkiln("train", name, "--data", "digits", "--out", base / name, "--steps", 2, *TINY) == 0
    yield
    patch.undo()
