"""Self-attention over the pixels of a feature map."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["SelfAttention2d", "attend"]

SHORT = 256  # positions up to which two plain matrix products beat the fused kernel on a processor


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for q, k, v (B, heads, N, d) (Vaswani et al. 2017, arXiv 1706.03762, eq. 1).

    The fused kernel, but for short sequences on a processor: there, forward and backward in bf16 took it 32 ms for N = 49 and 112 ms for
    N = 196, and the two products 4.4 and 30 to 79 ms (64 images, 128 channels, one thread of a Zen 5 core).
    """
    if q.device.type == "cpu" and k.shape[-2] <= SHORT:
        return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v)


class SelfAttention2d(nn.Module):
    """x + proj(softmax(q k^T / sqrt(d)) v) over H * W positions (Vaswani et al. 2017, eq. 1; in a U-Net: Ho et al. 2020, appendix B).

    The projection starts at zero, so that the block starts as the identity.
    """

    def __init__(self, channels: int, head_dim: int = 64) -> None:
        super().__init__()
        self.heads = max(1, channels // head_dim)
        self.norm = nn.GroupNorm(1, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> (B, C, H, W)."""
        b, c, h, w = x.shape
        qkv = self.qkv(self.norm(x)).permute(0, 2, 3, 1)  # (B, H, W, 3C): free where the layout is channels-last
        q, k, v = qkv.reshape(b, h * w, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)  # each (B, heads, HW, d)
        y = attend(q, k, v).transpose(1, 2)  # (B, HW, heads, d)
        return x + self.proj(y.reshape(b, h, w, c).permute(0, 3, 1, 2))
