"""Truncated latents: three distributions against scipy's, chosen by a recipe or by the one who samples."""

from __future__ import annotations

import argparse
from typing import get_args

import pytest
import scipy.stats
import torch

from pixelkiln.cli import options
from pixelkiln.cli.main import main
from pixelkiln.core.catalog import builtin
from pixelkiln.core.rng import noise, streams
from pixelkiln.core.types import DataInfo, ImageShape, Request, Truncation, UserError
from pixelkiln.engine.build import make
from pixelkiln.methods.dcgan import DCGAN
from pixelkiln.objectives.truncation import truncated

LAWS = {
    "resampled": lambda t: scipy.stats.truncnorm(-t, t),
    "scaled": lambda t: scipy.stats.truncnorm(-2, 2, scale=t),  # scipy's bounds are in units of the scale
    "narrowed": lambda t: scipy.stats.norm(scale=t),
}


@pytest.mark.parametrize("t", [0.02, 0.3, 0.7, 1.0, 2.5])
@pytest.mark.parametrize("way", sorted(LAWS))
def test_draws_have_the_law_that_is_meant(way: Truncation, t: float) -> None:
    """100,000 draws: a Kolmogorov-Smirnov distance of 0.0062 has p = 0.001. The other two laws must be told from this one."""
    z = torch.randn(100_000, generator=torch.Generator().manual_seed(7))
    x = truncated(z, (way, t), "scaled").double().numpy()
    law = LAWS[way](t)
    assert scipy.stats.kstest(x, law.cdf).statistic < 0.0062
    assert x.std() == pytest.approx(law.std(), rel=0.01)
    assert scipy.stats.kurtosis(x) == pytest.approx(float(law.stats("k")), abs=0.06)
    for other in set(LAWS) - {way}:
        if t != 1.0 and not (t == 2.5 and {way, other} == {"resampled", "narrowed"}):
            assert scipy.stats.kstest(x, LAWS[other](t).cdf).statistic > 0.0062


def test_far_tails_stay_inside_and_order_is_kept() -> None:
    z = torch.tensor([-40.0, -9.0, -3.0, -0.1, 0.0, 0.1, 3.0, 9.0, 40.0])
    for way, bound in (("resampled", 0.5), ("scaled", 1.0)):
        x = truncated(z, (way, 0.5), "narrowed")  # type: ignore[arg-type]
        assert x.abs().max() <= bound
        assert bool((x.diff() >= 0).all()) and torch.isfinite(x).all()
        torch.testing.assert_close(x, -x.flip(0))


@pytest.mark.parametrize("way", sorted(LAWS))
def test_a_plain_number_is_in_the_recipes_way(way: Truncation) -> None:
    z = noise(streams((1, 2, 3), "z"), (16,))
    assert torch.equal(truncated(z, 0.6, way), truncated(z, (way, 0.6), "narrowed" if way != "narrowed" else "scaled"))


def generator(statistics: str) -> DCGAN:
    stage = builtin()["dcgan"]("tiny").last
    info = DataInfo(ImageShape(1, 16, 16))
    from dataclasses import replace

    method = make(replace(stage, model=replace(stage.model, statistics=statistics, reference=16)), info, {}, 0)
    assert isinstance(method, DCGAN)
    return method


@pytest.mark.parametrize("statistics", ["standing", "running"])
@pytest.mark.parametrize("asked", [0.7, ("resampled", 0.7), ("scaled", 0.7), ("narrowed", 0.7)])
def test_images_depend_on_their_own_seed_alone(asked: float | tuple[Truncation, float], statistics: str) -> None:
    method = generator(statistics)
    whole = method.sample(Request(tuple(range(6)), truncation=asked))
    split = torch.cat([method.sample(Request(seeds, truncation=asked)) for seeds in ((0, 1), (2,), (3, 4, 5))])
    torch.testing.assert_close(split, whole, atol=1e-5, rtol=0)
    assert not torch.equal(whole, method.sample(Request(tuple(range(6)))))
    default = method.sample(Request(tuple(range(6)), truncation=0.7))
    assert torch.equal(whole, default) == (asked in (0.7, (method.setting.truncation, 0.7)))


def test_what_is_typed() -> None:
    assert options.truncation("0.7") == 0.7
    for way in get_args(Truncation):
        assert options.truncation(f"{way}:0.7") == (way, 0.7)
    assert set(get_args(Truncation)) == set(LAWS)
    for wrong in ("0", "-1", "nan", "inf", "", "scaled", "scaled:", ":0.7", "scaled:0", "wide:0.7", "scaled:0.7:1", "scaled 0.7"):
        with pytest.raises(argparse.ArgumentTypeError, match="not a number above 0, or one of resampled:X, scaled:X, narrowed:X"):
            options.truncation(wrong)
    for wrong_number in (0.0, -0.5, float("nan"), float("inf")):
        with pytest.raises(UserError, match="above 0"):
            truncated(torch.zeros(3), wrong_number, "scaled")


def test_a_mistake_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "nowhere", "--out", "x.png", "--truncation", "wide:0.7"]) == 2
    said = capsys.readouterr().err.strip()
    assert said.count("\n") == 0 and "wide:0.7" in said and "narrowed:X" in said
    with pytest.raises(SystemExit):
        main(["sample", "--help"])
    text = capsys.readouterr().out
    assert all(way in text for way in get_args(Truncation))
