"""Learned and counted sizes of the loss: minima in closed form, bins against a plain loop, expectations against quadrature."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pixelkiln.objectives.uncertainty import LossBins, uncertain
from pixelkiln.processes import strata


def f(q: Tensor) -> Tensor:
    """A loss whose size changes a hundredfold over q."""
    return 0.05 + 5 * q**4


def filled(bins: int = 16, batches: int = 60) -> LossBins:
    torch.manual_seed(0)
    made = LossBins(bins)
    for _ in range(batches):
        q = strata(64)
        made.update(q, f(q) * torch.rand(64, dtype=torch.float64) * 2)
    return made


def test_the_best_u_is_the_log_of_the_mean_loss():
    gen = torch.Generator().manual_seed(0)
    loss = torch.rand(4000, generator=gen, dtype=torch.float64) ** 2 * 3
    u = torch.tensor(loss.mean().log().item(), dtype=torch.float64, requires_grad=True)
    best = uncertain(loss, u).mean()
    best.backward()
    assert u.grad is not None
    assert u.grad.abs().item() < 1e-12
    assert best.item() == pytest.approx(1 + loss.mean().log().item(), rel=1e-12)
    for other in (u - 0.1, u + 0.1):
        assert uncertain(loss, other).mean() > best
    assert torch.equal(uncertain(loss, torch.zeros_like(loss)), loss)


def test_u_makes_the_gradients_of_all_levels_one_size():
    """d/dp of err / exp(u) at u = log err, for a loss of scale c: c cancels."""
    grads = []
    for c in (1e-3, 1.0, 1e3):
        p = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
        loss = c * (p - 1) ** 2
        uncertain(loss, loss.detach().log()).backward()
        assert p.grad is not None
        grads.append(p.grad.item())
    assert grads == pytest.approx([2 / 0.3] * 3, rel=1e-9)


def test_update_is_a_decaying_mean_in_each_bin():
    made, gen = LossBins(5, memory=4.0), torch.Generator().manual_seed(1)
    sums = np.zeros((3, 5))
    for _ in range(7):
        q, loss = torch.rand(9, generator=gen, dtype=torch.float64), torch.rand(9, generator=gen)
        made.update(q, loss)
        for k in range(5):
            mine = [float(v) for a, v in zip(q.tolist(), loss.tolist(), strict=True) if int(a * 5) == k]
            if mine:
                kept = 0.75 ** len(mine)
                sums[:, k] = kept * sums[:, k] + (1 - kept) * np.array([1, np.mean(mine), np.mean(np.square(mine))])
    assert np.allclose(made.sums.numpy(), sums, rtol=1e-5)


def test_draws_are_uniform_until_every_bin_is_warm():
    made = LossBins(4, memory=10.0)
    assert made.probabilities().tolist() == [0.25] * 4
    q = torch.tensor([0.1, 0.3, 0.6, 0.9], dtype=torch.float64)
    loss = torch.tensor([1.0, 2.0, 3.0, 4.0])
    for _ in range(9):
        made.update(q, loss)
    made.update(q[:3], loss[:3])
    assert made.probabilities().tolist() == [0.25] * 4
    made.update(q[3:], loss[3:])
    mixed = [0.999 * v / 10 + 0.001 / 4 for v in (1, 2, 3, 4)]  # all losses of a bin alike: E[loss^2]^1/2 is that loss
    assert made.probabilities().tolist() == pytest.approx(mixed, rel=1e-5)


def test_draws_follow_the_probabilities_and_weights_make_up_for_them():
    made = filled()
    p = made.probabilities()
    assert p.sum().item() == pytest.approx(1, abs=1e-12)
    assert p.max() / p.min() > 20
    draw = made.draw(20_000)
    assert ((draw.q >= 0) & (draw.q < 1)).all()
    counts = torch.bincount((draw.q * 16).long(), minlength=16) / 20_000
    assert torch.allclose(counts.double(), p, atol=2e-4)
    assert (draw.weight.double() * f(draw.q)).mean().item() == pytest.approx(0.05 + 1, rel=2e-3)  # the integral of f
    inside = (draw.q * 16) % 1
    assert inside.mean().item() == pytest.approx(0.5, abs=0.01)  # uniform within a bin


def test_importance_sampling_lowers_the_variance():
    made = filled()
    torch.manual_seed(2)
    draw, flat = made.draw(50_000), torch.rand(50_000, dtype=torch.float64)
    assert (draw.weight.double() * f(draw.q)).var() < 0.2 * f(flat).var()


def test_normalized_losses_are_of_one_size():
    made, q = filled(batches=300), torch.linspace(0.01, 0.99, 500, dtype=torch.float64)
    parts = made.normalized(q, f(q).float())
    assert parts.dtype == torch.float32
    sizes = [part.mean().item() for part in parts.chunk(8)]
    assert max(sizes) / min(sizes) < 2.5  # a hundred before; ten samples of memory are a noisy mean
    assert parts.mean().item() == pytest.approx(1, abs=0.25)
    assert not parts.requires_grad


def test_the_state_is_one_buffer_without_parameters():
    made, copy = filled(), LossBins(16)
    assert list(made.state_dict()) == ["sums"]
    assert not list(made.parameters())
    copy.load_state_dict(made.state_dict())
    assert torch.equal(copy.probabilities(), made.probabilities())
    loss = torch.ones(3, requires_grad=True)
    made.update(torch.tensor([0.1, 0.2, 1.0]), loss)  # q = 1 counts to the last bin; no graph is kept
    assert not made.sums.requires_grad
