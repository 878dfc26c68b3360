"""The all-convolutional generator and discriminator of DCGAN. n images, C channels, H x W pixels, d latent, K classes, w width."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, final

from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..core.types import ImageShape, UserError
from ..layers.batchnorm import ConditionalBatchNorm
from ..layers.conv import Conv2d, ConvTranspose2d
from ..layers.minibatch import MinibatchDeviation
from ..layers.spectral import spectral
from ..layers.weightnorm import weight_normed
from .judge import Condition, Judge, joined, planes

__all__ = ["DCGANNets", "Generator", "dcgan_nets", "stem"]


def stem(shape: ImageShape) -> tuple[int, int, int]:
    """The grid that doubling starts from and the number of doublings, (h, w, k): H = h 2^k and W = w 2^k with h, w in 4..15 and
    k >= 1 as large as can be (64 = 4 * 2^4, 28 = 7 * 2^2). Raises `UserError` for other sides."""
    h, w, k = shape.height, shape.width, 0
    while h % 2 == 0 and w % 2 == 0 and min(h, w) >= 8:
        h, w, k = h // 2, w // 2, k + 1
    if k == 0 or min(h, w) < 4 or max(h, w) > 15:
        size = f"{shape.height}x{shape.width}"
        raise UserError(f"convolutional generators double a grid of 4 to 15 pixels and cannot reach {size}: give --data.resolution 32 or 64")
    return h, w, k


def widths(width: int, k: int) -> list[int]:
    """Channels after each of the k halvings of the resolution: doubled each time, up to 8 times the first (the paper's 64 pixels)."""
    return [width * min(2**i, 8) for i in range(k)]


def init_weights(net: nn.Module) -> None:
    """Weights ~ N(0, 0.02), normalisation gains ~ N(1, 0.02), biases 0 (Radford et al. 2016, section 4)."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d) and module.affine:
            nn.init.normal_(module.weight, 1.0, 0.02)
            nn.init.zeros_(module.bias)
        elif isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)) and not parametrize.is_parametrized(module):
            nn.init.normal_(module.weight, 0.0, 0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


@dataclass(frozen=True)
class DCGANNets:
    """Strided convolutions on both sides."""

    g_width: int = 64  # generator's channels at half the resolution, doubled at each lower one
    d_width: int = 64  # discriminator's, likewise
    norm: Literal["batch", "layer", "spectral", "weight", "none"] = "batch"  # of the discriminator; a gradient penalty forbids batch
    minibatch: int = 0  # images of a group whose deviation is one more channel of the discriminator's last features; 0: none
    condition: Condition = "none"  # where a label enters; projection: into G's BatchNorms, too


@final
class Generator(nn.Module):
    """z (n, d) -> images (n, C, H, W) in [-1, 1]: strided transposed convolutions, BatchNorm but at the output, ReLU, tanh.

    `g_width` is the number of channels at half the resolution. Radford et al. 2016, section 3 and figure 1. A label joins z as a one-hot vector,
    or sets the scale and shift of every BatchNorm (condition "projection").
    """

    def __init__(self, shape: ImageShape, latent: int, classes: int, config: DCGANNets) -> None:
        super().__init__()
        h, w, k = stem(shape)
        c = widths(config.g_width, k)
        top = c[-1]
        self.grid, self.classes, self.by_norm = (h, w, top), classes, config.condition == "projection" and classes > 0
        self.stem = nn.Linear(latent + (0 if self.by_norm else classes), h * w * top, bias=False)  # a transposed convolution of a 1 x 1 image
        outs = [*reversed(c[:-1]), shape.channels]
        self.norms = nn.ModuleList(self.norm(n) for n in reversed(c))
        self.convs = nn.ModuleList(ConvTranspose2d(a, b, 4, 2, 1, bias=i == k - 1) for i, (a, b) in enumerate(zip(reversed(c), outs, strict=True)))
        init_weights(self)

    def norm(self, channels: int) -> nn.Module:
        """After a convolution."""
        return ConditionalBatchNorm(channels, self.classes, embeds=True) if self.by_norm else nn.BatchNorm2d(channels)

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """z (n, d), label (n,) -> x (n, C, H, W)."""
        args: tuple[Tensor, ...] = ()
        if self.by_norm and label is not None:
            args = (nn.functional.one_hot(label, self.classes).to(z.dtype),)
        else:
            z = joined(z, label, self.classes)
        h = self.stem(z).unflatten(1, self.grid).permute(0, 3, 1, 2)  # (n, top, h, w), already channels last
        for norm, conv in zip(self.norms, self.convs, strict=True):
            h = conv(norm(h, *args).relu_())
        return h.tanh()


def trunk(channels: int, shape: ImageShape, config: DCGANNets) -> tuple[nn.Module, int, Callable[[nn.Module], nn.Module]]:
    """Images of so many channels -> features (n, F): strided convolutions, a norm but at the input, LeakyReLU 0.2; F; what goes around weights.

    Real and generated images go through it in separate calls, so that their batch statistics do not mix.
    """
    h, w, k = stem(shape)
    c = widths(config.d_width, k)
    wraps: dict[str, Callable[[nn.Module], nn.Module]] = {"spectral": spectral, "weight": weight_normed}
    wrap = wraps.get(config.norm, lambda m: m)
    blocks: list[nn.Module] = [wrap(Conv2d(channels, c[0], 4, 2, 1)), nn.LeakyReLU(0.2, inplace=True)]
    for high, low in pairwise(c):
        norms: dict[str, list[nn.Module]] = {"batch": [nn.BatchNorm2d(low)], "layer": [nn.GroupNorm(1, low)]}
        norm = norms.get(config.norm, [])
        blocks += [wrap(Conv2d(high, low, 4, 2, 1, bias=not norm)), *norm, nn.LeakyReLU(0.2, inplace=True)]
    if config.minibatch:
        blocks.append(MinibatchDeviation(config.minibatch))
    return nn.Sequential(*blocks, nn.Flatten()), (c[-1] + (config.minibatch > 0)) * h * w, wrap


def dcgan_nets(shape: ImageShape, latent: int, classes: int, config: DCGANNets) -> tuple[nn.Module, nn.Module]:
    """Generator and discriminator; the weights of both begin as the paper's."""
    generator = Generator(shape, latent, classes, config)
    features, size, wrap = trunk(shape.channels + planes(config.condition, classes), shape, config)
    judge = Judge(features, size, shape, classes, config.condition, wrap)
    init_weights(judge)
    return generator, judge
