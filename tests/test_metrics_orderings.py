"""Spoiled real images must rank as they should, for the metrics that claim to see it; what a metric is blind to is tested too."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT, shared_data


@pytest.fixture(scope="module")
def bench() -> Any:
    """benchmarks/metrics.py, which also makes the page's table."""
    spec = importlib.util.spec_from_file_location("metrics_benchmark", ROOT / "benchmarks" / "metrics.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def verdicts(bench: Any) -> dict[str, dict[str, dict[str, Any]]]:
    """Verdicts on MNIST, on a small scale: 300 samples, 1,200 reference images, three draws."""
    return bench.table(shared_data("mnist"), 300, 1200, 3, lambda _: None)["verdicts"]


SEEN = {
    "blur": ("fd", "fd_inf", "kd", "kd_rbf", "sliced", "precision", "recall", "density", "coverage", "inception", "accuracy"),
    "noise": ("fd", "fd_inf", "kd", "kd_rbf", "sliced", "precision", "recall", "density", "coverage", "inception", "accuracy"),
    "dropped": ("fd", "kd_rbf", "recall", "coverage", "inception", "modes_kl"),
    "repeated": ("fd", "kd_rbf", "recall", "coverage", "sliced"),
    "copied": ("authenticity", "closer", "copying", "nearest_ratio"),
}


@pytest.mark.parametrize(("kind", "metric"), [(k, m) for k, ms in SEEN.items() for m in ms])
def test_worse_is_ranked_worse(verdicts: Any, bench: Any, kind: str, metric: str) -> None:
    """Level by level, and beyond the scatter of unseen real images at the strongest."""
    found = verdicts[metric][kind]
    assert found["verdict"] == "sees"
    means = found["mean"] if not bench.METRICS[metric] else [-m for m in found["mean"]]
    assert means == sorted(means)


BLIND = {
    "dropped": ("precision", "density", "accuracy"),
    "repeated": ("precision", "density", "accuracy"),  # a few good images again and again
    "copied": ("fd", "kd", "sliced", "precision", "recall", "inception", "vendi", "modes_kl"),  # nothing but the training set tells
}


@pytest.mark.parametrize(("kind", "metric"), [(k, m) for k, ms in BLIND.items() for m in ms])
def test_what_a_metric_is_blind_to(verdicts: Any, kind: str, metric: str) -> None:
    assert verdicts[metric][kind]["verdict"] != "sees"


def test_copies_beat_real_images(verdicts: Any) -> None:
    """Why a floor and a measure of memorization stand beside every score: copies score better than unseen images do."""
    assert verdicts["coverage"]["copied"]["verdict"] == "rewards"


def test_pairs_of_equal_error(bench: Any) -> None:
    rows = {r["distortion"]: r for r in bench.matched(shared_data("mnist"), 100)}
    for name in ("noise", "brighter"):
        assert rows[name]["psnr"] == pytest.approx(rows["blur"]["psnr"], abs=0.1)
    assert rows["brighter"]["ssim"] > rows["blur"]["ssim"] > rows["noise"]["ssim"]
    assert rows["one pixel to the right"]["psnr"] < rows["blur"]["psnr"]


def test_the_corruptions_are_what_they_say(bench: Any) -> None:
    train, test = bench.load(shared_data("mnist"), "train", 300), bench.load(shared_data("mnist"), "test", 500)
    spoiled = {k: [bench.spoil(k, level, test, 200, train, 0) for level in levels] for k, levels in bench.CORRUPTIONS.items()}
    assert all(len(s.x) == len(s.y) == 200 for group in spoiled.values() for s in group)
    assert [len(s.x.flatten(1).unique(dim=0)) for s in spoiled["repeated"]] == [100, 40, 10]
    assert [len(s.y.unique()) for s in spoiled["dropped"]] == [9, 7, 5]
    known = {row.numpy().tobytes() for row in train.x}
    assert [sum(row.numpy().tobytes() in known for row in s.x) for s in spoiled["copied"]] == [20, 60, 200]


def test_verdicts(bench: Any) -> None:
    floor = [1.0, 1.1, 0.9]  # deviation 0.1
    twice = lambda *values: [[v, v] for v in values]
    assert bench.judge(floor, twice(1.1, 1.4, 1.5), False)["from"] == 1
    assert bench.judge(floor, twice(1.4, 1.1, 1.5), False)["from"] == 2
    assert bench.judge(floor, twice(1.4, 1.5, 1.1), False)["verdict"] == "blind"
    assert bench.judge(floor, twice(1.1, 1.4, 1.5), True)["verdict"] == "rewards"
    assert bench.judge(floor, [[0.5, 2.5]], False)["verdict"] == "blind"  # what scatters that much proves nothing


def test_the_page_is_made_from_the_result(bench: Any) -> None:
    """docs/metrics.md shows what the newest result file holds, to the letter."""
    newest = sorted((ROOT / "benchmarks" / "results").glob("*-metrics.json"))[-1]
    page = Path(bench.DOCS).read_text(encoding="utf-8")
    part = page.split(bench.BEGIN)[1].split(bench.END)[0]
    assert part.strip() == bench.document(json.loads(newest.read_text())).strip()
