"""A ladder of latent maps: a net up from the image to one vector, and a net down that draws z_1, z_2, ... from coarse to fine.

Child, Very Deep VAEs Generalize Autoregressive Models and Can Outperform Them on Images, 2021 (arXiv 2011.10650), section 3 and figure 3. A layer of
the way down has a state h, a prior p(z | h) that sees h alone, a posterior q(z | h, e) that sees the encoder's map e of that size too, and

    h <- h + prior's features,   h <- h + W z,   h <- h + bottleneck(h),

What keeps a deep ladder quiet at the start: the last convolution of every residual branch, and W, are divided by sqrt(number of branches), and
the prior's last one is zero, so that every prior starts as N(0, I). All others start with weights that keep the size of what they see (He et al.
2015, arXiv 1502.01852): four small convolutions after one another would begin as nearly nothing.

Between levels the paper takes means over pixels on the way up, and copies of pixels on the way down. From 7 x 7 pixels to one vector and back that loses
every place, and the vector stays silent until convolutions have found places again. Here each patch of pixels goes through one learned linear map.

Legend: B images, C channels of h, Z of a layer's z, L layers, T numbers in all z together; u = (z - prior mean) / prior deviation.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.types import ImageShape, UserError
from ..layers.norm import pixel_norm

__all__ = ["Drawn", "LadderConfig", "LadderDecoder", "LadderEncoder", "levels"]

LIMIT = 5.0  # logarithms of deviations stay in (-5, 5)
RECTIFIED = math.sqrt(2)  # what a GELU before a layer takes away
BIASED = 64  # longest side of a map that starts with a learned one


@dataclass(frozen=True)
class LadderConfig:
    """Sizes of both nets, level by level: the image (or its patches), half its side, a quarter, ..., and last one vector."""

    width: tuple[int, ...] = (64, 64, 64, 64)  # channels of h
    squeeze: int = 4  # the bottlenecks have so many times fewer
    latent: int = 16  # channels of each z
    up: tuple[int, ...] = (2, 2, 2, 1)  # residual blocks of the encoder
    down: tuple[int, ...] = (2, 3, 3, 2)  # layers with a z
    patch: int = 1  # side of the patches that become channels first: the finest level is so many times smaller than the image


def levels(shape: ImageShape, config: LadderConfig) -> list[tuple[int, int]]:
    """Sides (height, width) of the levels. UserError where the image's sides cannot be halved so often."""
    if not len(config.width) == len(config.up) == len(config.down) or len(config.down) < 2:
        raise UserError(f"--model.net.width, up and down have {len(config.width)}, {len(config.up)} and {len(config.down)} levels: give all as many, 2 or more")
    if min(config.up + config.down) < 0 or min(*config.width, config.squeeze, config.latent, config.patch) < 1:
        raise UserError("--model.net needs a width, squeeze, latent and patch of 1 or more, and no negative number")
    if not sum(config.down):
        raise UserError("--model.net.down has no layer: give 1 or more at some level")
    many = config.patch * int(2 ** (len(config.down) - 2))
    if shape.height % many or shape.width % many:
        raise UserError(f"images of {shape.height}x{shape.width} have no {len(config.down)} levels in patches of {config.patch}: give --data.multiple {many}")
    height, width = shape.height // config.patch, shape.width // config.patch
    return [(height >> i, width >> i) for i in range(len(config.down) - 1)] + [(1, 1)]


class Drawn(NamedTuple):
    """What happened at a layer, all (B, Z, h, w) in float32: z, drawn of the posterior; mean and log-deviation of posterior and prior."""

    z: Tensor
    mean: Tensor
    log_std: Tensor
    prior_mean: Tensor
    prior_log_std: Tensor


@final
class Pointwise(nn.Linear):
    """A 1x1 convolution, (B, C, h, w) -> (B, outs, h, w), as a matrix product: on a processor the library's own is up to three times slower."""

    def __init__(self, ins: int, outs: int, gain: float = 1.0) -> None:
        super().__init__(ins, outs)
        _start(self, gain)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _start(part: nn.Linear | nn.Conv2d, gain: float = 1.0) -> None:
    """Weights that make outputs as large as inputs, times `gain`, and no bias. (He et al. 2015.)"""
    nn.init.kaiming_normal_(part.weight, nonlinearity="linear")
    nn.init.zeros_(part.bias)  # type: ignore[arg-type]
    with torch.no_grad():
        part.weight.mul_(gain)


@final
class PixelNorm(nn.Module):
    """`pixel_norm`, as a part of a `Sequential`."""

    def forward(self, x: Tensor) -> Tensor:
        return pixel_norm(x)


@final
class Bottleneck(nn.Sequential):
    """1x1, 3x3, 3x3, 1x1 convolutions, a GELU before each (figure 3); all of them 1x1 on maps of one or two pixels. The last one is times `gain`.

    The channels of each pixel are brought to a mean square of 1 first, which the paper does not: a branch that sees h as large as the others made it
    multiplies, and after a thousand steps at the full rate one batch can explode (docs/LOG.md).
    """

    def __init__(self, ins: int, middle: int, outs: int, side: int, gain: float = 1.0) -> None:
        inner: list[nn.Module] = []
        for _ in range(2):
            conv = nn.Conv2d(middle, middle, 3, padding=1) if side > 2 else Pointwise(middle, middle)
            _start(conv, RECTIFIED)
            inner += [nn.GELU(), conv]
        super().__init__(PixelNorm(), nn.GELU(), Pointwise(ins, middle, RECTIFIED), *inner, nn.GELU(), Pointwise(middle, outs, gain))


@final
class Shrink(nn.Module):
    """(B, C, a h, b w) -> (B, outs, h, w): one linear map of all patches of a x b pixels."""

    def __init__(self, ins: int, outs: int, many: tuple[int, int]) -> None:
        super().__init__()
        self.many = many
        self.map = nn.Linear(ins * math.prod(many), outs)
        _start(self.map)

    def forward(self, x: Tensor) -> Tensor:
        patches = x.unflatten(3, (-1, self.many[1])).unflatten(2, (-1, self.many[0]))  # (B, C, h, a, w, b)
        return self.map(patches.permute(0, 2, 4, 1, 3, 5).flatten(3)).permute(0, 3, 1, 2)


@final
class Grow(nn.Module):
    """(B, C, h, w) -> (B, outs, a h, b w): each pixel becomes a patch of a x b, by one linear map. The reverse of `Shrink`."""

    def __init__(self, ins: int, outs: int, many: tuple[int, int]) -> None:
        super().__init__()
        self.many = many
        self.map = nn.Linear(ins, outs * math.prod(many))
        _start(self.map)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.map(x.permute(0, 2, 3, 1)).unflatten(3, (-1, *self.many))  # (B, h, w, outs, a, b)
        return patches.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)  # (B, outs, a h, b w)


def _ratio(fine: tuple[int, int], coarse: tuple[int, int]) -> tuple[int, int]:
    return fine[0] // coarse[0], fine[1] // coarse[1]


@final
class LadderEncoder(nn.Module):
    """x (B, channels, H, W) -> a map (B, C, h, w) for each level, from fine to coarse: residual bottlenecks, then one map of 2 x 2 pixels to one, at last of all."""

    def __init__(self, shape: ImageShape, config: LadderConfig) -> None:
        super().__init__()
        self.sides = levels(shape, config)
        gain = 1 / math.sqrt(max(sum(config.up), 1))
        self.patch = config.patch
        self.first = nn.Conv2d(shape.channels * config.patch**2, config.width[0], 3, padding=1)
        self.shrink = nn.ModuleList(Shrink(a, b, _ratio(s, t)) for (a, s), (b, t) in itertools.pairwise(zip(config.width, self.sides, strict=True)))
        self.blocks = nn.ModuleList(
            nn.ModuleList(Bottleneck(w, max(w // config.squeeze, 1), w, min(side), gain) for _ in range(num))
            for w, side, num in zip(config.width, self.sides, config.up, strict=True)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        h, found = self.first(F.pixel_unshuffle(x, self.patch)), []
        for i, blocks in enumerate(self.blocks):
            if i:
                h = self.shrink[i - 1](h)
            for block in blocks:  # type: ignore[attr-defined]
                h = h + block(h)
            found.append(h)
        return found


@final
class Layer(nn.Module):
    """One z of the way down."""

    def __init__(self, config: LadderConfig, w: int, side: int, gain: float) -> None:
        super().__init__()
        z = config.latent
        middle = max(w // config.squeeze, 1)
        self.parts = (z, z, w)
        self.prior = Bottleneck(w, middle, 2 * z + w, side, 0.0)
        self.posterior = Bottleneck(2 * w, middle, 2 * z, side)
        self.enter = Pointwise(z, w, gain)
        self.residual = Bottleneck(w, middle, w, side, gain)

    def expect(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """h with the prior's features, and the prior's mean and log-deviation, (B, Z, h, w)."""
        mean, log_std, features = self.prior(h).split(self.parts, dim=1)
        return h + features, mean.float(), bounded(log_std)

    def see(self, h: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """The posterior's mean and log-deviation, (B, Z, h, w)."""
        mean, log_std = self.posterior(torch.cat([h, seen], dim=1)).chunk(2, dim=1)
        return mean.float(), bounded(log_std)

    def take(self, h: Tensor, z: Tensor) -> Tensor:
        """h once z (B, Z, h, w) is known."""
        h = h + self.enter(z)
        return h + self.residual(h)


def bounded(log_std: Tensor) -> Tensor:
    """LIMIT tanh(log_std / LIMIT): a deviation that no step of training can make 0 or infinite."""
    return LIMIT * torch.tanh(log_std.float() / LIMIT)


@final
class LadderDecoder(nn.Module):
    """Layers from one vector to the image's size, and a head: features (B, C, h, w) of the finest level -> the parameters of p(x | z), (B, outs, H, W)."""

    def __init__(self, shape: ImageShape, config: LadderConfig, outs: int) -> None:
        super().__init__()
        self.sides = levels(shape, config)[::-1]  # from coarse to fine
        self.down = config.down[::-1]
        gain = 1 / math.sqrt(sum(config.down))
        widths = config.width[::-1]
        self.biases = nn.ParameterList(torch.zeros(n, h, w) for n, (h, w) in zip(widths, self.sides, strict=True) if max(h, w) <= BIASED)
        self.grow = nn.ModuleList(Grow(a, b, _ratio(t, s)) for (a, s), (b, t) in itertools.pairwise(zip(widths, self.sides, strict=True)))
        self.blocks = nn.ModuleList(
            nn.ModuleList(Layer(config, w, min(side), gain) for _ in range(num)) for w, side, num in zip(widths, self.sides, self.down, strict=True)
        )
        self.gain = nn.Parameter(torch.ones(widths[-1], 1, 1))
        self.bias = nn.Parameter(torch.zeros(widths[-1], 1, 1))
        self.patch = config.patch
        self.head = nn.Conv2d(widths[-1], outs * config.patch**2, 3, padding=1)
        self.places = [(side, config.latent * side[0] * side[1]) for side, num in zip(self.sides, self.down, strict=True) for _ in range(num)]
        self.total = sum(size for _, size in self.places)

    def forward(self, features: Tensor) -> Tensor:
        """The head."""
        return F.pixel_shuffle(self.head(features * self.gain + self.bias), self.patch)

    def maps(self, flat: Tensor) -> list[Tensor]:
        """(B, T) -> for each layer (B, Z, h, w)."""
        parts = flat.split([size for _, size in self.places], dim=1)
        return [part.unflatten(1, (-1, *side)) for part, (side, _) in zip(parts, self.places, strict=True)]

    def start(self, h: Tensor | None, level: int, num: int) -> Tensor:
        """The state that a level begins with: the coarser one enlarged, and a learned map."""
        height, width = self.sides[level]
        if h is not None:
            h = self.grow[level - 1](h)
        if level >= len(self.biases):
            assert h is not None
            return h
        bias = self.biases[level]
        return bias.expand(num, *bias.shape) if h is None else h + bias

    def generate(self, codes: Tensor) -> Tensor:
        """Features (B, C, h, w) of u (B, T): z = prior mean + prior deviation * u, layer by layer."""
        left, h = iter(self.maps(codes)), None
        for level, blocks in enumerate(self.blocks):
            h = self.start(h, level, len(codes))
            for layer in blocks:  # type: ignore[attr-defined]
                h, mean, log_std = layer.expect(h)
                h = layer.take(h, mean + log_std.exp() * next(left))
        assert h is not None
        return h

    def infer(self, seen: Sequence[Tensor], eps: Tensor) -> tuple[Tensor, list[Drawn]]:
        """Features (B, C, h, w), and what each layer drew, z = posterior mean + posterior deviation * eps, for the encoder's maps and eps (B, T)."""
        left, h = iter(self.maps(eps)), None
        found = []
        for level, blocks in enumerate(self.blocks):
            h = self.start(h, level, len(eps))
            for layer in blocks:  # type: ignore[attr-defined]
                mean, log_std = layer.see(h, seen[-1 - level])
                h, prior_mean, prior_log_std = layer.expect(h)
                z = mean + log_std.exp() * next(left)
                found.append(Drawn(z, mean, log_std, prior_mean, prior_log_std))
                h = layer.take(h, z)
        assert h is not None
        return h, found
