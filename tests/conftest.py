"""Shared by all tests: threads, and where the real data are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(min(2, os.cpu_count() or 1))
ROOT = Path(__file__).resolve().parent.parent


def shared_data(name: str) -> Path:
    """Folder of a real data set, from $PIXELKILN_DATA or ../shared/data beside the checkout; skips where it is absent."""
    base = Path(os.environ.get("PIXELKILN_DATA", ROOT.parent / "shared" / "data"))
    if not (base / name).exists():
        pytest.skip(f"real data {name!r} not found under {base}: set PIXELKILN_DATA to a folder that holds it")
    return base / name
