"""How large the loss is at each time, learned or counted: to weight it, or to draw the times where it matters.

Legend: q (B,) in [0, 1) the uniform numbers that times were drawn from (`processes.quantile`), loss (B,) each sample's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..processes import strata

__all__ = ["Draw", "LossBins", "uncertain"]


def uncertain(loss: Tensor, u: Tensor) -> Tensor:
    """loss / exp(u) + u, (B,), for a learned u (B,) of the noise level, unbounded.

    Karras et al. 2024 (arXiv 2312.02696), after Kendall et al. 2018 (arXiv 1705.07115). At its minimum exp(u) is the mean loss at that
    level, so the gradients of all levels are of one size. u is a small network's of c_noise, trained with the rest, unused in sampling.
    """
    return loss / u.exp() + u


@dataclass(frozen=True)
class Draw:
    """Uniform numbers q (n,) float64, drawn from another density than the uniform one, and the weights (n,) that make up for it."""

    q: Tensor
    weight: Tensor


class LossBins(nn.Module):
    """Running first and second moments of the loss in equal bins of q; the state is one buffer, and a loss may update it.

    The mean over a bin decays by 1 - 1 / memory with each of its samples (Nichol and Dhariwal 2021, arXiv 2102.09672, section 3.3,
    keep the last ten); until each bin has seen `memory` samples all draws are uniform.
    """

    sums: Tensor  # (3, bins): decayed sums of 1, loss, loss^2

    def __init__(self, bins: int = 64, memory: float = 10.0, uniform: float = 0.001) -> None:
        super().__init__()
        assert bins >= 1 and memory > 1 and 0 < uniform <= 1
        self.bins, self.memory, self.uniform = bins, memory, uniform
        self.register_buffer("sums", torch.zeros(3, bins))

    def _bin(self, q: Tensor) -> Tensor:
        return (q * self.bins).long().clamp(0, self.bins - 1)

    @torch.no_grad()
    def update(self, q: Tensor, loss: Tensor) -> None:
        """Take in a batch's losses, without the weights of `draw`."""
        k, loss = self._bin(q), loss.detach().to(self.sums)
        new = torch.zeros_like(self.sums).index_add_(1, k, torch.stack([torch.ones_like(loss), loss, loss**2]))
        num = new[0].clone()  # of this batch's samples in each bin
        kept = (1 - 1 / self.memory) ** num
        self.sums.mul_(kept).add_((1 - kept) * new / num.clamp_min(1))

    @torch.no_grad()
    def probabilities(self) -> Tensor:
        """p (bins,) float64: proportional to E[loss^2]^1/2, which has the least variance, mixed with a share `uniform` of 1 / bins."""
        weight, _, second = self.sums.double()
        p = (second / weight.clamp_min(1e-12)).sqrt().clamp_min(1e-12)
        flat = torch.full_like(p, 1 / self.bins)
        ready = (weight > 1 - (1 - 1 / self.memory) ** (self.memory - 0.5)).all()
        return torch.where(ready, (1 - self.uniform) * p / p.sum() + self.uniform * flat, flat)

    def draw(self, n: int) -> Draw:
        """n stratified numbers with the density bins * p, and weights 1 / (bins p): the mean of weight * loss keeps its expectation."""
        p = self.probabilities()
        ends = p.cumsum(0)
        u = strata(n, p.device) * ends[-1]
        k = torch.searchsorted(ends, u, right=True).clamp(max=self.bins - 1)
        q = (k + 1 - (ends[k] - u) / p[k]) / self.bins
        return Draw(q.clamp(0, 1 - 1e-16), (1 / (self.bins * p[k])).float())

    def normalized(self, q: Tensor, loss: Tensor) -> Tensor:
        """Each loss divided by the running mean of its bin, (B,): what `uncertain` learns, counted. After `update` with the same q."""
        mean = (self.sums[1] / self.sums[0].clamp_min(1e-12)).detach()[self._bin(q)]
        return loss / mean.to(loss).clamp_min(1e-12)
