"""The networks of pixelkiln's `vae`, `beta-vae`, `wae`, `iwae` and `vqvae` as encoders and decoders of pythae: the same layers in the same order, of
torch.nn, with the same names of parameters and the same initial distributions, so that weights of either program are weights of the other's net.

pythae's encoders return `embedding` (and `log_covariance`), its decoders `reconstruction`; its cross-entropy is one of probabilities, so the decoders of
that likelihood end with a sigmoid, where pixelkiln's loss takes the logits.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from torch import nn

__all__ = ["ConvDecoder", "ConvEncoder", "Down", "MLPDecoder", "MLPEncoder", "Up"]


def stack(sizes):
    """Linear layers between the sizes, ReLU between the layers."""
    parts = []
    for fan_in, fan_out in zip(sizes, sizes[1:], strict=False):
        parts += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def sides_of(side):
    """From the image's side down to the smallest map's."""
    sides = [side]
    while sides[-1] > 4 and sides[-1] % 2 == 0:
        sides.append(sides[-1] // 2)
    return sides


class Coded(BaseEncoder):
    """What the encoders of vectors share: `out` is J numbers, or mean and log-variance. signed: images come in [-1, 1], and black is to be 0."""

    def __init__(self, args, out):
        BaseEncoder.__init__(self)
        self.input_dim, self.latent_dim, self.out, self.signed = args.input_dim, args.latent_dim, out, False

    def forward(self, x):
        h = self.code((x + 1) / 2 if self.signed else x)
        if self.out == self.latent_dim:
            return ModelOutput(embedding=h)
        mean, log_var = h.chunk(2, dim=1)
        return ModelOutput(embedding=mean, log_covariance=log_var)


class MLPEncoder(Coded):
    """`depth` hidden layers of `width` units."""

    def __init__(self, args, out, size):
        super().__init__(args, out)
        self.net = stack([math.prod(args.input_dim), *[size["width"]] * size["depth"], out])

    def code(self, x):
        return self.net(x.flatten(1))


class ConvEncoder(Coded):
    """Strided 4 x 4 convolutions, then a hidden layer."""

    def __init__(self, args, out, size):
        super().__init__(args, out)
        sides = sides_of(args.input_dim[1])
        widths = [size["width"] * min(2**i, 4) for i in range(len(sides) - 1)]
        parts = []
        for fan_in, fan_out in zip([args.input_dim[0], *widths], widths, strict=False):
            parts += [nn.Conv2d(fan_in, fan_out, 4, stride=2, padding=1), nn.ReLU()]
        self.conv = nn.Sequential(*parts)
        self.head = nn.Sequential(nn.Linear(widths[-1] * sides[-1] ** 2, size["hidden"]), nn.ReLU(), nn.Linear(size["hidden"], out))

    def code(self, x):
        return self.head(self.conv(x).flatten(1))


class Painted(BaseDecoder):
    """What the decoders share. sigmoid: the reconstruction is a probability."""

    def __init__(self, args):
        BaseDecoder.__init__(self)
        self.input_dim, self.sigmoid = args.input_dim, False

    def forward(self, z):
        out = self.paint(z)
        return ModelOutput(reconstruction=torch.sigmoid(out) if self.sigmoid else out)


class MLPDecoder(Painted):
    """The encoder's mirror image."""

    def __init__(self, args, size):
        super().__init__(args)
        self.net = stack([args.latent_dim, *[size["width"]] * size["depth"], math.prod(args.input_dim)])

    def paint(self, z):
        return self.net(z).unflatten(1, tuple(self.input_dim))


class ConvDecoder(Painted):
    """The encoder's mirror image."""

    def __init__(self, args, size):
        super().__init__(args)
        sides = sides_of(args.input_dim[1])
        widths = [size["width"] * min(2**i, 4) for i in range(len(sides) - 1)][::-1]
        self.start = (widths[0], sides[-1], sides[-1])
        self.head = nn.Sequential(nn.Linear(args.latent_dim, size["hidden"]), nn.ReLU(), nn.Linear(size["hidden"], math.prod(self.start)))
        parts = []
        for fan_in, fan_out in zip(widths, [*widths[1:], args.input_dim[0]], strict=True):
            parts += [nn.ReLU(), nn.ConvTranspose2d(fan_in, fan_out, 4, stride=2, padding=1)]
        self.conv = nn.Sequential(*parts)

    def paint(self, z):
        return self.conv(self.head(z).unflatten(1, self.start))


class Block(nn.Module):
    """x + conv(silu(conv(silu(x)))); starts as the identity."""

    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x):
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


class Down(BaseEncoder):
    """To a map of vectors: a halving for each of the widths, residual blocks at the smallest map."""

    def __init__(self, args, size):
        BaseEncoder.__init__(self)
        widths = [size["width"] * m for m in size["mults"]]
        parts = []
        for i, (fan_in, fan_out) in enumerate(zip([args.input_dim[0], *widths], widths, strict=False)):
            blocks = [Block(fan_out) for _ in range(size["blocks"])] if i + 1 == len(widths) else []
            parts += [nn.SiLU() if i else nn.Identity(), nn.Conv2d(fan_in, fan_out, 4, stride=2, padding=1), *blocks]
        self.body = nn.Sequential(*parts, nn.Identity(), nn.SiLU())
        self.head = nn.Conv2d(widths[-1], size["dim"], 1)

    def forward(self, x):
        return ModelOutput(embedding=self.head(self.body(x)))


class Up(Painted):
    """From a map of codes back to an image."""

    def __init__(self, args, size):
        super().__init__(args)
        widths = [size["width"] * m for m in size["mults"]][::-1]
        self.stem = nn.Conv2d(size["dim"], widths[0], 3, padding=1)
        parts = []
        for i, width in enumerate(widths):
            parts += [*([Block(width) for _ in range(size["blocks"])] if i == 0 else []), nn.Identity(), nn.SiLU()]
            if i + 1 < len(widths):
                parts.append(nn.ConvTranspose2d(width, widths[i + 1], 4, stride=2, padding=1))
        self.body = nn.Sequential(*parts)
        self.last = nn.ConvTranspose2d(widths[-1], args.input_dim[0], 4, stride=2, padding=1)

    def paint(self, z):
        return self.last(self.body(self.stem(z)))
