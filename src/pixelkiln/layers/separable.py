"""Rows and columns of images by matrices, in full single precision and as often differentiable as one likes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

__all__ = ["full_precision", "separable"]


@contextlib.contextmanager
def full_precision(x: Tensor) -> Iterator[None]:
    """Inside, no autocast, and matrix products of x on a GPU keep all bits of fp32, where training has chosen 19 of them (TF32)."""
    before = torch.get_float32_matmul_precision()
    with torch.autocast(x.device.type, enabled=False):
        if not x.is_cuda or before == "highest":
            yield
            return
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)


def separable(x: Tensor, rows: Tensor, columns: Tensor | None) -> Tensor:
    """A_h x A_w^T: x (n, C, H, W), rows A_h (H', H) or one of each image (n, H', H), columns A_w likewise, or none -> (n, C, H', W').

    Differentiable by x alone.
    """
    found: Tensor = Mapped.apply(x, rows, columns)
    return found


class Mapped(torch.autograd.Function):
    """`separable`: a linear map of x, whose gradient is the map by the transposed matrices. A Function, since backward needs the precision, too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, columns: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, columns)
        n, c, h, w = x.shape
        with full_precision(x):
            if columns is not None:
                x = (x.reshape(n, c * h, w) @ columns.mT).reshape(n, c, h, -1)  # (n, C, H, W')
            if c == 1:
                return (rows @ x[:, 0])[:, None]
            return (rows[:, None] if rows.dim() == 3 else rows) @ x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        rows, columns = ctx.saved_tensors
        return separable(grads[0], rows.mT, None if columns is None else columns.mT), None, None
