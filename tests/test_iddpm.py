"""Improved DDPM: what the two halves of the objective mean, where their gradients go, and that sampling uses the variance that was learned."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pixelkiln.core.protocols import Likelihood, Score
from pixelkiln.core.types import Batch, Condition, DataInfo, ImageShape, Moment, Request, UserError
from pixelkiln.engine.build import make
from pixelkiln.engine.panels import bits_panel
from pixelkiln.methods import iddpm as module
from pixelkiln.methods.iddpm import IDDPM, IDDPMConfig, iddpm
from pixelkiln.nets.mlp import MLPConfig
from pixelkiln.objectives.bound import step_nats
from pixelkiln.processes import target
from pixelkiln.solvers import ddpm, ddpm_large
from report_toys import Plain, context

START = Moment(0, 100, 0)
SMALL = IDDPMConfig(MLPConfig(width=24, depth=1), dim=16, T=20)


def built(config: IDDPMConfig = SMALL, classes: tuple[str, ...] = ("a", "b"), seed: int = 0) -> IDDPM:
    stage = replace(iddpm("tiny").last, model=config)
    method = make(stage, DataInfo(ImageShape(1, 4, 4), classes), {}, seed)
    assert isinstance(method, IDDPM)
    gen = torch.Generator().manual_seed(1)
    with torch.no_grad():  # the head starts at zero
        for p in method.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=gen))
    return method


def batch(n: int = 8) -> Batch:
    gen = torch.Generator().manual_seed(0)
    return Batch(torch.randint(0, 256, (n, 1, 4, 4), generator=gen) / 127.5 - 1, Condition(label=torch.zeros(n, dtype=torch.long)))


def terms(method: IDDPM, x: Batch) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return dict(method.loss(x, START))


def test_hybrid_is_simple_plus_a_thousandth_of_the_sum_over_all_steps():
    """0.001 T KL in bits per dimension, of one step drawn: guided diffusion's KL times T / 1000. Computed here from the formulas, sample by sample."""
    method, x = built().eval(), batch(8)
    found = terms(method, x)
    torch.manual_seed(0)
    order = torch.randperm(8)
    i = ((order.double() + torch.rand(8, dtype=torch.float64)) / 8 * 20).long() + 1
    eps = torch.randn_like(x.x)
    t = method.path.t_max * i.double() / 20
    a, s = (v.reshape(8, 1, 1, 1) for v in (method.path.alpha(t), method.path.sigma(t)))
    xt = (a * x.x + s * eps).float()
    out, share = method.both(xt, t, x.cond)
    simple = (out - target("v", x.x, eps, method.path.alpha(t), method.path.sigma(t))).square().mean()
    D = (a * xt - s * out).clamp(-1, 1).float()
    bits = step_nats(x.x, D, share, i, method.levels) / 16 / math.log(2)
    assert found["simple"].item() == pytest.approx(simple.item(), rel=1e-4)
    assert found["bits_per_dim"].item() == pytest.approx(20 * bits.mean().item(), rel=1e-4)
    assert found["loss"].item() == pytest.approx(simple.item() + 20 / 1000 * bits.mean().item(), rel=1e-4)


def test_the_bound_does_not_reach_the_mean_in_the_hybrid_objective():
    """The gradient of the part with lambda is 0 in the mean's channels of the last layer, and not in the variance's; "vlb" alone reaches both."""
    grads = {}
    for name, config in {"simple": replace(SMALL, weight=0.0), "hybrid": SMALL, "vlb": replace(SMALL, objective="vlb")}.items():
        method = built(config).eval()
        head = [p for p in method.net.parameters() if p.shape[:1] == (32,)][-1]  # 2 x 1 channels of 4 x 4 pixels
        terms(method, batch())["loss"].backward()
        grads[name] = head.grad.reshape(2, 16, -1)
    mean, variance = 0, 1
    assert torch.allclose(grads["hybrid"][mean], grads["simple"][mean], rtol=1e-5, atol=1e-8)
    assert (grads["simple"][variance] == 0).all()
    assert grads["hybrid"][variance].abs().sum() > 0
    assert grads["vlb"][mean].abs().sum() > 0
    assert not torch.allclose(grads["vlb"][mean], grads["hybrid"][mean], rtol=0.1)


def test_steps_drawn_by_their_losses_leave_the_expectation_alone():
    """Once the bins are known the draws are far from uniform, and the weighted mean of the loss is that of uniform draws."""
    method = built(replace(SMALL, objective="vlb", resample=True)).eval()
    plain = built(replace(SMALL, objective="vlb")).eval()
    plain.load_state_dict(method.state_dict(), strict=False)
    x = Batch(batch(8).x.repeat(100, 1, 1, 1), Condition(label=torch.zeros(800, dtype=torch.long)))
    with torch.no_grad():
        for _ in range(4):
            method.loss(x, START)
        assert method.bins is not None
        p = method.bins.probabilities()
        assert p.max() > 3 * p.min()
        drawn = torch.stack([method.loss(x, START)["loss"] for _ in range(30)])
        flat = torch.stack([plain.loss(x, START)["loss"] for _ in range(30)])
    error = math.hypot(drawn.std().item(), flat.std().item()) / 30**0.5
    assert abs(drawn.mean().item() - flat.mean().item()) < 4 * error
    assert [row.nets for row in method.updates()] == [("net", "condition", "bins")]
    assert [row.nets for row in plain.updates()] == [("net", "condition")]


def test_denoise_is_the_mean_of_moments():
    method, x = built().eval(), batch(5)
    s = method.levels[torch.tensor([1, 3, 9, 15, 20])]
    D, share = method.moments(x.x, s, x.cond)
    assert torch.allclose(D, method.denoise(x.x, s, x.cond), atol=1e-5)
    assert share.shape == D.shape
    assert not torch.equal(share[0], share[1])


@pytest.mark.parametrize(("v", "run"), [(-1.0, ddpm), (1.0, ddpm_large)])
def test_sampling_uses_the_learned_variance(v: float, run: object, monkeypatch: pytest.MonkeyPatch):
    """Where the network says v = -1 (or 1) everywhere, its samples are those of the small (or large) fixed variance, for any number of steps."""
    method = built(replace(SMALL, sampling=replace(SMALL.sampling, guidance=1.0))).eval()
    both = method.both
    monkeypatch.setattr(method, "both", lambda *a: (both(*a)[0], torch.full_like(a[0], (v + 1) / 2)))
    request = Request((1, 2, 3), Condition(label=torch.tensor([0, 1, 0])), steps=7)
    found = method.sample(request)
    name = "ddpm" if run is ddpm else "ddpm-large"
    monkeypatch.setattr(module, "ddpm_learned", lambda moments, x, levels, **more: run(lambda x, s: moments(x, s)[0], x, levels, **more))  # type: ignore[operator]
    assert torch.allclose(found, method.sample(request), atol=1e-5)
    if name == "ddpm-large":
        assert torch.allclose(found, method.sample(replace(request, solver=name)), atol=1e-5)


def test_guidance_changes_the_mean_and_takes_the_variance_of_the_condition(monkeypatch: pytest.MonkeyPatch):
    method, seen = built().eval(), []
    cond = Condition(label=torch.tensor([0, 1]))

    def spy(moments: object, x: Tensor, levels: Tensor, **more: object) -> Tensor:
        D, share = moments(x, float(levels[0]))  # type: ignore[operator]
        s = x.new_full((2,), float(levels[0]))
        D_c, f_c = method.moments(x, s, cond)
        D_u, f_u = method.moments(x, s, Condition())
        assert torch.allclose(D, D_u + 3 * (D_c - D_u), atol=1e-5)
        assert torch.allclose(share, f_c, atol=1e-6)
        assert not torch.allclose(f_c, f_u, atol=1e-4)
        seen.append(True)
        return D

    monkeypatch.setattr(module, "ddpm_learned", spy)
    method.sample(Request((1, 2), cond, guidance=3.0))
    assert seen


def test_the_network_is_told_the_time_that_it_knows(monkeypatch: pytest.MonkeyPatch):
    """Respaced to 5 of 20 steps, the levels are every fourth of the chain's, and the times are theirs in the whole chain."""
    method, times = built().eval(), []
    both = method.both
    monkeypatch.setattr(method, "both", lambda x, t, c: (times.append(float(t[0])), both(x, t, c))[1])
    assert torch.allclose(method.sigmas(5, "ddpm")[:-1], method.levels[[20, 16, 12, 8, 4]], rtol=1e-9)
    method.sample(Request((1,), steps=5, guidance=1.0))
    want = [method.path.t_max * i / 20 for i in (20, 16, 12, 8, 4)]
    assert times == pytest.approx(want, rel=1e-5)


def test_log_prob_is_a_bound_that_few_steps_estimate_without_bias():
    method, x = built().eval(), batch(6).x
    gen = torch.Generator().manual_seed(0)
    whole = torch.stack([method.log_prob(x, 20, gen).nats for _ in range(60)])
    part = torch.stack([method.log_prob(x, 6, gen).nats for _ in range(200)])
    error = (whole.std(0) ** 2 / 60 + part.std(0) ** 2 / 200) ** 0.5
    assert ((whole.mean(0) - part.mean(0)).abs() < 4.5 * error).all()
    score = method.log_prob(x, 6, gen)
    assert (score.kind, score.per_dim, score.how) == ("bound", 0.0, "6 of 20 steps an image")
    assert method.terms(x, 20, gen).shape == (20, 2)


def test_an_untrained_model_needs_at_least_about_eight_bits():
    """Uniform 8-bit noise cannot be coded in fewer than 8 bits per dimension by anything."""
    method = built(seed=3).eval()
    gen = torch.Generator().manual_seed(2)
    x = torch.randint(0, 256, (200, 1, 4, 4), generator=gen) / 127.5 - 1
    bits = -method.log_prob(x, 20, gen).nats.mean() / 16 / math.log(2)
    assert bits > 8


class Bounded(Plain, Likelihood):
    """Its step i costs 10^-i bits per dimension."""

    def log_prob(self, x: Tensor, samples: int, gen: torch.Generator) -> Score:
        return Score(torch.zeros(len(x)), "bound", "toys")

    def terms(self, x: Tensor, samples: int, gen: torch.Generator) -> Tensor:
        i = torch.arange(1.0, 6)
        return torch.stack([i, x[0].numel() * math.log(2) * 10**-i], dim=1)


def test_the_report_draws_the_cost_of_each_step_on_a_logarithmic_axis():
    page = bits_panel(context(Bounded))
    assert "costs 0.1 bits per dimension" in page
    points = [tuple(map(float, p.split(","))) for p in page.split('points="')[1].split('"')[0].split()]
    rises = {round(b[1] - a[1], 1) for a, b in zip(points, points[1:], strict=False)}
    assert len(points) == 5
    assert max(rises) - min(rises) < 0.25
    assert min(rises) > 10
    assert bits_panel(context(Plain)) == ""


def test_a_chain_of_one_step_is_refused():
    with pytest.raises(UserError, match=r"--model\.T is 1"):
        built(replace(SMALL, T=1))
