"""Images to maps of features and back: halvings by strided convolutions, residual blocks between them (van den Oord et al. 2017, section 4.1).

The paper's net has 4 x 4 convolutions of stride 2, then 3 x 3 residual blocks; with norms, and attention at the smallest map, it is the one of
Esser et al. 2021 (arXiv 2012.09841, table 7) in small. Fully convolutional: any sides that `multiple` divides.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from ..core.types import ImageShape, UserError
from ..layers.attention import SelfAttention2d
from ..layers.conv import Conv2d, ConvTranspose2d

__all__ = ["Down", "ResConvConfig", "Up", "grid"]


@dataclass(frozen=True)
class ResConvConfig:
    """Size of an encoder and its mirror image: one halving for each of `mults`, to maps of width * mult channels."""

    width: int = 64
    mults: tuple[int, ...] = (1, 2)
    blocks: int = 2  # residual blocks at the smallest map, where the paper has them all
    finer: int = 0  # at every other one
    norm: bool = False
    attention: bool = False  # at the smallest map

    @property
    def multiple(self) -> int:
        """What the image's sides must be a multiple of."""
        return int(2 ** len(self.mults))

    @property
    def widths(self) -> list[int]:
        """Channels of the maps from the largest to the smallest."""
        return [self.width * m for m in self.mults]


def grid(shape: ImageShape, config: ResConvConfig) -> tuple[int, int]:
    """Rows and columns of the smallest map. UserError for an image whose sides cannot be halved so often."""
    many = config.multiple
    if not config.mults or shape.height % many or shape.width % many:
        raise UserError(f"images of {shape.height}x{shape.width} cannot be halved {len(config.mults)} times: give --data.multiple {max(many, 2)}")
    return shape.height // many, shape.width // many


class _Block(nn.Module):
    """x + conv(silu(norm conv(silu(norm x)))), 3 x 3; starts as the identity. Norms, where there are any, have one group (see `unet`)."""

    def __init__(self, channels: int, norm: bool) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(1, channels) if norm else nn.Identity()
        self.norm2 = nn.GroupNorm(1, channels) if norm else nn.Identity()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


def _blocks(channels: int, config: ResConvConfig, last: bool) -> list[nn.Module]:
    """The residual blocks of one size, and the attention of the smallest, which is the last on the way down."""
    blocks: list[nn.Module] = [_Block(channels, config.norm) for _ in range(config.blocks if last else config.finer)]
    return [*blocks, SelfAttention2d(channels)] if last and config.attention else blocks


class Down(nn.Module):
    """(B, C, H, W) -> (B, out, h, w)."""

    def __init__(self, channels: int, out: int, config: ResConvConfig) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for i, (fan_in, fan_out) in enumerate(zip([channels, *config.widths], config.widths, strict=False)):
            blocks = _blocks(fan_out, config, last=i + 1 == len(config.widths))
            parts += [nn.SiLU() if i else nn.Identity(), Conv2d(fan_in, fan_out, 4, stride=2, padding=1), *blocks]
        last = config.widths[-1]
        self.body = nn.Sequential(*parts, nn.GroupNorm(1, last) if config.norm else nn.Identity(), nn.SiLU())
        self.head = nn.Conv2d(last, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Up(nn.Module):
    """(B, D, h, w) -> (B, C, H, W), unbounded."""

    def __init__(self, dim: int, channels: int, config: ResConvConfig) -> None:
        super().__init__()
        widths = config.widths[::-1]
        self.stem = nn.Conv2d(dim, widths[0], 3, padding=1)
        parts: list[nn.Module] = []
        for i, width in enumerate(widths):
            parts += [*_blocks(width, config, last=i == 0), nn.GroupNorm(1, width) if config.norm else nn.Identity(), nn.SiLU()]
            if i + 1 < len(widths):
                parts.append(ConvTranspose2d(width, widths[i + 1], 4, stride=2, padding=1))
        self.body = nn.Sequential(*parts)
        self.last = ConvTranspose2d(widths[-1], channels, 4, stride=2, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        return self.last(self.body(self.stem(z)))
