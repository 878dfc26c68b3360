"""The generator and discriminator of R3GAN: residual blocks without normalisation (Huang et al. 2025, arXiv 2501.05441, section 3).

n images, C channels, H x W pixels, h x w the lowest resolution, d latent, K classes, c channels of a stage.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.types import ImageShape, UserError
from .dcgan import stem
from .judge import Condition, Judge, planes

__all__ = ["Block", "R3Generator", "R3Nets", "r3_nets", "resampled"]

GAIN = math.sqrt(2 / 1.04)  # keeps the second moment through a leaky ReLU of slope 0.2: E[f(x)^2] = (1 + 0.2^2) / 2 (He et al. 2015, arXiv 1502.01852, eq. 15)


@dataclass(frozen=True)
class R3Nets:
    """Residual networks with grouped convolutions, of the same size on both sides."""

    widths: tuple[int, ...] = (768,)  # channels of each stage, the lowest resolution first; the last one again where there are more stages
    blocks: int = 2  # residual blocks of a stage
    group: int = 16  # channels of a group of the 3 x 3 convolutions
    expansion: int = 2  # channels inside a block, as a multiple of those outside
    condition: Condition = "projection"  # where a label enters D; in G it joins z by a learned vector


def begun(layer: nn.Module, gain: float = 1.0) -> nn.Module:
    """The layer with weights ~ N(0, gain^2 / fan-in), a table of K vectors being a linear layer of one-hot inputs, and biases 0."""
    weight, bias = layer.weight, getattr(layer, "bias", None)
    assert isinstance(weight, Tensor)
    fan_in = len(weight) if isinstance(layer, nn.Embedding) else weight[0].numel()
    nn.init.normal_(weight, 0.0, gain / math.sqrt(fan_in))
    if bias is not None:
        nn.init.zeros_(bias)
    return layer


def halving(n: int, like: Tensor) -> Tensor:
    """The matrix (n/2, n) that halves a side: [1, 3, 3, 1] / 8, of those pixels that there are."""
    centers, at = 2 * torch.arange(n // 2, device=like.device, dtype=like.dtype) + 1, torch.arange(n, device=like.device, dtype=like.dtype) + 0.5
    taps = F.relu(2 - (at - centers[:, None]).abs())  # 1.5 at half a pixel, 0.5 at one and a half
    return taps / taps.sum(1, keepdim=True)


def resampled(x: Tensor, factor: float) -> Tensor:
    """x (n, c, H, W) at twice (factor 2) or half (0.5) the sides by the filter [1, 3, 3, 1] in each direction, which is bilinear interpolation.

    It is the paper's [1, 2, 1] between pixel centers, [1, 2, 1] * [1, 1]; at the edges pixels are repeated, or left out of the mean, and not taken as zeros.
    The halving is torch's own antialiased one, which knows no bf16, as two products: these are three times as fast as slices where they are differentiated twice
    (108 against 305 ms, 64 x 32 x 28 x 28, fp32, a busy processor).
    """
    if factor > 1:
        return F.interpolate(x, scale_factor=factor, mode="bilinear")
    return halving(x.shape[2], x) @ (x @ halving(x.shape[3], x).t())


@final
class Resample(nn.Module):
    """`resampled` as a layer."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """x (n, c, H, W) -> (n, c, factor H, factor W)."""
        return resampled(x, self.factor)


@final
class Block(nn.Module):
    """x + W3 f(W2 f(W1 x + b1) + b2): 1 x 1, 3 x 3 in groups, 1 x 1, more channels inside; f a leaky ReLU of slope 0.2, biases in it alone.

    Begins as the identity: W3 = 0, and the gains of W1, W2 are sqrt(2 / 1.04) L^(-1/4), L the number of blocks (Fix-up: Zhang et al. 2019, arXiv 1901.09321,
    section 3, with m = 3 layers a branch: L^(-1/(2m - 2))). Huang et al. 2025, section 3.
    """

    def __init__(self, channels: int, config: R3Nets, num_blocks: int) -> None:
        super().__init__()
        inside, gain = channels * config.expansion, GAIN * num_blocks**-0.25
        if inside % config.group:
            raise UserError(f"model.nets: {inside} channels inside a block are no multiple of group {config.group}: change widths, expansion or group")
        self.enter = begun(nn.Conv2d(channels, inside, 1), gain)
        self.mix = begun(nn.Conv2d(inside, inside, 3, padding=1, groups=inside // config.group), gain)
        self.leave = begun(nn.Conv2d(inside, channels, 1, bias=False), 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """x (n, c, H, W), same shape."""
        y: Tensor = F.leaky_relu(self.enter(x), 0.2)
        y = F.leaky_relu(self.mix(y), 0.2)
        return x + self.leave(y)


def channels_of(config: R3Nets, num_stages: int) -> list[int]:
    """Channels of so many stages, the lowest resolution first."""
    if not config.widths or min(*config.widths, config.blocks, config.group, config.expansion) < 1:
        raise UserError("model.nets: give at least one width, and numbers above 0")
    return [config.widths[min(i, len(config.widths) - 1)] for i in range(num_stages)]


def narrowed(c_in: int, c_out: int) -> list[nn.Module]:
    """A 1 x 1 convolution where the number of channels changes."""
    return [] if c_in == c_out else [begun(nn.Conv2d(c_in, c_out, 1, bias=False))]


@final
class R3Generator(nn.Module):
    """z (n, d) -> images (n, C, H, W), linear at the end, so that they are in [-1, 1] only as far as they were learned to be.

    A learned base (c, h, w) times a linear map of z, blocks, and doublings with blocks. A label joins z as a learned vector of the same length.
    """

    def __init__(self, shape: ImageShape, latent: int, classes: int, config: R3Nets) -> None:
        super().__init__()
        h, w, k = stem(shape)
        c, num_blocks = channels_of(config, k + 1), config.blocks * (k + 1)
        self.classes = classes
        self.embed = begun(nn.Embedding(classes, latent)) if classes else None
        self.base = nn.Parameter(torch.randn(c[0], h, w))
        self.stem = begun(nn.Linear(latent * (2 if classes else 1), c[0], bias=False))
        layers: list[nn.Module] = [Block(c[0], config, num_blocks) for _ in range(config.blocks)]
        for low, high in pairwise(c):
            layers += [*narrowed(low, high), Resample(2), *(Block(high, config, num_blocks) for _ in range(config.blocks))]
        self.body = nn.Sequential(*layers)
        self.out = begun(nn.Conv2d(c[-1], shape.channels, 1, bias=False))

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """z (n, d), label (n,) -> x (n, C, H, W) of z's type."""
        if self.embed is not None and label is not None:
            z = torch.cat([z, self.embed(label).to(z.dtype)], dim=1)  # (n, 2 d)
        h = self.base * self.stem(z)[:, :, None, None]  # (n, c, h, w)
        x: Tensor = self.out(self.body(h))
        return x.to(z.dtype)


@final
class Base(nn.Module):
    """x (n, c, h, w) -> (n, c): the sum over positions of each channel times learned weights, the counterpart of the generator's base."""

    def __init__(self, channels: int, h: int, w: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, h, w) / math.sqrt(h * w))

    def forward(self, x: Tensor) -> Tensor:
        """Features."""
        return (x * self.weight).sum((2, 3))


def r3_nets(shape: ImageShape, latent: int, classes: int, config: R3Nets) -> tuple[nn.Module, nn.Module]:
    """Generator and discriminator, mirror images of each other.

    D(x, y) = <V_y + w, h(x)>, h of z's length, w = 0 at first; without labels w . h(x), h of the last stage's channels. No bias: a relativistic loss
    cannot see one, and Adam would let it drift on rounding errors.
    """
    h, w, k = stem(shape)
    c, num_blocks = channels_of(config, k + 1)[::-1], config.blocks * (k + 1)
    layers: list[nn.Module] = [begun(nn.Conv2d(shape.channels + planes(config.condition, classes), c[0], 1, bias=False))]
    for high, low in pairwise(c):
        layers += [*(Block(high, config, num_blocks) for _ in range(config.blocks)), Resample(0.5), *narrowed(high, low)]
    layers += [*(Block(c[-1], config, num_blocks) for _ in range(config.blocks)), Base(c[-1], h, w)]
    projected = config.condition == "projection" and classes > 0
    if projected:
        layers.append(begun(nn.Linear(c[-1], latent, bias=False)))
    features = latent if projected else c[-1]
    judge = Judge(nn.Sequential(*layers), features, shape, classes, config.condition)
    judge.head.register_parameter("bias", None)
    begun(judge.head, 0.0 if projected else 1.0)
    if judge.embed is not None:
        begun(judge.embed, 1 / math.sqrt(features))
    return R3Generator(shape, latent, classes, config), judge
