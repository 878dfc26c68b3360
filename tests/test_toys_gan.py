"""The counting behind benchmarks/gaussians.py and stacked.py, against loops over single samples."""

from __future__ import annotations

import importlib
import math
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from conftest import ROOT
from pixelkiln.core.rng import generator
from pixelkiln.data import ImageSet
from pixelkiln.metrics import Modes


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    """What imports a program of benchmarks/ by its name."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield importlib.import_module
    sys.path.remove(str(ROOT / "benchmarks"))


def by_hand(x: list[list[float]], means: list[list[float]], deviation: float) -> tuple[list[int], int]:
    """Samples near each mean, and in all, one at a time."""
    counts, near = [0] * len(means), 0
    for point in x:
        if all(math.isfinite(v) for v in point):
            distances = [math.dist(point, mean) for mean in means]
            if min(distances) <= 3 * deviation:
                counts[distances.index(min(distances))] += 1
                near += 1
    return counts, near


@pytest.mark.parametrize("spread", [0.05, 0.3])
def test_quality_is_what_a_loop_over_samples_finds(bench: Any, spread: float) -> None:
    g = bench("gaussians")
    means, gen = g.centers(), generator("toys", int(100 * spread))
    chosen = torch.randint(7, (600,), generator=gen)  # of 25 modes at most 7 are there
    x = means[chosen] + spread * torch.randn(600, 2, generator=gen, dtype=torch.float64)
    x[3], x[5] = torch.tensor([math.nan, 0.0]), torch.tensor([math.inf, 0.0])
    found, (counts, near) = g.quality(x, means, 0.05, 20), by_hand(x.tolist(), means.tolist(), 0.05)
    assert list(found.counts) == counts
    assert found.share == near / 600
    assert (found.modes, found.touched) == (sum(c >= 20 for c in counts), sum(c > 0 for c in counts))
    kl = sum(c / near * math.log(25 * c / near) for c in counts if c)
    assert found.kl == pytest.approx(kl, rel=1e-12)
    assert found.modes < found.touched or spread < 0.1, "the wide cloud should reach means that it does not fill"


def test_quality_knows_both_ends(bench: Any) -> None:
    g = bench("gaussians")
    truth = g.quality(g.points(40_000, generator("toys", "truth")), g.centers(), g.DEVIATION, 20)
    assert (truth.modes, truth.touched) == (25, 25)
    assert truth.share == pytest.approx(1 - math.exp(-4.5), abs=0.0025), "a Rayleigh variable is below 3 with this probability: 5 deviations of a mean of 40,000"
    assert truth.kl < 24 / 40_000 * 2, "expected: (25 - 1) / (2 * 40,000)"
    collapsed = g.quality(g.centers()[:1].repeat(50, 1), g.centers(), g.DEVIATION, 20)
    assert (collapsed.modes, collapsed.share) == (1, 1.0)
    assert collapsed.kl == pytest.approx(math.log(25))
    between = g.quality(torch.full((50, 2), 0.5), g.centers(), g.DEVIATION, 20)
    assert (between.modes, between.touched, between.share) == (0, 0, 0.0)


def test_a_game_is_played_on_points(bench: Any) -> None:
    g = bench("gaussians")
    for variant in g.variants():
        trainer = g.game(variant, 4, 0)
        before = [p.detach().clone() for p in trainer.method.generator.parameters()]
        trainer.step(0)
        trainer.look()
        assert any(not torch.equal(a, b) for a, b in zip(before, trainer.method.generator.parameters(), strict=True)), variant.name
        assert g.samples(trainer, 5).shape == (5, 2)
    names = {v.rules.objective for v in g.variants() if v.rules == type(v.rules)(v.rules.objective)}
    assert names == set(g.OBJECTIVES), "every objective is there by itself"


def digits(n: int) -> ImageSet:
    """Images whose digit is written into each of their pixels."""
    labels = torch.randint(10, (n,), generator=generator("toys", "digits")) ** 2 // 9  # uneven
    return ImageSet((labels * 20).to(torch.uint8).view(n, 1, 1, 1).repeat(1, 1, 28, 28), labels, tuple("0123456789"))


@pytest.mark.parametrize("side", [28, 32])
def test_stacks_hold_the_digits_of_their_mode_in_the_order_of_channels(bench: Any, side: int) -> None:
    s = bench("stacked")
    images, modes = s.stacks(digits(200), 500, "a", side)
    again, _ = s.stacks(digits(200), 500, "a", side)
    other, _ = s.stacks(digits(200), 500, "b", side)
    assert images.shape == (500, 3, side, side)
    assert images.dtype == torch.uint8
    assert torch.equal(images, again)
    assert not torch.equal(images, other)
    for image, mode in zip(images, modes.tolist(), strict=True):
        assert [int(c) for c in f"{mode:03}"] == [int(image[k, 14, 14]) // 20 for k in range(3)]
    if side == 32:
        assert not images[:, :, :2].any()
        assert not images[..., -2:].any()


def test_modes_are_named_channel_by_channel(bench: Any) -> None:
    s = bench("stacked")
    images, modes = s.stacks(digits(200), 2500, "a", 32)  # more than one part
    shapes = set()

    def name(x: torch.Tensor) -> torch.Tensor:
        shapes.add(tuple(x.shape[1:]))
        return (x[:, 0].float().amin((1, 2)) / 20).long()  # a margin that was left would be black: digit 0

    assert torch.equal(s.named(images, name), modes)
    assert shapes == {(1, 28, 28)}
    large = images.repeat_interleave(2, 2).repeat_interleave(2, 3)  # (n, 3, 64, 64)
    assert torch.equal(s.named(large, lambda x: (x[:, 0, 14, 14].float() / 20).long()), modes)


def test_modes_and_divergence_are_what_loops_find(bench: Any) -> None:
    s = bench("stacked")
    data = digits(200)
    assert data.labels is not None
    share = {k: v / 200 for k, v in Counter(data.labels.tolist()).items()}
    _, modes = s.stacks(data, 3000, "a")
    law = s.law(data.labels)
    total = int(law.counts.sum())
    assert total == 200**3
    for mode in range(1000):
        a, b, c = (share.get(int(d), 0.0) for d in f"{mode:03}")
        assert float(law.counts[mode]) / total == pytest.approx(a * b * c, rel=1e-12)
    found, counts = s.scores(modes, law), Counter(modes.tolist())
    kl = 0.0
    for mode, n in counts.items():
        p, r = n / 3000, math.prod(share[int(d)] for d in f"{mode:03}")
        kl += p * math.log(p / r)
    assert found["modes"] == len(counts)
    assert found["kl"] == pytest.approx(kl, rel=1e-9)
    assert found["commonest"] == max(counts.values()) / 3000
    one = s.scores(torch.full((100,), 321), even := s.law(torch.arange(10)))
    assert (one["modes"], one["kl"]) == (1, pytest.approx(math.log(1000)))
    some = s.scores(torch.arange(500), even)
    assert (some["modes"], some["kl"]) == (500, pytest.approx(math.log(2))), "half the modes, evenly: log 2"


def test_the_law_is_the_limit_of_many_stacks(bench: Any) -> None:
    s = bench("stacked")
    labels = torch.arange(10).repeat(6)
    data = ImageSet(torch.zeros(60, 1, 28, 28, dtype=torch.uint8), labels, tuple("0123456789"))
    n = 50_000
    rows = [s.stacks(data, n // 10, f"{k}")[1] for k in range(10)]
    kl = Modes(1000).update(torch.cat(rows)).kl(s.law(labels))
    assert kl == pytest.approx(999 / (2 * n), rel=0.25), "2 n KL is a chi-square variable with 999 degrees of freedom: 0.25 are 5.6 deviations"
