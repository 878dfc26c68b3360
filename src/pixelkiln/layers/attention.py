"""Attention over the pixels of a feature map, and over the words of a caption beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
import torch.autograd.forward_ad as fwAD
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["PooledAttention2d", "SelfAttention2d", "attend", "beside"]

SHORT = 256  # positions up to which two plain matrix products beat the fused kernel on a processor


def attend(q: Tensor, k: Tensor, v: Tensor, there: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for q (B, heads, N, d) and k, v (B, heads, M, d) (Vaswani et al. 2017, arXiv 1706.03762, eq. 1).

    there (B, 1, 1, M) bool: the keys that are looked at, all by default.

    The fused kernel, but for short sequences on a processor: there, forward and backward in bf16 took it 32 ms for N = 49 and 112 ms for
    N = 196, and the two products 4.4 and 30 to 79 ms (64 images, 128 channels, one thread of a Zen 5 core).
    """
    if q.device.type == "cpu" and k.shape[-2] <= SHORT:
        logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        return (logits if there is None else logits.masked_fill(~there, -torch.inf)).softmax(-1) @ v
    if fwAD.unpack_dual(q).tangent is not None:  # forward derivatives, which the fused kernels have not
        with sdpa_kernel(SDPBackend.MATH):
            return F.scaled_dot_product_attention(q, k, v, there)
    return F.scaled_dot_product_attention(q, k, v, there)


def beside(k: Tensor, v: Tensor, kv: Tensor, there: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values of pixels, (B, heads, N, d), with those of words behind them, kv (B, L, 2 heads d); and which of all are there.

    One softmax over both, which needs no second attention (Nichol et al. 2022, GLIDE, arXiv 2112.10741, section 3.1).
    """
    b, heads, n, d = k.shape
    words = kv.view(b, -1, 2, heads, d).permute(2, 0, 3, 1, 4).to(k.dtype)  # 2 of (B, heads, L, d)
    seen = F.pad(there, (n, 0), value=True)[:, None, None]
    return torch.cat([k, words[0]], dim=2), torch.cat([v, words[1]], dim=2), seen


class SelfAttention2d(nn.Module):
    """x + proj(softmax(q k^T / sqrt(d)) v) over H * W positions (Vaswani et al. 2017, eq. 1; in a U-Net: Ho et al. 2020, appendix B).

    words: dimension of the vectors of a caption's words that are looked at, too (0: none). The projection starts at zero, so that the block
    starts as the identity.
    """

    def __init__(self, channels: int, head_dim: int = 64, words: int = 0) -> None:
        super().__init__()
        self.heads = max(1, channels // head_dim)
        self.norm = nn.GroupNorm(1, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)
        self.read = nn.Linear(words, 2 * channels) if words else None
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, words: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """x (B, C, H, W), words (B, L, D) and which are there (B, L) -> (B, C, H, W)."""
        b, c, h, w = x.shape
        qkv = self.qkv(self.norm(x)).permute(0, 2, 3, 1)  # (B, H, W, 3C): free where the layout is channels-last
        q, k, v = qkv.reshape(b, h * w, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)  # each (B, heads, HW, d)
        there = None
        if self.read is not None:
            assert words is not None
            k, v, there = beside(k, v, self.read(words[0]), words[1])
        y = attend(q, k, v, there).transpose(1, 2)  # (B, HW, heads, d)
        return x + self.proj(y.reshape(b, h, w, c).permute(0, 3, 1, 2))


@final
class PooledAttention2d(nn.Module):
    """y = x + gamma o, o_j = W_v sum_i b_ij W_h x_i, b_ij = softmax_i(<W_f x_i, W_g x_j>), gamma = 0 at first: no scale, no norm, no biases.

    Zhang et al. 2019, arXiv 1805.08318, eq. 1 to 3; with C / 8 channels in f and g, and, as the authors' program has it, C / 2 in h and the
    keys and values max-pooled by 2 x 2. `wrap` goes around each of the four 1 x 1 convolutions. Plain products, which a penalty can
    differentiate twice.
    """

    def __init__(self, channels: int, wrap: Callable[[nn.Module], nn.Module] = lambda m: m) -> None:
        super().__init__()
        narrow, half = max(1, channels // 8), max(1, channels // 2)
        self.g, self.f, self.h = (wrap(nn.Conv2d(channels, out, 1, bias=False)) for out in (narrow, narrow, half))
        self.v = wrap(nn.Conv2d(half, channels, 1, bias=False))
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """x (n, C, H, W) of the same shape."""
        q = self.g(x).flatten(2).transpose(1, 2)  # (n, HW, C/8)
        k = F.max_pool2d(self.f(x), 2).flatten(2)  # (n, C/8, HW/4)
        v = F.max_pool2d(self.h(x), 2).flatten(2).transpose(1, 2)  # (n, HW/4, C/2)
        o = ((q @ k).softmax(-1).to(v.dtype) @ v).transpose(1, 2).unflatten(2, x.shape[2:])  # (n, C/2, H, W)
        return x + self.gamma.to(x.dtype) * self.v(o)
