"""Projection: the latent of which a trained generator draws a given picture (Zhu et al. 2016, arXiv 1609.03552).

    z* = argmin over z of  sum_k |down_k(G(z)) - down_k(y)|^2 / D_k  +  lambda (|z|^2 / d - 1)^2

with down_k the means of blocks of 2^k x 2^k pixels, D_k their number, and d the dimensions of z, whose squared length is about d. The picture decides
where the descent begins: at the best of `starts` random latents, the `tries` nearest of which all descend, and the best wins (a far start ends in
another picture: Zhu et al. train a network to begin well; Abdal et al. 2019, arXiv 1904.03189, begin at the mean). Adam, its rate rising over the
first 5 % and falling over the last 25 %, and noise on z that falls to nothing by 75 %: 1 - t / 0.75 squared (Karras et al. 2020, arXiv
1912.04958, appendix D).

With it pictures have codes in a generator that has no encoder. The parent is "base", any method with a latent; there is nothing to train.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, one_hot

from ..core.protocols import Codec, Latent, Method
from ..core.recipe import Recipe, Size, Stage, TrainConfig, by_size
from ..core.rng import key, noise, streams
from ..core.types import Ability, Condition, DataInfo, Request, UserError
from ..solvers.pictures import source_of

__all__ = ["Project", "ProjectConfig", "project"]

BETAS, EPS = (0.9, 0.999), 1e-8  # of Adam
RISE, FALL, QUIET = 0.05, 0.25, 0.75  # shares of the steps: the rate rises, falls; the noise is gone


@dataclass(frozen=True)
class ProjectConfig:
    """How the latent is looked for."""

    steps: int = 200
    starts: int = 512  # random latents, the same for all pictures
    tries: int = 4  # of them, the nearest to a picture, that descend
    lr: float = 0.1
    noise: float = 0.05  # deviation on z at the beginning
    prior: float = 0.01  # lambda
    scales: int = 3  # the picture and its halves, as long as a side has 4 pixels


@final
class Project(Method, Codec):
    """Pictures to latents of the parent "base"; a code is z, flat, and where the base takes labels the class as a one-hot vector behind it."""

    abilities = frozenset({Ability.SOURCE, Ability.STEPS, Ability.LABEL})
    roles: Mapping[str, type] = {"base": Latent}

    def __init__(self, info: DataInfo, config: ProjectConfig, parents: Mapping[str, Method] | None = None) -> None:
        super().__init__(info, parents)
        self.config, base = config, self.parents["base"]
        if min(config.starts, config.tries, config.scales) < 1 or config.tries > config.starts:
            raise UserError("--model.starts, --model.tries and --model.scales are at least 1, and there are no more tries than starts")
        if Ability.SOURCE in base.abilities:
            raise UserError("the base works on pictures, so a latent alone draws nothing: give a run that generates by itself")
        self.classes = len(base.info.classes) if Ability.LABEL in base.abilities else 0
        self.abilities = frozenset({Ability.SOURCE, Ability.STEPS}) | (base.abilities & {Ability.LABEL})

    def draw(self, request: Request) -> Tensor:
        """What the base draws of the latents (n, C, H, W); without a label that of the nearest start is taken."""
        source = source_of(request.cond, len(request.seeds), tuple(self.shape), self.device)
        return self._images(*self._projected(source, request.cond.label, request.seeds, self.config.steps if request.steps is None else request.steps))

    def encode(self, x: Tensor) -> Tensor:
        """Codes (B, d + K) of pictures x (B, C, H, W), K classes."""
        z, label = self._projected(x, None, range(len(x)), self.config.steps)
        return z.flatten(1) if label is None else torch.cat([z.flatten(1), one_hot(label, self.classes).to(z)], dim=1)

    def decode(self, z: Tensor) -> Tensor:
        """The pictures of codes (B, d + K), of the likeliest class each."""
        flat, label = (z[:, : -self.classes], z[:, -self.classes :].argmax(1)) if self.classes else (z, None)
        return self._images(flat.view(len(z), *self._pool(1).shape[1:]), label)

    def _base(self) -> Latent:
        base = self.parents["base"]
        assert isinstance(base, Latent)
        return base

    def _images(self, z: Tensor, label: Tensor | None) -> Tensor:
        """G(z) in fp32."""
        with torch.autocast(z.device.type, enabled=False):
            return self._base().from_latents(z.float(), Request(tuple(range(len(z))), Condition(label=label))).float()

    def _pool(self, num: int) -> Tensor:
        """Random latents (num, ...), always the same."""
        return self._base().latents([key("project", i) for i in range(num)]).to(self.device, torch.float32)

    def _begun(self, wanted: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The `tries` nearest random latents (n tries, ...) of each picture, given as `pyramid`s (n, F), and their labels."""
        c, n = self.config, len(wanted)
        pool = self._pool(c.starts)  # (S, ...)
        groups = {None: range(n)} if label is None else {int(k): [i for i in range(n) if int(label[i]) == int(k)] for k in label.unique()}
        rows = torch.empty(n, c.tries, dtype=torch.int64, device=pool.device)
        for k, members in groups.items():
            asked = None if not self.classes else torch.arange(c.starts, device=pool.device) % self.classes if k is None else torch.full((c.starts,), k, device=pool.device)
            drawn = pyramid(self._images(pool, asked), c.scales)  # (S, F)
            for i in members:
                rows[i] = (drawn - wanted[i]).square().sum(1).topk(c.tries, largest=False).indices
        flat = rows.flatten()
        if self.classes and label is None:
            return pool[flat], flat % self.classes
        return pool[flat], None if label is None else label.to(pool.device).repeat_interleave(c.tries)

    def _projected(self, source: Tensor, label: Tensor | None, seeds: Sequence[int], steps: int) -> tuple[Tensor, Tensor | None]:
        """z* (n, ...) of pictures (n, C, H, W), and the labels that they are drawn with; row i depends on picture, label and seed i alone."""
        c, wanted = self.config, pyramid(source, self.config.scales)  # (n, F)
        z, labels = self._begun(wanted, label)  # (n tries, ...)
        wanted, gens = wanted.repeat_interleave(c.tries, 0), streams(seeds, "project")
        m, v = torch.zeros_like(z), torch.zeros_like(z)
        for i in range(steps):
            t = i / steps
            moved = z.clone()
            if (loud := c.noise * max(0.0, 1 - t / QUIET) ** 2) > 0:
                moved += loud * noise(gens, (c.tries, *z.shape[1:]), z.device).flatten(0, 1)
            with torch.enable_grad():
                at = moved.requires_grad_()
                cost = (pyramid(self._images(at, labels), c.scales) - wanted).square().sum(1)  # (n tries,)
                (grad,) = torch.autograd.grad(cost.sum(), at)
            length = z.flatten(1).square().mean(1).view(-1, *[1] * (z.ndim - 1))
            grad = grad + c.prior * 4 * (length - 1) * z / z[0].numel()  # of lambda (|z|^2 / d - 1)^2
            m, v = m.lerp(grad, 1 - BETAS[0]), v.lerp(grad.square(), 1 - BETAS[1])
            rate = c.lr * min(1.0, (i + 1) / (RISE * steps)) * (1 - math.cos(math.pi * min(1.0, (1 - t) / FALL))) / 2
            z = z - rate * (m / (1 - BETAS[0] ** (i + 1))) / ((v / (1 - BETAS[1] ** (i + 1))).sqrt() + EPS)
        left = (pyramid(self._images(z, labels), c.scales) - wanted).square().sum(1).view(-1, c.tries)
        best = torch.arange(len(left), device=z.device) * c.tries + left.argmin(1)
        return z[best], None if labels is None else labels[best]


def pyramid(x: Tensor, scales: int) -> Tensor:
    """Means of blocks of 1, 2, 4, ... pixels of x (n, C, H, W) as one vector (n, F): its squared distances are sums over scales of mean squared errors."""
    parts = []
    for k in range(scales):
        x = avg_pool2d(x, 2) if k else x
        if k and min(x.shape[2:]) < 4:
            break
        parts.append(x.flatten(1) / x[0].numel() ** 0.5)
    return torch.cat(parts, dim=1)


def project(size: Size = "small") -> Recipe:
    """The latents of real pictures in a trained generator: `--parent base=RUN`; nothing to train. Zhu et al. 2016, arXiv 1609.03552."""
    config = ProjectConfig(steps=by_size(size, tiny=10, small=200, base=1000), starts=by_size(size, tiny=32, small=512, base=2048))
    stage = Stage(Project, config, train=TrainConfig(steps=0), parents={"base": ""})
    return Recipe(
        (stage,),
        family="editing",
        paper="Zhu, Krähenbühl, Shechtman, Efros, Generative Visual Manipulation on the Natural Image Manifold, 2016, arXiv 1609.03552",
        summary="Find the latent of which a trained generator draws a given picture",
    )
