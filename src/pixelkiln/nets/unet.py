"""The U-Net of diffusion models: residual blocks, attention at the coarse levels, and one vector that scales and shifts every block.

Ho et al. 2020 (arXiv 2006.11239, appendix B) with the scale-shift conditioning of Nichol and Dhariwal 2021 (arXiv 2102.09672,
section 3). The norms have one group: on a processor, channels-last, 32 groups cost 14 times as much, nearly as much as the convolution
(21 against 1.5 ms, 64 x 128 x 14 x 14 in bf16, forward and backward). Images may be cut into patches first (pixel_unshuffle): the same depth at a quarter of the arithmetic.

Legend: B batch, C channels, H W height and width of a level, D the vector's dimension.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.recipe import Size, by_size
from ..layers.attention import SelfAttention2d
from ..layers.embed import sinusoidal
from .conditioning import Conditioned, split
from .text import Words

__all__ = ["UNet", "UNetConfig", "unet_of"]


@dataclass(frozen=True)
class UNetConfig:
    """Size of a U-Net. Level i works at 1 / (patch * 2^i) of the resolution with width * mults[i] channels."""

    width: int = 64
    mults: tuple[int, ...] = (1, 2)
    blocks: int = 2  # residual blocks a level (one more on the way up)
    attention: tuple[int, ...] = (1,)  # levels with self-attention
    patch: int = 1  # side of the patches that become channels
    dropout: float = 0.0

    @property
    def multiple(self) -> int:
        """What the image's sides must be a multiple of."""
        return self.patch * 2 ** (len(self.mults) - 1)


def unet_of(size: Size, base: UNetConfig) -> UNetConfig:
    """The U-Net of a recipe: tiny and small are the same for all, so that recipes can be compared; base is what the paper has."""
    small = UNetConfig(width=48, mults=(1, 2), blocks=1, attention=(1,), patch=2)
    found: UNetConfig = by_size(size, tiny=replace(small, width=16), small=small, base=base)
    return found


def zeros(conv: nn.Conv2d) -> nn.Conv2d:
    """A convolution that starts at zero."""
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv


class Block(nn.Module):
    """Residual block: h = conv(silu(norm x)); h = conv(silu(norm(h) (1 + scale) + shift)); skip(x) + h."""

    def __init__(self, c_in: int, c_out: int, dim: int, dropout: float, attend: bool, words: int = 0) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(1, c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.affine = nn.Linear(dim, 2 * c_out)
        self.norm2 = nn.GroupNorm(1, c_out, affine=False)
        self.dropout = dropout
        self.conv2 = zeros(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()
        self.attend = SelfAttention2d(c_out, words=words) if attend else None

    def forward(self, x: Tensor, vec: Tensor, words: Words | None = None) -> Tensor:
        """x (B, C_in, H, W), vec (B, D) -> (B, C_out, H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.affine(vec)[:, :, None, None].chunk(2, dim=1)  # (B, C_out, 1, 1) each
        h = F.silu(torch.addcmul(shift, self.norm2(h), 1 + scale))
        h = self.conv2(F.dropout(h, self.dropout, self.training))
        h = self.skip(x) + h
        return h if self.attend is None else self.attend(h, words)


class UNet(nn.Module):
    """F(x, t, cond): noisy images, times and the condition to what the parameterisation predicts.

    channels: of x and the condition's map together; out_channels: of the result, by default as many; words: attention reads those of a caption.
    """

    def __init__(self, channels: int, dim: int, config: UNetConfig, out_channels: int | None = None, words: bool = False) -> None:
        super().__init__()
        self.config, self.dim = config, dim
        widths = [config.width * m for m in config.mults]
        raw, read = channels * config.patch**2, dim * words
        self.time = nn.Sequential(nn.Linear(config.width, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.stem = nn.Conv2d(raw, widths[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        skips, c = [widths[0]], widths[0]
        for i, width in enumerate(widths):
            if i:
                self.down.append(nn.Conv2d(c, c, 3, stride=2, padding=1))
                skips.append(c)
            for _ in range(config.blocks):
                self.down.append(Block(c, width, dim, config.dropout, i in config.attention, read))
                c = width
                skips.append(c)
        last = len(widths) - 1
        self.middle = nn.ModuleList([Block(c, c, dim, config.dropout, last in config.attention, read), Block(c, c, dim, config.dropout, False)])
        for i, width in reversed(list(enumerate(widths))):
            for _ in range(config.blocks + 1):
                self.up.append(Block(c + skips.pop(), width, dim, config.dropout, i in config.attention, read))
                c = width
            if i:
                self.up.append(nn.Conv2d(c, c, 3, padding=1))
        self.norm = nn.GroupNorm(1, c)
        self.head = zeros(nn.Conv2d(c, (out_channels or channels) * config.patch**2, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | Conditioned) -> Tensor:
        """x (B, C, H, W), t (B,) in [0, 1], cond or its vec (B, D) -> (B, C_out, H, W)."""
        x, vec, words = split(x, cond)
        vec = F.silu(self.time(sinusoidal(1000 * t, self.config.width)) + vec)  # (B, D)
        h = self.stem(F.pixel_unshuffle(x, self.config.patch).contiguous(memory_format=torch.channels_last))
        skips = [h]
        for layer in self.down:
            h = layer(h, vec, words) if isinstance(layer, Block) else layer(h)
            skips.append(h)
        for block in self.middle:
            h = block(h, vec, words)
        for layer in self.up:
            if isinstance(layer, Block):
                h = layer(torch.cat([h, skips.pop()], dim=1), vec, words)
            else:
                h = layer(F.interpolate(h, scale_factor=2, mode="nearest"))
        h = self.head(F.silu(self.norm(h)))
        return F.pixel_shuffle(h, self.config.patch)
