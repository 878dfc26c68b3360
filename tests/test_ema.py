"""Averages by a power of the time: against their definition in float64, numpy's roots, quadrature, and averages that were kept during training."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pixelkiln.core.recipe import EmaConfig
from pixelkiln.core.runs import Run
from pixelkiln.core.types import UserError
from pixelkiln.engine.build import load_method
from pixelkiln.engine.ema import Average
from pixelkiln.engine.log import Log
from pixelkiln.engine.loop import Trainer
from pixelkiln.engine.posthoc import coefficients, exponent, inner, reconstruct, width
from pixelkiln.engine.train import Budget, Order, train
from pixelkiln.engine.where import Where

STEPS = 960
THIRD = (0.03, 0.07, 0.13)  # lengths that no snapshot has


class Two(nn.Module):
    """A net with a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(40, 25)
        self.net.register_buffer("count", torch.tensor(0))


def walk(num: int) -> Tensor:
    """Weights (num, 40 * 25 + 25) float64 of a training as trainings are: they go somewhere, with noise that becomes smaller."""
    gen = torch.Generator().manual_seed(0)
    d = 40 * 25 + 25
    start, end = (torch.randn(d, generator=gen, dtype=torch.float64) for _ in range(2))
    share = torch.linspace(0, 1, num, dtype=torch.float64)[:, None]
    steps = torch.randn(num, d, generator=gen, dtype=torch.float64).cumsum(0) / num**0.5
    return end + (start - end) * torch.exp(-6 * share) + 0.2 * steps * (1.2 - share)


def follow(model: Two, weights: Tensor) -> None:
    """Give the net these weights."""
    with torch.no_grad():
        model.net.weight.copy_(weights[:1000].view(25, 40))
        model.net.bias.copy_(weights[1000:])
    model.net.count += 1


def flat(named: dict[str, Tensor]) -> Tensor:
    return torch.cat([named["net.weight"].flatten(), named["net.bias"]]).double()


def offline(weights: Tensor, std: float) -> Tensor:
    """The average by its definition: the profile (g + 1) tau^g / t^(g + 1), integrated over each step by Gauss-Legendre quadrature."""
    g, t = exponent(std), len(weights)
    x, w = np.polynomial.legendre.leggauss(12)
    tau = np.arange(t)[:, None] + (x + 1) / 2
    share = ((g + 1) / t * (tau / t) ** g * w / 2).sum(1)
    assert share.sum() == pytest.approx(1, abs=1e-7)
    return torch.from_numpy(share) @ weights


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Tensor]:
    """A folder with 16 snapshots of two lengths, and the weights that were averaged."""
    run, model, weights = Run(tmp_path_factory.mktemp("ema")), Two(), walk(STEPS)
    average = Average(model, ("net",), EmaConfig(kind="power"))
    for k in range(STEPS):
        follow(model, weights[k])
        average.update(32, 32 * (k + 1))
        if average.due(k + 1, STEPS):
            run.snapshot(k + 1, average.snapshot(), {"stds": list(average.config.stds)})
    return run, weights


@pytest.mark.parametrize("std", [0.005, 0.01, 0.05, 0.1, 0.2, 0.28])
def test_the_exponent_is_the_largest_root(std: float) -> None:
    g = exponent(std)
    assert g == pytest.approx(np.roots([1, 7, 16 - std**-2, 12 - std**-2]).real.max(), rel=1e-9)
    tau = (np.arange(400_000) + 0.5) / 400_000  # the profile's own spread
    p = tau**g / (tau**g).sum()
    assert math.sqrt((p * (tau - (p * tau).sum()) ** 2).sum()) == pytest.approx(std, rel=1e-4)
    assert width(g) == pytest.approx(std, rel=1e-9)


@pytest.mark.parametrize("std", [0.0, -0.1, 0.3, math.nan, math.inf])
def test_a_length_that_no_profile_has_is_refused(std: float) -> None:
    with pytest.raises(UserError, match=r"up to 0\.2886"):
        exponent(std)
    assert exponent(12**-0.5) == pytest.approx(0, abs=1e-12), "the widest is the plain mean"


@pytest.mark.parametrize("std", [0.02, 0.05, 0.1, 0.25])
def test_the_running_average_is_the_weighted_mean(std: float) -> None:
    model, weights = Two(), walk(300)
    average = Average(model, ("net",), EmaConfig(kind="power", stds=(std,)))
    for k in range(300):
        follow(model, weights[k])
        average.update(16, 16 * (k + 1))
    expected = offline(weights, std)
    assert float((flat(average.mean) - expected).norm() / expected.norm()) < 1e-6
    with average.applied():
        assert float((flat(dict(model.named_parameters())).detach() - expected).norm() / expected.norm()) < 1e-6
        assert int(model.net.count) == 300, "buffers are those of the last step"
    assert set(average.mean) == {"net.weight", "net.bias"}


def test_inner_products_are_integrals() -> None:
    t, g = torch.tensor([3.0, 7.0, 7.0]), torch.tensor([2.0, 0.5, 16.9])
    tau = (np.arange(700_000) + 0.5) / 1e5
    profiles = np.stack([(b + 1) * tau**b / a ** (b + 1) * (tau <= a) for a, b in zip(t.tolist(), g.tolist(), strict=True)])
    np.testing.assert_allclose(inner(t, g, t, g).numpy(), profiles @ profiles.T / 1e5, rtol=1e-4)


def test_coefficients_sum_to_one_and_find_what_is_there() -> None:
    times, stds = [100.0, 100.0, 200.0, 200.0], [0.05, 0.1, 0.05, 0.1]
    torch.testing.assert_close(coefficients(times, stds, 200.0, 0.1), torch.tensor([0, 0, 0, 1.0], dtype=torch.float64), atol=1e-9, rtol=0)
    assert float(coefficients(times, stds, 200.0, 0.07).sum()) == pytest.approx(1)


@pytest.mark.parametrize("std", THIRD)
def test_afterwards_is_what_would_have_been_kept(kept: tuple[Run, Tensor], std: float) -> None:
    """The acceptance test: below 1e-3 of an average that was kept all the way."""
    run, weights = kept
    model = Two()
    online = Average(model, ("net",), EmaConfig(kind="power", stds=(std,)))
    for k in range(STEPS):
        follow(model, weights[k])
        online.update(32, 32 * (k + 1))
    wanted, found = flat(online.mean), flat(reconstruct(run, std))
    error = float((found - wanted).norm() / wanted.norm())
    newest = run.snapshots()[-1]
    nearest = min(float((flat(newest.tensors(f"std-{s}")) - wanted).norm() / wanted.norm()) for s in (0.05, 0.1))
    assert error < 1e-3, error
    assert error < nearest / 10, "what is stored itself is no substitute"


def test_snapshots_are_spread_over_the_plan_and_end_with_it() -> None:
    average = Average(Two(), ("net",), EmaConfig(kind="power", snapshots=4))
    assert [k for k in range(1, 11) if average.due(k, 10)] == [3, 5, 8, 10]
    assert [k for k in range(1, 3) if average.due(k, 2)] == [1, 2]
    for config in (EmaConfig(kind="power", snapshots=0), EmaConfig()):
        assert not any(Average(Two(), ("net",), config).due(k, 10) for k in range(1, 11))


def ordered(out: Path, resume: bool = False) -> Run:
    """A tiny GAN (nets with BatchNorm, one of them averaged), 20 steps, a snapshot every fourth."""
    changes = {"train.ema.kind": "power", "train.ema.snapshots": "5", "train.save_every": "6"}
    order = Order("dcgan", "digits", out, "tiny", Budget(steps=20), changes={} if resume else changes)
    return train(order if not resume else replace(order, budget=Budget()), Where("cpu", "fp32", False, 1), resume, Log(quiet=True))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield ordered(tmp_path_factory.mktemp("gan") / "run")
    torch.set_num_threads(before)


def test_a_killed_run_goes_on_with_the_same_averages_and_snapshots(unbroken: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dead in step 18, after the snapshot of step 16 and the checkpoint of step 12: all that follows is made again, bit for bit."""
    step = Trainer.step

    def dies(self: Trainer, k: int) -> None:
        if k == 17:
            raise MemoryError
        step(self, k)

    monkeypatch.setattr(Trainer, "step", dies)
    with pytest.raises(MemoryError):
        ordered(tmp_path / "run")
    monkeypatch.undo()
    broken = Run(tmp_path / "run")
    assert broken.checkpoint().step == 12
    assert [p.step for p in broken.snapshots()] == [4, 8, 12, 16]
    mark = broken.points("snapshots")[-1] / "mark"
    mark.write_text("of the first sitting")
    ordered(broken.path, resume=True)
    assert not mark.exists(), "what was not yet in a checkpoint is dropped"
    assert [p.step for p in broken.snapshots()] == [p.step for p in unbroken.snapshots()] == [4, 8, 12, 16, 20]
    for a, b in zip([broken.checkpoint(), *broken.snapshots()], [unbroken.checkpoint(), *unbroken.snapshots()], strict=True):
        for group in ("weights", "average", "averages", "optim", "std-0.05", "std-0.1"):
            one, two = a.tensors(group), b.tensors(group)
            assert one.keys() == two.keys()
            assert all(torch.equal(one[k], two[k]) for k in one), group
    point = unbroken.checkpoint()
    last = unbroken.snapshots()[-1]
    assert point.tensors("average").keys() == last.tensors("std-0.05").keys()
    assert all(torch.equal(v, last.tensors("std-0.1")[k.removeprefix("0.1/")]) for k, v in point.tensors("averages").items())


def test_a_run_samples_with_the_length_that_is_asked_for(unbroken: Run) -> None:
    """stds[0] by itself; another from the snapshots; 0 the last weights. Buffers (BatchNorm's) are always those of the last step."""
    held = unbroken.checkpoint().tensors("weights")
    plain, zero, same, other = (load_method(unbroken.path, ema_std=std)[0].state_dict() for std in (None, 0, 0.05, 0.08))
    averaged = {k for k in unbroken.snapshots()[-1].tensors("std-0.05")}
    assert averaged == {k for k in held if k.startswith("generator.") and "running" not in k and "num_batches" not in k}
    for name, value in held.items():
        assert torch.equal(zero[name], value)
        if name in averaged:
            torch.testing.assert_close(same[name], plain[name], rtol=1e-4, atol=1e-6)
            assert not torch.equal(other[name], plain[name])
        else:
            assert torch.equal(other[name], value)


def test_a_damaged_snapshot_is_named_and_may_be_removed(unbroken: Run, tmp_path: Path) -> None:
    shutil.copytree(unbroken.path, tmp_path / "run")
    run = Run(tmp_path / "run")
    file = run.points("snapshots")[1] / "std-0.1.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"step-00000008.* is damaged: remove .*step-00000008"):
        reconstruct(run, 0.08)
    shutil.rmtree(file.parent)
    found, whole = reconstruct(run, 0.08), reconstruct(unbroken, 0.08)
    assert all(float((found[k] - whole[k]).norm()) <= 0.05 * float(whole[k].norm()) + 1e-3 for k in whole)


@pytest.mark.parametrize("stds", ["0.5", "0.1,0.1", ""])
def test_lengths_that_cannot_be_kept_are_refused(tmp_path: Path, stds: str) -> None:
    order = Order("vae", "digits", tmp_path / "run", "tiny", Budget(steps=1), changes={"train.ema.kind": "power", "train.ema.stds": stds})
    with pytest.raises(UserError, match="above 0, up to|each once"):
        train(order, Where("cpu", "fp32", False, 1), log=Log(quiet=True))
