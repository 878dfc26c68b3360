"""The all-convolutional generator and discriminator of DCGAN. n images, C channels, H x W pixels, d latent, w width."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..core.types import ImageShape, UserError
from ..layers.conv import Conv2d, ConvTranspose2d

__all__ = ["Discriminator", "Generator", "stem", "with_standing_stats"]

MOMENTUM = 0.1  # of the running statistics: the new batch's share


def stem(shape: ImageShape) -> tuple[int, int, int]:
    """The grid that doubling starts from and the number of doublings, (h, w, k): H = h 2^k and W = w 2^k with h, w in 4..15 and
    k >= 1 as large as can be (64 = 4 * 2^4, 28 = 7 * 2^2). Raises `UserError` for other sides."""
    h, w, k = shape.height, shape.width, 0
    while h % 2 == 0 and w % 2 == 0 and min(h, w) >= 8:
        h, w, k = h // 2, w // 2, k + 1
    if k == 0 or min(h, w) < 4 or max(h, w) > 15:
        size = f"{shape.height}x{shape.width}"
        raise UserError(f"dcgan doubles a grid of 4 to 15 pixels and cannot reach {size}: give --data.resolution 32 or 64")
    return h, w, k


def widths(width: int, k: int) -> list[int]:
    """Channels after each of the k halvings of the resolution: doubled each time, up to 8 times the first (the paper's 64 pixels)."""
    return [width * min(2**i, 8) for i in range(k)]


def init_weights(net: nn.Module) -> None:
    """Weights ~ N(0, 0.02), normalisation gains ~ N(1, 0.02), biases 0 (Radford et al. 2016, section 4)."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
            nn.init.zeros_(module.bias)
        elif isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(module.weight, 0.0, 0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class Generator(nn.Module):
    """z (n, d) -> images (n, C, H, W) in [-1, 1]: strided transposed convolutions, BatchNorm but at the output, ReLU, tanh.

    `width` is the number of channels at half the resolution. Radford et al. 2016, section 3 and figure 1.
    """

    def __init__(self, shape: ImageShape, latent: int, width: int) -> None:
        super().__init__()
        h, w, k = stem(shape)
        c = widths(width, k)
        top = c[-1]
        self.grid = (h, w, top)
        self.stem = nn.Linear(latent, h * w * top, bias=False)  # a transposed convolution of a 1 x 1 image
        blocks: list[nn.Module] = [nn.BatchNorm2d(top, momentum=MOMENTUM), nn.ReLU(inplace=True)]
        for high, low in reversed(list(pairwise(c))):
            blocks += [ConvTranspose2d(low, high, 4, 2, 1, bias=False), nn.BatchNorm2d(high, momentum=MOMENTUM), nn.ReLU(inplace=True)]
        blocks += [ConvTranspose2d(width, shape.channels, 4, 2, 1), nn.Tanh()]
        self.blocks = nn.Sequential(*blocks)
        init_weights(self)

    def forward(self, z: Tensor) -> Tensor:
        """z (n, d) -> x (n, C, H, W)."""
        h = self.stem(z).unflatten(1, self.grid).permute(0, 3, 1, 2)  # (n, top, h, w), already channels last
        x: Tensor = self.blocks(h)
        return x


class Discriminator(nn.Module):
    """Images (n, C, H, W) in [-1, 1] -> logits (n,): strided convolutions, BatchNorm but at the input, LeakyReLU 0.2.

    Real and generated images go through it in separate calls, so that their batch statistics do not mix.
    """

    def __init__(self, shape: ImageShape, width: int) -> None:
        super().__init__()
        h, w, k = stem(shape)
        blocks: list[nn.Module] = [Conv2d(shape.channels, width, 4, 2, 1), nn.LeakyReLU(0.2, inplace=True)]
        c = widths(width, k)
        for high, low in pairwise(c):
            blocks += [Conv2d(high, low, 4, 2, 1, bias=False), nn.BatchNorm2d(low), nn.LeakyReLU(0.2, inplace=True)]
        self.blocks = nn.Sequential(*blocks, nn.Conv2d(c[-1], 1, (h, w)))
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """x (n, C, H, W) -> logits (n,)."""
        logits: Tensor = self.blocks(x).flatten()
        return logits


def with_standing_stats(net: Generator, z: Tensor, reference: Tensor) -> Tensor:
    """G(z) (n, C, H, W) with every BatchNorm's statistics measured on reference latents (m, d): "standing statistics".

    They belong to the very weights that draw (running ones lag behind, and were gathered by other weights than averaged ones),
    and row i depends on z[i] alone. The net, its own buffers included, is left as it was; gradients flow to z.
    (Brock et al. 2019, arXiv 1809.11096, has them for the same reason.)
    """
    stats = {name: torch.zeros_like(buffer) for name, buffer in net.named_buffers()}
    training = net.training
    try:
        with torch.no_grad():
            functional_call(net.train(), stats, (reference,))  # from zero, one call leaves MOMENTUM * statistic
            for name in stats:
                if name.endswith(("running_mean", "running_var")):
                    stats[name] /= MOMENTUM
        x: Tensor = functional_call(net.eval(), stats, (z,))
        return x
    finally:
        net.train(training)
