"""Self-attention over the pixels of a feature map."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["SelfAttention2d"]


class SelfAttention2d(nn.Module):
    """x + proj(softmax(q k^T / sqrt(d)) v) over H * W positions (Vaswani et al. 2017, eq. 1; in a U-Net: Ho et al. 2020, appendix B).

    The projection starts at zero, so that the block starts as the identity.
    """

    def __init__(self, channels: int, head_dim: int = 32) -> None:
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
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)  # (B, HW, heads, d)
        return x + self.proj(y.reshape(b, h, w, c).permute(0, 3, 1, 2))
