"""The diffusion transformer: patches are tokens, and one vector scales, shifts and gates every block (adaLN-Zero).

Peebles and Xie 2023 (arXiv 2212.09748, section 3.2 and figure 3). The paper's own block is positions "sincos", norm "layer", no qk_norm, mlp "gelu"; the
other choices are those of later ones: rotary positions (`layers/positions.py`), norms by the root mean square (Zhang and Sennrich 2019, arXiv
1910.07467), normalized queries and keys (Henry et al. 2020, arXiv 2010.04245; Dehghani et al. 2023, arXiv 2302.05442), SwiGLU (Shazeer 2020, arXiv 2002.05202).

Legend: B batch, N = (H / p) (W / p) tokens of patches of p x p pixels, D the vector's dimension, E width, d = E / heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.types import UserError
from ..layers.attention import attend, beside
from ..layers.embed import sinusoidal
from ..layers.norm import rms_norm
from ..layers.positions import rope_2d, rotate, sincos_2d
from .conditioning import Conditioned, split
from .text import Words

__all__ = ["DiT", "DiTConfig"]


@dataclass(frozen=True)
class DiTConfig:
    """Size of a transformer over patches, and the forms of its parts."""

    width: int = 192
    depth: int = 6
    heads: int = 3
    patch: int = 2  # side of the patches that become tokens
    ratio: float = 4.0  # hidden units of the perceptron for each unit of width (two thirds of it for swiglu: as many weights)
    positions: Literal["rope", "sincos"] = "rope"
    norm: Literal["rms", "layer"] = "rms"
    qk_norm: bool = True
    mlp: Literal["swiglu", "gelu"] = "swiglu"

    @property
    def multiple(self) -> int:
        """What the image's sides must be a multiple of."""
        return self.patch


def norm(kind: str, x: Tensor) -> Tensor:
    """The norm over the last dimension, without weights."""
    return rms_norm(x) if kind == "rms" else F.layer_norm(x, x.shape[-1:], eps=1e-6)


class Attention(nn.Module):
    """proj(softmax(q k^T / sqrt(d)) v) over the tokens; q and k normalized if asked, with a gain for each unit, then turned."""

    def __init__(self, config: DiTConfig, words: int = 0) -> None:
        super().__init__()
        self.heads, width = config.heads, config.width
        self.read = nn.Linear(words, 2 * width) if words else None
        self.qkv = nn.Linear(width, 3 * width)
        self.gain = nn.Parameter(torch.ones(2, width // config.heads)) if config.qk_norm else None
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor] | None, words: Words | None = None) -> Tensor:
        """x (B, N, E), angles (N, d / 2) twice -> (B, N, E)."""
        b, n, e = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, e // self.heads).permute(2, 0, 3, 1, 4)  # each (B, heads, N, d)
        if self.gain is not None:
            gain = self.gain.to(q.dtype)
            q, k = rms_norm(q) * gain[0], rms_norm(k) * gain[1]
        if angles is not None:
            q, k = rotate(q, *angles), rotate(k, *angles)
        there = None
        if self.read is not None:
            assert words is not None
            k, v, there = beside(k, v, self.read(words.tokens), words.there)
        return self.proj(attend(q, k, v, there).transpose(1, 2).reshape(b, n, e))


class Perceptron(nn.Module):
    """gelu: W2 gelu(W1 x). swiglu: W2 (silu(V x) * W1 x) (Shazeer 2020, eq. 6)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.gated = config.mlp == "swiglu"
        hidden = round(config.ratio * config.width * (2 / 3 if self.gated else 1) / 8) * 8
        self.enter = nn.Linear(config.width, hidden * (2 if self.gated else 1))
        self.leave = nn.Linear(hidden, config.width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        if self.gated:
            gate, h = h.chunk(2, dim=-1)
            h = F.silu(gate) * h
        else:
            h = F.gelu(h, approximate="tanh")
        return self.leave(h)


class Block(nn.Module):
    """x + a1 attention(norm(x) (1 + s1) + b1), then x + a2 mlp(norm(x) (1 + s2) + b2); (b, s, a) = W silu(vec), which starts at 0."""

    def __init__(self, dim: int, config: DiTConfig, words: int) -> None:
        super().__init__()
        self.norm = config.norm
        self.attention, self.mlp = Attention(config, words), Perceptron(config)
        self.affine = nn.Linear(dim, 6 * config.width)

    def forward(self, x: Tensor, vec: Tensor, angles: tuple[Tensor, Tensor] | None, words: Words | None = None) -> Tensor:
        """x (B, N, E), vec (B, D) after silu -> (B, N, E)."""
        b1, s1, a1, b2, s2, a2 = self.affine(vec)[:, None].to(x.dtype).chunk(6, dim=-1)  # (B, 1, E) each
        x = torch.addcmul(x, a1, self.attention(torch.addcmul(b1, norm(self.norm, x), 1 + s1), angles, words).to(x.dtype))
        return torch.addcmul(x, a2, self.mlp(torch.addcmul(b2, norm(self.norm, x), 1 + s2)).to(x.dtype))


class DiT(nn.Module):
    """F(x, t, cond): noisy images, times and the condition to what the parameterization predicts. It starts as zero.

    channels: of x and the condition's map together; out_channels: of the result, by default as many; words: attention reads those of a caption, too. Any sides that the patch divides.
    """

    def __init__(self, channels: int, dim: int, config: DiTConfig, out_channels: int | None = None, words: bool = False) -> None:
        super().__init__()
        if config.width % (4 * config.heads):
            raise UserError(f"a width of {config.width} does not make {config.heads} heads of a multiple of 4: give a multiple of {4 * config.heads}")
        self.config, self.dim = config, dim
        self.time = nn.Sequential(nn.Linear(256, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.stem = nn.Linear(channels * config.patch**2, config.width)
        self.blocks = nn.ModuleList(Block(dim, config, dim * words) for _ in range(config.depth))
        self.affine = nn.Linear(dim, 2 * config.width)
        self.head = nn.Linear(config.width, (out_channels or channels) * config.patch**2)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        for block in [*self.blocks, self]:
            nn.init.zeros_(block.affine.weight)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | Conditioned) -> Tensor:
        """x (B, C, H, W), t (B,) in [0, 1], cond or its vec (B, D) -> (B, C_out, H, W)."""
        config = self.config
        x, vec, words = split(x, cond)
        vec = F.silu(self.time(sinusoidal(1000 * t, 256)) + vec)  # (B, D)
        h = F.pixel_unshuffle(x, config.patch)  # (B, C p^2, H/p, W/p)
        rows, columns = h.shape[2:]
        h = self.stem(h.flatten(2).transpose(1, 2))  # (B, N, E)
        angles = None
        if config.positions == "rope":
            angles = rope_2d(rows, columns, config.width // config.heads, x.device)
        else:
            h = h + sincos_2d(rows, columns, config.width, x.device).to(h.dtype)
        for block in self.blocks:
            h = block(h, vec, angles, words)
        shift, scale = self.affine(vec)[:, None].to(h.dtype).chunk(2, dim=-1)
        h = self.head(torch.addcmul(shift, norm(config.norm, h), 1 + scale))
        return F.pixel_shuffle(h.transpose(1, 2).unflatten(2, (rows, columns)), config.patch)
