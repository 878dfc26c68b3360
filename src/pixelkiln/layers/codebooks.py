"""Codebooks of vectors: VQ (van den Oord et al. 2017, arXiv 1711.00937) and SimVQ (Zhu et al. 2024, arXiv 2411.02038).

    q(z) = e_k,  k = argmin_j |z - e_j|^2                                                   eq. 1 and 2 of van den Oord et al.
    L = |sg(z) - e|^2 + beta |z - sg(e)|^2                                                  the 2nd and 3rd term of eq. 3

as means over positions and channels. beta weighs the commitment of the encoder, the last term (a widely used code has it on the other one).
The first term is replaced by moving averages where they learn the codes (appendix A.1): with n_k vectors, of sum s_k, at code k in this step,

    N_k <- g N_k + (1 - g) n_k,   m_k <- g m_k + (1 - g) s_k,   e_k = m_k / N_k.

Both averages start at 0, so that both lack the factor 1 - g^t, and e_k does not: no bias towards where a code started, from the first step on.
A code that was never taken stays where it is. (To start at N = 0 with m = e, as is also found, throws every code that the first batch leaves
out to e / 0.) Codes start as vectors of the first batch, and one that is hardly ever taken begins anew as a vector of the latest.
"""

from __future__ import annotations

from typing import Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .quantize import Quantized, Quantizer, Usage, maps, nearest, rotated, rows, straight_through

__all__ = ["VQ", "SimVQ"]

EMPTY = 1e-12  # an average share below which a code has not been taken for so long that its mean is kept as it was
YOUNG = 0.2  # 1 - g^t of a code that is too young to be called dead: 22 steps for g = 0.99


@final
class VQ(Quantizer):
    """learn: codes follow moving averages, or the gradient of the codebook loss. Averages hold shares, not counts, so that they do not depend on
    the batch. dead: a code begins anew when it is taken less often than this share of 1 / K. cosine: vectors and codes have length 1."""

    anchor: Tensor
    size: Tensor
    total: Tensor
    age: Tensor
    begun: Tensor
    of_first = frozenset({"anchor"})

    def __init__(self, dim: int, codes: int, *, learn: Literal["ema", "loss"] = "ema", decay: float = 0.99, commitment: float = 0.25,
                 gradient: Literal["straight-through", "rotation"] = "straight-through", cosine: bool = False, dead: float = 0.03) -> None:
        super().__init__()
        self.dim, self.vocabulary, self.decay, self.commitment, self.cosine, self.dead = dim, codes, decay, commitment, cosine, dead
        self.carry = rotated if gradient == "rotation" else straight_through
        self.register_buffer("anchor", torch.randn(codes, dim))  # where a code began, or was when it was last taken
        self.register_buffer("size", torch.zeros(codes))  # N, of shares
        self.register_buffer("age", torch.zeros(codes))  # 1 - g^t
        self.register_buffer("begun", torch.zeros(()))
        self.usage = Usage(codes)
        self.offset = nn.Parameter(torch.zeros(codes, dim)) if learn == "loss" else None
        if self.offset is None:
            self.register_buffer("total", torch.zeros(codes, dim))  # m

    def codes(self) -> Tensor:
        """The codebook (K, D)."""
        if self.offset is not None:
            codes = self.anchor + self.offset
        else:
            codes = torch.where((self.size > EMPTY)[:, None], self.total / self.size.clamp_min(EMPTY)[:, None], self.anchor)
        return F.normalize(codes, dim=1) if self.cosine else codes

    def quantize(self, z: Tensor) -> Quantized:
        flat = rows(z)  # (n, D)
        if self.cosine:
            flat = F.normalize(flat, dim=1)
        new = self._prepare(flat.detach()) if self.moving else None
        codes = self.codes()
        index = nearest(flat.detach(), codes.detach())
        chosen = codes[index]  # (n, D)
        q = chosen.detach()
        loss = self.commitment * F.mse_loss(flat, q)
        if self.offset is not None:
            loss = loss + F.mse_loss(chosen, flat.detach())
        if new is not None:
            self._learn(flat.detach(), index, new)
        terms = {"quantization": F.mse_loss(flat.detach(), q), **self.usage.terms()}
        return Quantized(maps(self.carry(flat, q), z), maps(index[:, None], z), loss, terms)

    def lookup(self, indices: Tensor) -> Tensor:
        return self.codes()[indices[:, 0]].permute(0, 3, 1, 2)

    @torch.no_grad()
    def _prepare(self, flat: Tensor) -> Tensor:
        """Before the first choice, codes become vectors of the batch. Returns which codes are to begin anew after this step, (K,) bool: those
        that are old enough and taken too rarely.

        What is decided here depends on what all parts of a batch share, so that they decide alike.
        """
        if self.offset is None:
            self.anchor.copy_(self.codes())
        self.anchor.copy_(torch.where(self.begun > 0, self.anchor, self._drawn(flat)))
        return (self.age > YOUNG) & (self.size * self.vocabulary < self.dead * self.age)

    def _drawn(self, flat: Tensor) -> Tensor:
        """K vectors of the batch (K, D), such that anchor = vector makes it the code."""
        drawn = flat[torch.randint(len(flat), (self.vocabulary,), device=flat.device)]
        return drawn if self.offset is None else drawn - self.offset

    @torch.no_grad()
    def _learn(self, flat: Tensor, index: Tensor, new: Tensor) -> None:
        """The averages' step; dead codes begin anew; nothing is averaged in the first step, whose codes are each part's own."""
        rate = (1 - self.decay) * self.begun
        self.usage.update(index)
        count = torch.bincount(index, minlength=self.vocabulary).to(flat)
        self.size.lerp_(count / len(flat), rate)
        self.age.lerp_(torch.ones_like(self.age), rate)
        self.size.masked_fill_(new, 0)
        self.age.masked_fill_(new, 0)
        if self.offset is None:
            self.total.lerp_(torch.zeros_like(self.total).index_add_(0, index, flat) / len(flat), rate)
            self.total.masked_fill_(new[:, None], 0)
        self.anchor.copy_(torch.where(new[:, None], self._drawn(flat), self.anchor))
        self.begun.fill_(1)


@final
class SimVQ(Quantizer):
    """Codes c_k W + m with c fixed and W, m trained: a step for one code moves all, so that none is left behind (Zhu et al. 2024, section 4.2).

    L = |sg(z) - q|^2 + beta |z - sg(q)|^2, q = c_k W + m; c_k ~ N(0, I). W and m start such that codes have the mean and the covariance of the first
    batch's vectors: from the identity, the shortest c_k are the nearest ones to all small vectors, and few codes are ever taken.
    """

    frozen: Tensor
    start: Tensor
    center: Tensor
    begun: Tensor
    of_first = frozenset({"start", "center"})

    def __init__(self, dim: int, codes: int, *, commitment: float = 0.25, gradient: Literal["straight-through", "rotation"] = "straight-through") -> None:
        super().__init__()
        self.dim, self.vocabulary, self.commitment = dim, codes, commitment
        self.carry = rotated if gradient == "rotation" else straight_through
        self.register_buffer("frozen", torch.randn(codes, dim))
        self.register_buffer("start", torch.eye(dim))  # W^T and m are these and what was learned since
        self.register_buffer("center", torch.zeros(dim))
        self.register_buffer("begun", torch.zeros(()))
        self.looked = False  # whether `begun` was found to be true, after which it is not asked again
        self.weight, self.bias = nn.Parameter(torch.zeros(dim, dim)), nn.Parameter(torch.zeros(dim))
        self.usage = Usage(codes)

    def codes(self) -> Tensor:
        """The codebook (K, D)."""
        return F.linear(self.frozen, self.start + self.weight, self.center + self.bias)

    def quantize(self, z: Tensor) -> Quantized:
        flat = rows(z)
        if self.moving and not self.looked:
            self._begin(flat.detach())
        codes = self.codes()
        index = nearest(flat.detach(), codes.detach())
        chosen = codes[index]  # (n, D)
        q = chosen.detach()
        loss = self.commitment * F.mse_loss(flat, q) + F.mse_loss(chosen, flat.detach())
        if self.moving:
            self.usage.update(index)
        terms = {"quantization": F.mse_loss(flat.detach(), q), **self.usage.terms()}
        return Quantized(maps(self.carry(flat, q), z), maps(index[:, None], z), loss, terms)

    @torch.no_grad()
    def _begin(self, flat: Tensor) -> None:
        """In the first step, whose parts all begin: W^T W and m become covariance and mean of vectors (n, D)."""
        if self.begun:
            self.looked = True
            return
        mean = flat.mean(0)
        size, axes = torch.linalg.eigh((flat - mean).T @ (flat - mean) / len(flat))
        self.start.copy_(axes * size.clamp_min(0).sqrt())
        self.center.copy_(mean)
        self.begun.fill_(1)

    def lookup(self, indices: Tensor) -> Tensor:
        return self.codes()[indices[:, 0]].permute(0, 3, 1, 2)
