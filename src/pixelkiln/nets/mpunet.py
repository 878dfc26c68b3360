"""The magnitude-preserving U-Net of EDM2: no biases, no group normalization, weights of unit norm, activations of unit variance.

Karras et al. 2024 (arXiv 2312.02696), configuration G: blocks of figure 21, cosine attention of appendix B.1, layers in `layers/preserving.py`.
Two things differ, for speed: changes of resolution have no convolutions of their own (the mean of 2 x 2 pixels down, repetition up, at the first block of a
level), and constant factors sit in the weights. Levels, widths and patches are those of `UNet`.

Legend: B batch, C channels, H W height and width of a level, D the vector's dimension, d a head's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.attention import attend, beside
from ..layers.norm import pixel_norm, rms_norm
from ..layers.preserving import SILU, Fourier, MPConv, force, mp_cat, mp_silu, mp_sum
from .conditioning import Conditioned, split
from .text import Words
from .unet import UNetConfig

__all__ = ["MPUNet", "MPUNetConfig"]

RESIDUAL = 0.3  # the new part's share in a sum with its input, table 6
OLD, NEW = ((1 - RESIDUAL) / math.hypot(1 - RESIDUAL, RESIDUAL), RESIDUAL / math.hypot(1 - RESIDUAL, RESIDUAL))


@dataclass(frozen=True)
class MPUNetConfig(UNetConfig):
    """Size of a magnitude-preserving U-Net: fields and levels of `UNetConfig`."""


class CosineAttention(nn.Module):
    """mp_sum(x, proj(softmax(q k^T / sqrt(d)) v), 0.3), where each head's q, k and v have a root mean square of 1."""

    def __init__(self, channels: int, head_dim: int = 64, words: int = 0) -> None:
        super().__init__()
        self.heads = max(1, channels // head_dim)
        self.qkv = MPConv(channels, 3 * channels, 1)
        self.proj = MPConv(channels, channels, 1)
        self.read = MPConv(words, 2 * channels) if words else None

    def forward(self, x: Tensor, words: Words | None = None) -> Tensor:
        """x (B, C, H, W) -> (B, C, H, W)."""
        b, c, h, w = x.shape
        qkv = self.qkv(x).permute(0, 2, 3, 1).reshape(b, h * w, 3, self.heads, c // self.heads)
        q, k, v = rms_norm(qkv).permute(2, 0, 3, 1, 4)  # each (B, heads, HW, d)
        there = None
        if self.read is not None:
            assert words is not None
            kv = self.read(rms_norm(words.tokens)).view(b, -1, 2 * self.heads, c // self.heads)
            k, v, there = beside(k, v, rms_norm(kv).flatten(2), words.there)
        y = attend(q, k, v, there).transpose(1, 2).reshape(b, h, w, c).permute(0, 3, 1, 2)
        return torch.add(self.proj(y, NEW), x, alpha=OLD)


class Block(nn.Module):
    """mp_sum(x, conv(mp_silu(conv(mp_silu x) (1 + g vec))), 0.3), then attention. On the way down x is first normalized over the channels."""

    def __init__(self, c_in: int, c_out: int, dim: int, config: MPUNetConfig, attends: bool, down: bool, words: int = 0) -> None:
        super().__init__()
        self.down, self.dropout = down, config.dropout
        self.skip = MPConv(c_in, c_out, 1) if c_in != c_out else None
        self.conv1 = MPConv(c_out if down else c_in, c_out, 3)
        self.affine = MPConv(dim, c_out)
        self.gain = nn.Parameter(torch.zeros(()))
        self.conv2 = MPConv(c_out, c_out, 3)
        self.attention = CosineAttention(c_out, words=words) if attends else None

    def forward(self, x: Tensor, vec: Tensor, words: Words | None = None) -> Tensor:
        """x (B, C_in, H, W), vec (B, D) -> (B, C_out, H, W)."""
        if self.down:
            x = pixel_norm(x if self.skip is None else self.skip(x))
        h = self.conv1(F.silu(x), SILU)
        scale = self.affine(vec, self.gain)[:, :, None, None] + 1  # (B, C_out, 1, 1)
        h = F.dropout(F.silu(h * scale), self.dropout, self.training)
        if not self.down and self.skip is not None:
            x = self.skip(x)
        h = torch.add(self.conv2(h, SILU * NEW), x, alpha=OLD)
        return h if self.attention is None else self.attention(h, words)


class MPUNet(nn.Module):
    """F(x, t, cond): images of about unit variance, a number for the noise level, and the condition to what the parameterization predicts.

    channels: of x and the condition's map together; out_channels: of the result, by default as many; words: attention reads those of a caption. The last layer's gain starts at 0.
    """

    def __init__(self, channels: int, dim: int, config: MPUNetConfig, out_channels: int | None = None, words: bool = False) -> None:
        super().__init__()
        self.config, self.dim = config, dim
        widths, read = [config.width * m for m in config.mults], dim * words
        self.fourier = Fourier(config.width)
        self.time = MPConv(config.width, dim)
        self.stem = MPConv(channels * config.patch**2 + 1, widths[0], 3)  # one channel of ones instead of a bias
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        skips, c = [widths[0]], widths[0]
        for i, width in enumerate(widths):
            if i:
                skips.append(c)
            for _ in range(config.blocks):
                self.down.append(Block(c, width, dim, config, i in config.attention, True, read))
                c = width
                skips.append(c)
        last = len(widths) - 1
        self.middle = nn.ModuleList([Block(c, c, dim, config, last in config.attention, False, read), Block(c, c, dim, config, False, False)])
        for i, width in reversed(list(enumerate(widths))):
            for _ in range(config.blocks + 1):
                self.up.append(Block(c + skips.pop(), width, dim, config, i in config.attention, False, read))
                c = width
        self.head = MPConv(c, (out_channels or channels) * config.patch**2, 3)
        self.gain = nn.Parameter(torch.zeros(()))

    def normalize_(self) -> None:
        """Forced weight normalization of all layers; `forward` does it in training."""
        force(m.weight for m in self.modules() if isinstance(m, MPConv))

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | Conditioned) -> Tensor:
        """x (B, C, H, W), t (B,) of order 1 (a time in [0, 1], or log(sigma) / 4), cond or its vec (B, D) -> (B, C_out, H, W)."""
        if self.training:
            self.normalize_()
        x, vec, words = split(x, cond)
        vec = mp_silu(mp_sum(self.time(self.fourier(t)), rms_norm(vec.float()), 0.5))  # (B, D)
        h = F.pixel_unshuffle(x, self.config.patch)
        h = torch.cat([h, torch.ones_like(h[:, :1])], dim=1).contiguous(memory_format=torch.channels_last)
        h = self.stem(h)
        skips, blocks, (down, up) = [h], self.config.blocks, (iter(self.down), iter(self.up))
        for i in range(len(self.config.mults)):
            if i:
                h = F.avg_pool2d(h, 2)
                skips.append(h)
            for _ in range(blocks):
                h = next(down)(h, vec, words)
                skips.append(h)
        for block in self.middle:
            h = block(h, vec, words)
        for i in range(len(self.config.mults)):
            if i:
                h = F.interpolate(h, scale_factor=2, mode="nearest")
            for _ in range(blocks + 1):
                h = next(up)(mp_cat(h, skips.pop()), vec, words)
        return F.pixel_shuffle(self.head(h, self.gain), self.config.patch)
