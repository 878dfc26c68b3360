"""What all diffusion models share: estimates within bounds, walks without noise of their own, inputs of one size, levels told apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from commands import TINY, pixelkiln
from pixelkiln.core.catalog import builtin
from pixelkiln.core.protocols import Denoiser, Latent, Likelihood
from pixelkiln.core.types import Condition, DataInfo, ImageShape, Request, UserError
from pixelkiln.engine.build import make
from pixelkiln.methods.ddpm import DDPM, DDPMConfig
from pixelkiln.solvers import SOLVERS
from pixelkiln.solvers.diffusion import Free, Sampling, guided

INFO = DataInfo(ImageShape(1, 16, 16), ("a", "b", "c"))
FAMILIES = ("ddpm", "iddpm", "vp-sde", "subvp-sde", "ve-sde", "edm", "edm2", "flow", "dit")


def shaken(name: str, **changes: object) -> Free:
    """A tiny model with weights that matter."""
    stage = builtin()[name]("tiny").last
    method = make(replace(stage, model=replace(stage.model, **changes)), INFO, {}, 0).eval()
    assert isinstance(method, Free)
    torch.manual_seed(1)
    with torch.no_grad():
        for p in method.parameters():
            p.add_((0.2 if p.ndim else 5.0) * torch.randn_like(p))  # gains are scalars
    return method


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_guided_estimates_are_kept_where_the_plain_ones_are(name: str) -> None:
    """By more than a guidance of 1 they would leave [-1, 1]; a percentile, where one is asked for, decides in its place."""
    x, cond, order = 5 * torch.randn(6, 1, 16, 16), Condition(label=torch.arange(6) % 3), Sampling(guidance=4.0)
    method = shaken(name)
    assert float(guided(method, cond, order)(x, 5.0).abs().max()) <= 1
    free = shaken(name, clip=False)
    assert float(guided(free, cond, order)(x, 5.0).abs().max()) > 1
    kept = guided(free, cond, replace(order, threshold=0.9))(x, 5.0)
    assert not torch.equal(kept, guided(free, cond, order)(x, 5.0).clamp(-1, 1))


@pytest.mark.parametrize("sampling", [Sampling("ddim", 3, eta=1.0), Sampling("heun", 3, churn=20.0), Sampling("ddpm", 3)], ids=lambda s: s.solver)
@torch.no_grad()
def test_a_latent_is_an_image_whatever_the_model_samples_with(sampling: Sampling) -> None:
    method = shaken("ddpm", sampling=sampling)
    z, cond = method.latents((1, 2)), Condition(label=torch.tensor([0, 1]))
    x = method.from_latents(z, Request((1, 2), cond))
    assert torch.equal(x, method.from_latents(z, Request((3, 4), cond)))
    assert torch.equal(x, shaken("ddpm", sampling=replace(sampling, eta=0.0, churn=0.0)).from_latents(z, Request((1, 2), cond, solver="ddim")))
    for asked in ({"eta": 1.0}, {"solver": "heun", "churn": 5.0}, *({"solver": n} for n, s in SOLVERS.items() if s.stochastic and not s.eta and not s.churn)):
        with pytest.raises(UserError, match="without noise of its own"):
            method.from_latents(z, Request((1, 2), cond, **asked))


def test_a_run_that_samples_with_fresh_noise_has_a_report_and_walks(tmp_path: Path) -> None:
    run = tmp_path / "r"
    assert pixelkiln("train", "ddpm", "--data", "digits", "--out", run, "--steps", 2, "--model.sampling.solver", "ddim", "--model.sampling.eta", 1, *TINY) == 0
    assert (run / "report.html").exists()
    assert pixelkiln("interpolate", run, "--out", tmp_path / "walk.png", "--label", 1, "--quiet") == 0
    assert pixelkiln("interpolate", run, "--out", tmp_path / "no.png", "--label", 1, "--solver", "ddpm", "--quiet") == 2


@pytest.mark.parametrize("schedule", ["ve", "edm"])
@pytest.mark.parametrize("predict", ["eps", "x0", "v", "velocity", "score", "F"])
@torch.no_grad()
def test_networks_are_fed_inputs_of_one_size_on_paths_that_keep_the_data(monkeypatch: pytest.MonkeyPatch, schedule: str, predict: str) -> None:
    """In training and in sampling, at every level, alike."""
    method = DDPM(INFO, DDPMConfig(net=builtin()["ddpm"]("tiny").last.model.net, dim=32, schedule=schedule, predict=predict))  # type: ignore[arg-type]
    seen: list[Tensor] = []
    monkeypatch.setattr(method, "network", lambda x, t, cond: (seen.append(x), torch.zeros_like(x))[1])
    for s in (0.05, 1.0, 70.0):
        x0, eps = torch.rand(8, 1, 16, 16) - 0.5, torch.randn(8, 1, 16, 16)
        x, t = x0 + s * eps, method.path.t_of_ratio(torch.full((8,), s, dtype=torch.float64))
        method.denoise(x, torch.full((8,), s), Condition())
        torch.testing.assert_close(method.scaled(x, t), seen[-1])
        assert 0.3 < float(seen[-1].std()) < 1.1


@torch.no_grad()
def test_the_laplace_path_tells_its_high_levels_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    method = DDPM(INFO, DDPMConfig(net=builtin()["ddpm"]("tiny").last.model.net, dim=32, schedule="laplace"))
    told: list[float] = []
    monkeypatch.setattr(method, "network", lambda x, t, cond: (told.append(float(t[0])), torch.zeros_like(x))[1])
    levels = (15.0, 80.0, 160.0)
    for s in levels:
        method.denoise(torch.randn(1, 1, 16, 16), torch.full((1,), s), Condition())
    assert told == pytest.approx([float(torch.tensor(s).log()) / 4 for s in levels], rel=1e-3)


@pytest.mark.parametrize("name", ["upscale", "colorize", "inpaint"])
def test_what_needs_a_picture_has_no_latent_no_likelihood_and_is_no_base(name: str) -> None:
    info = DataInfo(ImageShape(3, 16, 16))
    method = make(builtin()[name]("tiny").last, info, {}, 0)
    assert isinstance(method, Denoiser) and not isinstance(method, (Latent, Likelihood))
    for editor in ("sdedit", "repaint", "invert", "composed", "autoguided"):
        stage = builtin()[editor]("tiny").last
        with pytest.raises(UserError, match="needs one for each image"):
            make(stage, info, dict.fromkeys(stage.parents, method), 0)
