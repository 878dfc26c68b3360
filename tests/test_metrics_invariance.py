"""What must hold for every metric: the order, the batches and the workers do not matter, a seed decides, the global generators rest."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable
from dataclasses import astuple, is_dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import pixelkiln.metrics as metrics
from pixelkiln.metrics import (
    InceptionScore,
    Modes,
    Moments,
    Vendi,
    authenticity,
    bootstrap,
    copying,
    frechet_distance,
    frechet_error,
    frechet_infinity,
    inception_score,
    kernel_distance,
    mmd2,
    ms_ssim,
    n_curve,
    nearest_ratio,
    neighborhood_scores,
    path_length,
    perceptual_distance,
    psnr,
    rbf,
    sliced_distance,
    ssim,
    vendi_score,
)


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


TRAIN, TEST, FAKE = normal(240, 6, 0), normal(200, 6, 1), 0.9 * normal(220, 6, 2) + 0.2
REAL = Moments.of(TRAIN)


def classes(x: Tensor) -> Tensor:
    return (2 * x).softmax(1)


def pictures(x: Tensor) -> Tensor:
    """(N, 1, 16, 16) in [0, 1] from features."""
    return F.interpolate(x[:, :4].sigmoid().reshape(-1, 1, 2, 2), (16, 16), mode="bilinear", align_corners=False)


def blurred(x: Tensor) -> Tensor:
    return F.avg_pool2d(F.pad(pictures(x), (1, 1, 1, 1), mode="replicate"), 3, 1)


def averaged(score: Callable[[Tensor, Tensor], Tensor], x: Tensor) -> tuple[float, float]:
    streamed = Moments(1)
    for part in torch.split(x, 50):
        streamed.update(score(pictures(part), blurred(part))[:, None])
    return float(streamed.mean), float(streamed.error)


# name -> (score of samples and seed, does it use the seed). Every metric of the package stands here; a test counts.
SCORES: dict[str, tuple[Callable[[Tensor, int], Any], bool]] = {
    "frechet_distance": (lambda x, s: frechet_distance(REAL, Moments.of(x)), False),
    "frechet_error": (lambda x, s: frechet_error(real=REAL, fake=x), False),
    "frechet_infinity": (lambda x, s: frechet_infinity(real=REAL, fake=x, seed=s), True),
    "n_curve": (lambda x, s: n_curve(lambda p: float(p.square().mean()), x, seed=s), True),
    "bootstrap": (lambda x, s: bootstrap(lambda p: float(p.square().mean()), x, num=20, seed=s), True),
    "kernel_distance": (lambda x, s: kernel_distance(real=TRAIN, fake=x, seed=s, subset=50), True),
    "mmd2": (lambda x, s: float(mmd2(TRAIN, x)), False),
    "rbf": (lambda x, s: float(mmd2(TRAIN, x, rbf(1.5))), False),
    "sliced_distance": (lambda x, s: sliced_distance(real=TRAIN, fake=x, num_projections=40, seed=s), True),
    "neighborhood_scores": (lambda x, s: neighborhood_scores(real=TRAIN, fake=x), False),
    "authenticity": (lambda x, s: authenticity(train=TRAIN, fake=x), False),
    "nearest_ratio": (lambda x, s: nearest_ratio(train=TRAIN, test=TEST, fake=x), False),
    "copying": (lambda x, s: copying(train=TRAIN, test=TEST, fake=x, num_cells=3, seed=s), True),
    "vendi_score": (lambda x, s: vendi_score(x), False),
    "inception_score": (lambda x, s: inception_score(classes(x), seed=s), True),
    "Modes": (lambda x, s: Modes(6).update(x.argmax(1)).kl(Modes(6).update(TRAIN.argmax(1))), False),
    "accuracy": (lambda x, s: metrics.accuracy(predicted=x.argmax(1), labels=(x + 0.3 * x.roll(1, 1)).argmax(1)), False),
    "purity": (lambda x, s: metrics.purity((x + 0.3 * x.roll(1, 1)).argmax(1), x.argmax(1)), False),
    "mutual_information": (lambda x, s: metrics.mutual_information((x + 0.3 * x.roll(1, 1)).argmax(1), x.argmax(1)), False),
    "psnr": (lambda x, s: averaged(lambda a, b: psnr(a, b, data_range=1), x), False),
    "ssim": (lambda x, s: averaged(lambda a, b: ssim(a, b, data_range=1), x), False),
    "ms_ssim": (lambda x, s: averaged(lambda a, b: ms_ssim(a, b, data_range=1, exponents=(1.0,)), x), False),
    "perceptual_distance": (lambda x, s: averaged(lambda a, b: perceptual_distance(a, b, span=(0, 1), stages=lambda z: [z]), x), False),
    "path_length": (
        lambda x, s: path_length(lambda z: (z @ x[:3].float().T)[:, :, None, None], lambda a, b: (a - b).square().flatten(1).sum(1), dim=6, num=40, seed=s),
        True,
    ),
}
SEEDED = [name for name, (_, seeded) in SCORES.items() if seeded]
ORDERED = {"frechet_infinity", "n_curve", "bootstrap", "kernel_distance", "inception_score", "path_length"}  # random parts of the samples


def numbers(found: Any) -> list[float]:
    """All numbers of a score."""
    if is_dataclass(found) and not isinstance(found, type):
        found = astuple(found)
    return [n for f in found for n in numbers(f)] if isinstance(found, (tuple, list)) else [float("nan") if found is None else float(found)]


def test_every_metric_stands_in_the_table() -> None:
    functions = {n for n in metrics.__all__ if inspect.isfunction(getattr(metrics, n))}
    assert functions - set(SCORES) == {"polynomial", "mig", "dci", "sap"}  # a kernel of mmd2; scores of codes beside factors: tests/test_disentangle.py
    assert {n for n in metrics.__all__ if hasattr(getattr(metrics, n), "merge")} == {"Agreement", "InceptionScore", "Modes", "Moments", "Vendi"}


@pytest.mark.parametrize("name", [n for n in SCORES if n != "path_length"])  # which has no samples
def test_a_score_does_not_depend_on_the_order_of_the_samples(name: str) -> None:
    """Exactly, or, where random parts are drawn, no more than another seed would change it."""
    score, _ = SCORES[name]
    order = torch.randperm(len(FAKE), generator=torch.Generator().manual_seed(3))
    a, b = numbers(score(FAKE, 0)), numbers(score(FAKE[order], 0))
    if name not in ORDERED:
        assert a == pytest.approx(b, rel=1e-7, abs=1e-9)
    else:
        others = [numbers(score(FAKE, s))[0] for s in range(1, 9)]
        assert abs(a[0] - b[0]) <= 2 * (max(others) - min(others)) + 1e-9


@pytest.mark.parametrize("name", SCORES)
def test_a_score_is_reproducible_and_leaves_the_global_generators_alone(name: str) -> None:
    score, _ = SCORES[name]
    torch.manual_seed(11)
    np.random.seed(11)
    random.seed(11)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    first = numbers(score(FAKE, 0))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
    assert random.getstate() == before[2]
    torch.manual_seed(12)
    np.random.seed(12)
    assert numbers(score(FAKE, 0)) == pytest.approx(first, rel=1e-12, nan_ok=True)


@pytest.mark.parametrize("name", SEEDED)
def test_the_seed_counts(name: str) -> None:
    score, _ = SCORES[name]
    found = {tuple(numbers(score(FAKE, s))) for s in range(4)}
    assert len(found) > 1


@pytest.mark.parametrize("name", SCORES)
def test_the_inputs_are_left_as_they_were(name: str) -> None:
    x, train = FAKE.clone(), TRAIN.clone()
    SCORES[name][0](x, 0)
    assert torch.equal(x, FAKE)
    assert torch.equal(TRAIN, train)


@pytest.mark.parametrize("name", ["frechet_distance", "kernel_distance", "sliced_distance", "neighborhood_scores", "authenticity", "vendi_score"])
def test_features_in_other_precisions_and_with_gradients_are_fine(name: str) -> None:
    score = SCORES[name][0]
    exact = numbers(score(FAKE, 0))
    assert numbers(score(FAKE.float().requires_grad_(), 0)) == pytest.approx(exact, rel=1e-3, abs=1e-3)
    coarse = numbers(score(FAKE.bfloat16(), 0))
    assert coarse == pytest.approx(exact, rel=0.1, abs=0.05)


STREAMS: dict[str, tuple[Callable[[], Any], Callable[[Any, Tensor, Tensor], Any], Callable[[Any], Any]]] = {
    "Moments": (lambda: Moments(6), lambda m, x, numbers: m.update(x), lambda m: frechet_distance(REAL, m)),
    "Vendi": (lambda: Vendi(6), lambda m, x, numbers: m.update(x), lambda m: m.score),
    "Modes": (lambda: Modes(6), lambda m, x, numbers: m.update(x.argmax(1)), lambda m: m.counts.tolist()),
    "InceptionScore": (lambda: InceptionScore(6, 7), lambda m, x, numbers: m.update(classes(x), numbers), lambda m: m.score),
}


@pytest.mark.parametrize("name", STREAMS)
def test_streams_do_not_depend_on_batches_or_workers(name: str) -> None:
    """One process in one batch, in many, and five workers with interleaved or contiguous shares, merged in any order."""
    make, add, read = STREAMS[name]
    every = torch.arange(len(FAKE))
    whole = numbers(read(add(make(), FAKE, every)))
    for size in (1, 7, 64, 219):
        stream = make()
        for start in range(0, len(FAKE), size):
            add(stream, FAKE[start : start + size], every[start : start + size])
        assert numbers(read(stream)) == pytest.approx(whole, rel=1e-9)
    contiguous, strided = every.split([0, 50, 1, 100, 69]), [every[w::5] for w in range(5)]
    for shares, order in ((contiguous, [0, 1, 2, 3, 4]), (contiguous, [4, 2, 0, 3, 1]), (strided, [4, 2, 0, 3, 1])):
        total = make()
        for w in order:
            worker = make()
            total.merge(add(worker, FAKE[shares[w]], shares[w]))
        assert numbers(read(total)) == pytest.approx(whole, rel=1e-9)


@pytest.mark.parametrize("name", STREAMS)
def test_streams_take_constant_memory(name: str) -> None:
    make, add, _ = STREAMS[name]

    def size(stream: Any) -> int:
        return sum(v.numel() for v in vars(stream).values() if isinstance(v, Tensor))

    stream = add(make(), FAKE, torch.arange(len(FAKE)))
    before = size(stream)
    for i in range(1, 4):
        add(stream, FAKE, torch.arange(i * len(FAKE), (i + 1) * len(FAKE)))
    assert size(stream) == before < FAKE.numel()


def test_scores_of_one_image_by_number_of_threads() -> None:
    """Sums over blocks may be added in another order, no more."""
    wanted = ("neighborhood_scores", "sliced_distance", "mmd2", "ssim")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = [numbers(SCORES[n][0](FAKE, 0)) for n in wanted]
        torch.set_num_threads(2)
        two = [numbers(SCORES[n][0](FAKE, 0)) for n in wanted]
    finally:
        torch.set_num_threads(before)
    for a, b in zip(one, two):
        assert a == pytest.approx(b, rel=1e-9)
