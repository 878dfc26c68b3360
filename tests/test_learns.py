"""Each family learns: real digits, well under a minute each, and a score that an untrained or collapsed model cannot have."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pixelkiln.data import ImageSet, open_source
from pixelkiln.engine.evaluate import evaluate
from pixelkiln.engine.features import Extractor, extractor_for
from pixelkiln.engine.likelihood import likelihood
from pixelkiln.engine.log import Log
from pixelkiln.engine.sample import load
from pixelkiln.engine.train import Budget, Order, train
from pixelkiln.engine.where import Where
from pixelkiln.metrics.result import Report

pytestmark = pytest.mark.learns
HERE = Where("cpu", "fp32", False, torch.get_num_threads())


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[ImageSet, ImageSet, Extractor]:
    """The digits and a classifier's features of them."""
    sets = open_source("digits", split="train"), open_source("digits", split="test")
    return *sets, extractor_for(*sets, cache_dir=tmp_path_factory.mktemp("cache"))


def trained(tmp_path: Path, recipe: str, steps: int, **changes: str):  # type: ignore[no-untyped-def]
    order = Order(recipe, "digits", tmp_path / "run", "small", Budget(steps=steps), changes={k.replace("__", "."): v for k, v in changes.items()})
    return load(train(order, HERE, log=Log(quiet=True)).path, precision="fp32")


def score(images: Tensor, labels: Tensor | None, real: tuple[ImageSet, ImageSet, Extractor]) -> Report:
    return evaluate(images, labels, *real)


def test_ddpm_draws_the_digit_that_it_is_asked_for(tmp_path: Path, real: tuple[ImageSet, ImageSet, Extractor]) -> None:
    model = trained(tmp_path, "ddpm", 350, model__net__width="24", train__batch="64", train__opts__main__lr="3e-3")
    labels = torch.arange(360) % 10
    report = score(model.sample(360, label="all"), labels, real)
    assert report["accuracy"].value > 0.9
    assert report["fd"].value < 25
    assert report["coverage"].value > 0.2


def test_dcgan_shows_every_class(tmp_path: Path, real: tuple[ImageSet, ImageSet, Extractor]) -> None:
    model = trained(tmp_path, "dcgan", 300)
    images = model.sample(360)
    report = score(images, None, real)
    counts = torch.bincount(real[2].predict(images), minlength=10)
    assert (counts > 0).all(), f"classes found: {counts.tolist()}"
    assert report["fd"].value < 45
    assert images.float().std(0).mean() > 30, "samples differ from each other"


def test_vae_bounds_the_likelihood_better_than_pca_and_samples_digits(tmp_path: Path, real: tuple[ImageSet, ImageSet, Extractor]) -> None:
    model = trained(tmp_path, "vae", 1500, data__at_least="8")
    report = score(model.sample(360), None, real)
    bound = likelihood(model.method, real[1], 50, 0, HERE)
    flat = trained(tmp_path / "p", "pca", 1, data__at_least="8", model__components="16")
    exact = likelihood(flat.method, real[1], 1, 0, HERE)
    assert bound["bits/dim"] < exact["bits/dim"]
    assert report["fd"].value < 25


def test_pca_beats_noise_of_the_same_mean_and_variance(tmp_path: Path, real: tuple[ImageSet, ImageSet, Extractor]) -> None:
    model = trained(tmp_path, "pca", 1, data__at_least="8", model__components="16")
    x = real[0].images.float()
    noise = (x.mean(0) + x.std(0) * torch.randn(360, *x.shape[1:], generator=torch.Generator().manual_seed(0))).clamp(0, 255).byte()
    ours, theirs = score(model.sample(360), None, real), score(noise, None, real)
    assert ours["fd"].value < 0.6 * theirs["fd"].value
