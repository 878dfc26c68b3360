"""Strided convolutions of few positions and many channels as matrix products: on a processor the library's own are many times slower.

Forward, input gradient and weight gradient of a 4 x 4 kernel of stride 2 from 256 to 512 channels, 8 x 8 to 4 x 4 pixels, 128 images in bf16
on two AMX cores: 10.6, 16.5 and 36.0 ms by the library, 4.4, 5.0 and 8.2 ms as products; 128 to 256 channels: 1.2, 2.1, 6.7 and 1.4, 2.0,
2.2 ms. At 16 x 16 positions the library is quicker. Values, names of parameters and initial weights are those of torch.nn.

Legend: B images, C channels, H x W pixels on the large side, h x w positions on the small side, k kernel, s stride, p padding.
"""

from __future__ import annotations

from typing import Any, NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Conv2d", "ConvTranspose2d", "Window", "columns", "fold"]

POSITIONS, LEAST = 16, 2048  # products pay up to so many positions an image, and from so many weights an output channel


class Window(NamedTuple):
    """A square kernel, its stride, of which it is a multiple, and the padding."""

    k: int
    s: int
    p: int

    def small(self, side: int) -> int:
        """Number of positions along a side of so many pixels."""
        return (side + 2 * self.p - self.k) // self.s + 1


def columns(x: Tensor, win: Window) -> Tensor:
    """The patches of x (B, C, H, W) under each position, as rows (B h w, k k C)."""
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, win.p, win.p, win.p, win.p)).contiguous()  # (B, H + 2p, W + 2p, C)
    b, height, width, c = padded.shape
    h, w = win.small(height - 2 * win.p), win.small(width - 2 * win.p)
    n = padded.stride()
    # a row of a patch is contiguous: k pixels of C channels
    patches = padded.as_strided((b, h, w, win.k, win.k * c), (n[0], n[1] * win.s, n[2] * win.s, n[1], 1))
    return patches.reshape(b * h * w, win.k * win.k * c)


def fold(rows: Tensor, h: int, w: int, win: Window) -> Tensor:
    """The transpose of `columns`: each row (k k C) added to the image where its patch was; (B h w, k k C) -> (B, C, H, W)."""
    m, s, p = win.k // win.s, win.s, win.p  # a kernel is m x m blocks of s x s pixels
    parts = rows.view(-1, h, w, m, s, m, s, rows.shape[1] // win.k**2)  # (B, h, w, m, s, m, s, C)
    b, c = len(parts), parts.shape[-1]
    out = rows.new_zeros(b, h + m - 1, s, w + m - 1, s, c)
    for i in range(m):
        for j in range(m):
            out[:, i : i + h, :, j : j + w].add_(parts[:, :, :, i, :, j].permute(0, 1, 3, 2, 4, 5))
    height, width = s * (h + m - 1) - 2 * p, s * (w + m - 1) - 2 * p
    return out.view(b, height + 2 * p, width + 2 * p, c)[:, p : p + height, p : p + width].permute(0, 3, 1, 2)


def flat(x: Tensor) -> Tensor:
    """(B, C, h, w) -> (B h w, C)."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def weights(w: Tensor) -> Tensor:
    """(small-side channels, large-side channels, k, k) -> (small-side channels, k k large-side channels)."""
    return w.permute(0, 2, 3, 1).reshape(len(w), -1)


def images(rows: Tensor, like: tuple[int, int, int]) -> Tensor:
    """(B h w, C) -> (B, C, h, w) for like = (B, h, w)."""
    return rows.view(*like, -1).permute(0, 3, 1, 2)


def gradient(large: Tensor, small: Tensor, win: Window) -> Tensor:
    """Of the weights, (small-side channels, large-side channels, k, k), from the two sides, of which either may be the gradient."""
    product = columns(large, win).t() @ flat(small)  # (k k C_large, C_small)
    return product.view(win.k, win.k, large.shape[1], -1).permute(3, 2, 0, 1)


@final
class _Conv(torch.autograd.Function):
    """y = columns(x) W^T. Its backward is made of differentiable operations, so that penalties on gradients work."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, win: Window) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.win = win
        return images(columns(x, win) @ weights(w).t(), (len(x), win.small(x.shape[2]), win.small(x.shape[3])))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, w = ctx.saved_tensors
        dx = fold(flat(grad) @ weights(w), grad.shape[2], grad.shape[3], ctx.win) if ctx.needs_input_grad[0] else None
        return dx, gradient(x, grad, ctx.win) if ctx.needs_input_grad[1] else None, None


@final
class _ConvTranspose(torch.autograd.Function):
    """y = fold(x W), the transpose of `_Conv`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, win: Window) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.win = win
        return fold(flat(x) @ weights(w), x.shape[2], x.shape[3], win)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, w = ctx.saved_tensors
        dx = images(columns(grad, ctx.win) @ weights(w).t(), (len(x), x.shape[2], x.shape[3])) if ctx.needs_input_grad[0] else None
        return dx, gradient(grad, x, ctx.win) if ctx.needs_input_grad[1] else None, None


def _pays(x: Tensor, weight: Tensor, win: Window, positions: int) -> bool:
    """Whether products are the quicker way."""
    return x.device.type == "cpu" and win.k % win.s == 0 and positions <= POSITIONS and weight[0].numel() >= LEAST


def _cast(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """What autocast would do to the arguments of a convolution."""
    if not torch.is_autocast_enabled("cpu"):
        return x, w
    dtype = torch.get_autocast_dtype("cpu")
    return x.to(dtype), w.to(dtype)


@final
class Conv2d(nn.Conv2d):
    """nn.Conv2d with a square kernel and zero padding, one group, no dilation."""

    def forward(self, input: Tensor) -> Tensor:
        """x (B, C_in, H, W) -> (B, C_out, h, w)."""
        win = Window(self.kernel_size[0], self.stride[0], int(self.padding[0]))
        exact = all((side + 2 * win.p - win.k) % win.s == 0 for side in input.shape[2:])
        if not exact or not _pays(input, self.weight, win, win.small(input.shape[2]) * win.small(input.shape[3])):
            return super().forward(input)
        y: Tensor = _Conv.apply(*_cast(input, self.weight), win)
        return y if self.bias is None else y + self.bias.to(y.dtype)[:, None, None]


@final
class ConvTranspose2d(nn.ConvTranspose2d):
    """nn.ConvTranspose2d with a square kernel, one group, no dilation and no output padding."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """x (B, C_in, h, w) -> (B, C_out, H, W)."""
        win = Window(self.kernel_size[0], self.stride[0], int(self.padding[0]))
        if output_size is not None or not _pays(input, self.weight, win, input.shape[2] * input.shape[3]):
            return super().forward(input, output_size)
        y: Tensor = _ConvTranspose.apply(*_cast(input, self.weight), win)
        return y if self.bias is None else y + self.bias.to(y.dtype)[:, None, None]
