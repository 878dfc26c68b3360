"""How far two ways to sort the same images agree, whatever the names of their kinds: codes of a generator and a classifier's verdicts."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["counted", "mutual_information", "purity"]


def counted(codes: Tensor, classes: Tensor) -> Tensor:
    """How often each code met each class, (K, C) int64, for codes and classes int64 (N,), numbers from 0. ValueError without samples."""
    if len(codes) != len(classes) or not len(codes):
        raise ValueError(f"{len(codes)} codes and {len(classes)} classes: give one of each for every image, and at least one image")
    k, c = int(codes.max()) + 1, int(classes.max()) + 1
    return torch.bincount(codes.cpu().long() * c + classes.cpu().long(), minlength=k * c).view(k, c)


def purity(codes: Tensor, classes: Tensor) -> float:
    """The share of images whose class is the commonest one of their code, in (0, 1]; the largest class's share where codes say nothing.

    More codes never lower it. (Manning, Raghavan, Schuetze 2008, Introduction to Information Retrieval, eq. 182.)
    """
    n = counted(codes, classes)
    return float(n.max(1).values.sum() / n.sum())


def mutual_information(codes: Tensor, classes: Tensor) -> float:
    """I(code; class) = sum p(k, c) log(p(k, c) / (p(k) p(c))), nats >= 0, by the shares in these samples, which overstate it by about (K - 1)(C - 1) / 2N."""
    p = counted(codes, classes).double()
    p = p / p.sum()
    return max(0.0, float((torch.special.xlogy(p, p) - torch.special.xlogy(p, p.sum(1, keepdim=True)) - torch.special.xlogy(p, p.sum(0))).sum()))
