"""Codes: the part of a generator's latent that is to mean something, and the network that reads it back (Chen et al. 2016, arXiv 1606.03657).

The latent stays z (n, d) ~ N(0, I), so that walks, truncation and seeds work as everywhere; what the generator is given is a function of it:

    category    argmax of z_1 .. z_K, one-hot    each of K with probability 1/K, since the K numbers are exchangeable
    style j     2 Phi(z_{K+j}) - 1, or z_{K+j}   uniform in (-1, 1), or standard normal
    noise       the other numbers, as they are

Every truncation is one rising function of each number, and so leaves the category what it was. Two numbers of z exchanged choose another category without
leaving the law of z given that category.

The one-hot vector is multiplied by `gain`. Noise of m numbers has length sqrt(m), 7.9 for the paper's 62; beside it a vector of length 1 is hardly heard by the generator's first layer, and what
the image comes to tell of the category are details that Q can read, not what it shows.

n images, d latent, K categories, c styles, F features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.types import UserError

__all__ = ["CodedGenerator", "Codes", "Recognizer", "category_of", "chosen", "styles_of"]


@dataclass(frozen=True)
class Codes:
    """How many codes of either kind; 0: none of it."""

    categories: int = 10
    styles: int = 2  # numbers
    prior: Literal["uniform", "normal"] = "uniform"  # of a style: in (-1, 1), or N(0, 1)
    gain: float = 1.0  # of the category's one-hot vector, beside noise of variance 1 each

    def checked(self, latent: int) -> Codes:
        """These codes, if they fit into a latent of d numbers. Raises `UserError`."""
        if self.categories < 0 or self.styles < 0 or self.categories == 1 or self.categories + self.styles == 0:
            raise UserError("model.codes: give categories (2 or more), or styles, or both")
        if not 0 < self.gain < math.inf:
            raise UserError(f"model.codes.gain {self.gain}: give a positive number")
        if self.categories + self.styles > latent:
            raise UserError(f"model.codes take {self.categories} + {self.styles} of model.latent's {latent} numbers: give a larger --model.latent")
        return self

    @property
    def entropy(self) -> float:
        """H of one style, nats: log 2, or log(2 pi e) / 2."""
        return math.log(2) if self.prior == "uniform" else 0.5 * math.log(2 * math.pi * math.e)


def category_of(z: Tensor, codes: Codes) -> Tensor:
    """z (n, d) -> category (n,) int64."""
    return z[:, : codes.categories].argmax(1)


def styles_of(z: Tensor, codes: Codes) -> Tensor:
    """z (n, d) -> styles (n, c)."""
    part = z[:, codes.categories : codes.categories + codes.styles]
    return torch.erf(part / math.sqrt(2)) if codes.prior == "uniform" else part


def chosen(z: Tensor, category: Tensor, codes: Codes) -> Tensor:
    """z (n, d) with this category (n,), its largest of K numbers exchanged with the one at that place; -1: as it is."""
    own = category_of(z, codes)[:, None]
    new = torch.where(category[:, None] < 0, own, category[:, None])
    return z.scatter(1, own, z.gather(1, new)).scatter(1, new, z.gather(1, own))


@final
class CodedGenerator(nn.Module):
    """A generator that is given the category as a one-hot vector times `gain`, the styles and the noise: d numbers in all. It takes no label."""

    classes = 0

    def __init__(self, net: nn.Module, codes: Codes) -> None:
        super().__init__()
        self.net, self.codes = net, codes

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """z (n, d) -> x (n, C, H, W)."""
        k, c = self.codes.categories, self.codes.styles
        parts = [styles_of(z, self.codes), z[:, k + c :]]
        if k:
            parts = [self.codes.gain * F.one_hot(category_of(z, self.codes), k).to(z.dtype), *parts]
        x: Tensor = self.net(torch.cat(parts, dim=1))
        return x


@final
class Recognizer(nn.Module):
    """Q(code | x) from D's features (n, F): logits (n, K) of the category; mean (n, c) and log-deviation (n, c) of each style.

    One hidden layer with BatchNorm and LeakyReLU 0.1, as the paper's (appendix C.1, table 1).
    """

    def __init__(self, features: int, codes: Codes, hidden: int = 128) -> None:
        super().__init__()
        self.sizes = (codes.categories, codes.styles, codes.styles)
        self.body = nn.Sequential(nn.Linear(features, hidden, bias=False), nn.BatchNorm1d(hidden), nn.LeakyReLU(0.1), nn.Linear(hidden, sum(self.sizes)))

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """fp32."""
        logits, mean, log_scale = self.body(h).float().split(self.sizes, dim=1)
        return logits, mean, log_scale
