"""Vectors to the numbers of a codebook's codes: what all quantizers share.

A quantizer turns a map z (B, D, h, w) into codes. They are what the decoder sees, their numbers are what a prior learns, and the gradient of
the decoder must reach the encoder although the choice of a code has none. Two ways, both with the value of the code q and a gradient to z:

    straight-through:  z + sg(q - z),                    gradient I            (Bengio et al. 2013, arXiv 1308.3432; van den Oord et al. 2017, section 3.2)
    rotation trick:    sg(|q| / |z| R) z,  R z / |z| = q / |q|,  gradient |q| / |z| R^T          (Fifty et al. 2024, arXiv 2410.06424, eq. 4)

with sg: no gradient flows. Everything here is computed in fp32, as in bf16 the nearest code is often another one.

Legend: B batch, D channels, h x w positions, n = B h w vectors, K codes, L codes a position (1 but where quantizers are stacked).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["Quantized", "Quantizer", "Usage", "maps", "nearest", "rotated", "rows", "straight_through"]

OFTEN = 0.01  # a code is in use if it is taken at least so often, as a share of what it would get if all were taken alike
SAFE = 1e-6  # lengths below which there is no direction to be turned


class Quantized(NamedTuple):
    """z (B, D, h, w): the codes, with a gradient to the encoder; indices (B, L, h, w) int64; the loss, a scalar; what else is to be logged."""

    z: Tensor
    indices: Tensor
    loss: Tensor
    terms: Mapping[str, Tensor]


def rows(z: Tensor) -> Tensor:
    """(B, D, h, w) -> (n, D)."""
    return z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])


def maps(flat: Tensor, like: Tensor) -> Tensor:
    """(n, D) -> (B, D, h, w), B, h, w as of `like` (B, ., h, w)."""
    return flat.view(len(like), *like.shape[2:], -1).permute(0, 3, 1, 2)


def nearest(z: Tensor, codes: Tensor) -> Tensor:
    """argmin_k |z - e_k|^2 for z (n, D) and codes (K, D), (n,) int64 (van den Oord et al. 2017, eq. 1)."""
    return torch.addmm(codes.square().sum(1), z, codes.t(), beta=0.5, alpha=-1).argmin(1)  # (|e|^2 - 2 z e) / 2


def straight_through(z: Tensor, q: Tensor) -> Tensor:
    """The value of q with the gradient of z."""
    return z + (q - z).detach()


def rotated(z: Tensor, q: Tensor) -> Tensor:
    """The value of q as a rotation and stretch of z, both (n, D), that counts as constant (Fifty et al. 2024, eq. 4 and section 4.2).

    With unit vectors a of z, b of q and r of a + b, R = I - 2 r r^T + 2 b a^T. Where z or q is 0 or they are opposite there is no such
    rotation, and in one dimension it says nothing: straight through.
    """
    if z.shape[1] == 1:
        return straight_through(z, q)
    with torch.no_grad():
        long, far = z.norm(dim=1, keepdim=True), q.norm(dim=1, keepdim=True)  # (n, 1)
        a, b = z / long.clamp_min(SAFE), q / far.clamp_min(SAFE)
        both = (a + b).norm(dim=1, keepdim=True)
        r, stretch = (a + b) / both.clamp_min(SAFE), far / long.clamp_min(SAFE)
        good = (long > SAFE) & (far > SAFE) & (both > 1e-3)
    turned = stretch * (z - 2 * (z * r).sum(1, keepdim=True) * r + 2 * (z * a).sum(1, keepdim=True) * b)
    return torch.where(good, turned, straight_through(z, q))


class Usage(nn.Module):
    """How often each of K codes was taken lately, as shares: a moving mean over about 1 / (1 - decay) steps, not biased towards its start."""

    share: Tensor
    weight: Tensor

    def __init__(self, codes: int, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("share", torch.zeros(codes))
        self.register_buffer("weight", torch.zeros(()))

    @torch.no_grad()
    def update(self, indices: Tensor) -> None:
        """One step more; indices of any shape. Linear in the counts, so that the mean over the parts of a batch is that of the batch."""
        counts = torch.bincount(indices.reshape(-1), minlength=len(self.share)).to(self.share)
        self.share.lerp_(counts / indices.numel(), 1 - self.decay)
        self.weight.lerp_(torch.ones_like(self.weight), 1 - self.decay)

    def terms(self) -> dict[str, Tensor]:
        """usage: the share of codes that get at least a hundredth of an equal share; perplexity: exp of the entropy of the shares, 1 to K."""
        p = self.share / self.weight.clamp_min(1e-12)  # (K,)
        return {"usage": (p * len(p) >= OFTEN).float().mean(), "perplexity": torch.special.entr(p).sum().exp()}


class Quantizer(nn.Module, ABC):
    """dim: channels of z, D; vocabulary: codes K of each codebook; levels: codebooks, L.

    State moves in training only, and, as the statistics of a BatchNorm, only where `track_running_stats` is True: the loop sees to that.
    `of_first` names buffers that hold drawn vectors: where a batch comes in parts, those of the first part count, not a mean.
    """

    dim: int
    vocabulary: int
    levels: int = 1
    of_first: frozenset[str] = frozenset()

    def __init__(self) -> None:
        super().__init__()
        self.track_running_stats = True

    @property
    def moving(self) -> bool:
        """Whether state is to be moved by what is seen."""
        return self.training and self.track_running_stats

    def forward(self, z: Tensor) -> Quantized:
        """z (B, D, h, w) to its codes, in fp32."""
        with torch.autocast(z.device.type, enabled=False):
            return self.quantize(z.float())

    def indices(self, z: Tensor) -> Tensor:
        """Numbers of the codes, (B, L, h, w); nothing moves."""
        all_of_it: list[Any] = [m for m in self.modules() if hasattr(m, "track_running_stats")]
        was = [m.track_running_stats for m in all_of_it]
        for m in all_of_it:
            m.track_running_stats = False
        try:
            with torch.no_grad():
                return self(z).indices
        finally:
            for m, moved in zip(all_of_it, was, strict=True):
                m.track_running_stats = moved

    @abstractmethod
    def quantize(self, z: Tensor) -> Quantized:
        """As `forward`."""

    @abstractmethod
    def lookup(self, indices: Tensor) -> Tensor:
        """The codes (B, D, h, w) of their numbers (B, L, h, w)."""
