"""Inception-v3 as it was converted from TensorFlow's graph of 2015-12-05: the network of the Inception Score, FID and KID.

Szegedy et al., 2015 (arXiv 1512.00567), with what that graph does differently from the paper and from other versions: average pools do
not count their padding, the last block pools by maximum, 1,008 outputs, BatchNorm with eps 0.001. The names of the weights are those of
the published conversion, so that its file fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["OUTPUTS", "SIDE", "Inception"]

SIDE, OUTPUTS = 299, 1008
Kernel = int | tuple[int, int]
Conv = tuple[str, int, Kernel]  # name, channels, kernel
Branch = Sequence[Conv | list[Conv]]  # one after the other; a list forks, and its outputs are put side by side


class Unit(nn.Module):
    """Convolution without a bias, batch norm, ReLU; padded to keep the size unless `valid` or stride 2."""

    def __init__(self, c_in: int, c_out: int, kernel: Kernel, stride: int = 1, valid: bool = False) -> None:
        super().__init__()
        h, w = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        padding = (0, 0) if valid or stride > 1 else (h // 2, w // 2)
        self.conv = nn.Conv2d(c_in, c_out, (h, w), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(c_out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, H, W) -> (B, c_out, H', W')."""
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Mixed(nn.Module):
    """Branches side by side, and a pool: "mean" or "max" of 3 x 3 before a 1 x 1 convolution, or None, where the block halves the side."""

    def __init__(self, c_in: int, branches: Sequence[Branch], pool: str | None, pooled: int = 0) -> None:
        super().__init__()
        self.branches, self.pool = branches, pool
        for branch in branches:
            c = c_in
            for i, step in enumerate(branch):
                convs = step if isinstance(step, list) else [step]
                halves = pool is None and i == len(branch) - 1
                for name, c_out, kernel in convs:
                    self.add_module(name, Unit(c, c_out, kernel, stride=2 if halves else 1))
                c = sum(c_out for _, c_out, _ in convs)
        if pool is not None:
            self.branch_pool = Unit(c_in, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, H, W) -> the branches' channels in order, then the pool's."""
        found = []
        for branch in self.branches:
            y = x
            for step in branch:
                y = torch.cat([self.get_submodule(name)(y) for name, *_ in (step if isinstance(step, list) else [step])], 1)
            found.append(y)
        if self.pool is None:
            found.append(F.max_pool2d(x, 3, 2))
        elif self.pool == "max":
            found.append(self.branch_pool(F.max_pool2d(x, 3, 1, 1)))
        else:
            found.append(self.branch_pool(F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)))
        return torch.cat(found, 1)


def block_a(c_in: int, pooled: int) -> Mixed:
    """35 x 35: figure 5 of the paper."""
    return Mixed(c_in, ([("branch1x1", 64, 1)], [("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)],
                        [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)]), "mean", pooled)


def block_c(c: int) -> Mixed:
    """17 x 17, with 7 x 7 convolutions in two parts: figure 6."""
    down, across = (7, 1), (1, 7)
    return Mixed(768, ([("branch1x1", 192, 1)], [("branch7x7_1", c, 1), ("branch7x7_2", c, across), ("branch7x7_3", 192, down)],
                       [("branch7x7dbl_1", c, 1), ("branch7x7dbl_2", c, down), ("branch7x7dbl_3", c, across), ("branch7x7dbl_4", c, down),
                        ("branch7x7dbl_5", 192, across)]), "mean", 192)


def block_e(c_in: int, pool: str) -> Mixed:
    """8 x 8, with forked ends: figure 7."""
    down, across = (3, 1), (1, 3)
    return Mixed(c_in, ([("branch1x1", 320, 1)], [("branch3x3_1", 384, 1), [("branch3x3_2a", 384, across), ("branch3x3_2b", 384, down)]],
                        [("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3),
                         [("branch3x3dbl_3a", 384, across), ("branch3x3dbl_3b", 384, down)]]), pool, 192)


@final
class Inception(nn.Module):
    """x (B, 3, 299, 299) in [-1, 1], (pixel - 128) / 128 -> pool3, 2,048 features; the last layer gives 1,008 logits."""

    dim = 2048

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3, self.Conv2d_2a_3x3, self.Conv2d_2b_3x3 = Unit(3, 32, 3, stride=2), Unit(32, 32, 3, valid=True), Unit(32, 64, 3)
        self.Conv2d_3b_1x1, self.Conv2d_4a_3x3 = Unit(64, 80, 1), Unit(80, 192, 3, valid=True)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = block_a(192, 32), block_a(256, 64), block_a(288, 64)
        self.Mixed_6a = Mixed(288, ([("branch3x3", 384, 3)], [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)]), None)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = (block_c(c) for c in (128, 160, 160, 192))
        self.Mixed_7a = Mixed(768, ([("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3)],
                                    [("branch7x7x3_1", 192, 1), ("branch7x7x3_2", 192, (1, 7)), ("branch7x7x3_3", 192, (7, 1)),
                                     ("branch7x7x3_4", 192, 3)]), None)
        self.Mixed_7b, self.Mixed_7c = block_e(1280, "mean"), block_e(2048, "max")
        self.fc = nn.Linear(self.dim, OUTPUTS)

    def stages(self, x: Tensor) -> list[Tensor]:
        """Maps of 64, 192, 768 and 2,048 channels, at 73, 35, 17 and 8 pixels."""
        a = F.max_pool2d(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))), 3, 2)
        b = F.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(a)), 3, 2)
        c = self.Mixed_6a(self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(b))))
        c = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(c))))
        return [a, b, c, self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(c)))]

    def forward(self, x: Tensor) -> Tensor:
        """pool3 (B, 2048)."""
        return self.stages(x)[-1].mean((2, 3))

    def logits(self, features: Tensor) -> Tensor:
        """(B, 1008) without the bias, which the published Inception Scores leave out as well (Salimans et al., 2016, their program)."""
        return features @ self.fc.weight.T
