"""How far two ways to sort the same images agree: what was asked for (labels, or codes of a generator) and a classifier's verdicts; streamed in constant memory."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Agreement", "mutual_information", "purity"]


class Agreement:
    """How often each label met each of C classes: counts (K, C) int64, with as many labels as were seen; labels below 0 are unknown and do not count."""

    def __init__(self, num_classes: int) -> None:
        self.counts = torch.zeros(0, num_classes, dtype=torch.int64)

    def update(self, labels: Tensor, predicted: Tensor) -> Agreement:
        """Add labels and predicted classes int64 (B,), one of each for every image; ValueError for other shapes, or classes that are not in 0..C-1."""
        if labels.shape != predicted.shape or labels.ndim != 1:
            raise ValueError(f"labels {tuple(labels.shape)} and classes {tuple(predicted.shape)}: give one of each for every image")
        labels, predicted, c = labels.cpu().long(), predicted.cpu().long(), self.counts.shape[1]
        labels, predicted = labels[labels >= 0], predicted[labels >= 0]
        if not len(labels):
            return self
        if int(predicted.min()) < 0 or int(predicted.max()) >= c:
            raise ValueError(f"predictions are {int(predicted.min())}..{int(predicted.max())}, and there are classes 0..{c - 1}")
        k = int(labels.max()) + 1
        return self._add(torch.bincount(labels * c + predicted, minlength=k * c).view(k, c))

    def merge(self, other: Agreement) -> Agreement:
        """Add the counts of other images; ValueError for another number of classes."""
        if self.counts.shape[1] != other.counts.shape[1]:
            raise ValueError(f"counts of {self.counts.shape[1]} and {other.counts.shape[1]} classes cannot be merged")
        return self._add(other.counts)

    def _add(self, counts: Tensor) -> Agreement:
        few, many = sorted((self.counts, counts), key=len)
        self.counts = many + torch.nn.functional.pad(few, (0, 0, 0, len(many) - len(few)))
        return self

    @property
    def num(self) -> int:
        """Images with a label."""
        return int(self.counts.sum())

    @property
    def right(self) -> int:
        """Images whose class has the number of their label."""
        return int(self.counts.diagonal().sum())

    @property
    def purity(self) -> float:
        """The share of images whose class is the commonest one of their label, in (0, 1]; the largest class's share where labels say nothing.

        More labels never lower it. (Manning, Raghavan, Schuetze 2008, Introduction to Information Retrieval, eq. 182.) ValueError without images.
        """
        return int(self._some().max(1).values.sum()) / self.num

    @property
    def nats(self) -> float:
        """I(label; class) = sum p(k, c) log(p(k, c) / (p(k) p(c))) >= 0 of these images' shares, which overstate it by about (K - 1)(C - 1) / 2N. ValueError without images."""
        p = self._some().double() / self.num
        return max(0.0, float(torch.special.xlogy(p, p).sum() - torch.special.xlogy(p.sum(0), p.sum(0)).sum() - torch.special.xlogy(p.sum(1), p.sum(1)).sum()))

    def _some(self) -> Tensor:
        if not self.num:
            raise ValueError("there are no images with labels: give at least one")
        return self.counts


def _of(codes: Tensor, classes: Tensor) -> Agreement:
    return Agreement(int(classes.max()) + 1 if len(classes) else 0).update(codes, classes)


def purity(codes: Tensor, classes: Tensor) -> float:
    """`Agreement.purity` of codes and classes int64 (N,), numbers from 0."""
    return _of(codes, classes).purity


def mutual_information(codes: Tensor, classes: Tensor) -> float:
    """`Agreement.nats` of codes and classes int64 (N,), numbers from 0."""
    return _of(codes, classes).nats
