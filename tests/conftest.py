"""Shared by all tests: threads, and where the real data are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

PARALLEL = "PYTEST_XDIST_WORKER" in os.environ  # one of several processes: a thread each, in what they start, too
if PARALLEL:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1 if PARALLEL else min(2, os.cpu_count() or 1))
ROOT = Path(__file__).resolve().parent.parent


def shared_data(name: str) -> Path:
    """Folder of a real data set, from $PIXELKILN_DATA or ../shared/data beside the checkout; skips where it is absent."""
    base = Path(os.environ.get("PIXELKILN_DATA", ROOT.parent / "shared" / "data"))
    if not (base / name).exists():
        pytest.skip(f"real data {name!r} not found under {base}: set PIXELKILN_DATA to a folder that holds it")
    return base / name


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where tests/pipelines.py keeps its tiny pipelines."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of its own, and a Hub that does not answer."""
    monkeypatch.setenv("PIXELKILN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
