"""Scores from a classifier's predictions: Inception Score, modes found and their balance; streamed in constant memory."""

from __future__ import annotations

import torch
from torch import Tensor

from pixelkiln.core.rng import permutation

from .result import Estimate

__all__ = ["InceptionScore", "Modes", "inception_score"]


class InceptionScore:
    """Sums behind the score of each split: batches of any size, workers merged in any order.

    Sample i (its number, not its place in a batch) belongs to split s_b(i mod S), with s_b the permutation of block b = i div S that the
    seed gives: splits are random, differ by at most one sample in size, and need neither the number of samples nor the global generator.
    """

    def __init__(self, num_classes: int, num_splits: int = 10, seed: int = 0) -> None:
        if num_splits < 1:
            raise ValueError(f"an Inception Score needs at least one split, and num_splits is {num_splits}")
        self.num_splits, self.seed, self.seen = num_splits, seed, 0
        self.n = torch.zeros(num_splits, dtype=torch.float64)
        self.total = torch.zeros(num_splits, num_classes, dtype=torch.float64)  # sum of p(y|x)
        self.negentropy = torch.zeros(num_splits, dtype=torch.float64)  # sum of sum_y p log p

    def update(self, probabilities: Tensor, numbers: Tensor | None = None) -> InceptionScore:
        """Add p(y|x) (B, C), rows that sum to 1 (ValueError), of the samples `numbers` (B,); None: those after the last."""
        p = probabilities.detach().to("cpu", torch.float64)
        if p.ndim != 2 or p.shape[1] != self.total.shape[1]:
            raise ValueError(f"expected probabilities (B, {self.total.shape[1]}), got {tuple(p.shape)}")
        if len(p) and not (p.min() >= 0 and (p.sum(1) - 1).abs().max() < 1e-3):
            raise ValueError("probabilities are non-negative and sum to 1 a row: apply softmax to logits first")
        splits = self._splits(torch.arange(self.seen, self.seen + len(p)) if numbers is None else numbers.cpu())
        self.n.index_add_(0, splits, torch.ones_like(splits, dtype=torch.float64))
        self.total.index_add_(0, splits, p)
        self.negentropy.index_add_(0, splits, torch.special.xlogy(p, p).sum(1))
        self.seen += len(p)
        return self

    def _splits(self, numbers: Tensor) -> Tensor:
        """Split of each sample, int64 (B,)."""
        blocks, inverse = (numbers // self.num_splits).unique(return_inverse=True)
        orders = [permutation(self.num_splits, self.seed, "inception score", b) for b in blocks.tolist()]
        return torch.stack(orders)[inverse, numbers % self.num_splits] if orders else numbers

    def merge(self, other: InceptionScore) -> InceptionScore:
        """Add the sums of other samples (of another worker, say), whose numbers must differ from these; ValueError for another protocol."""
        if (self.num_splits, self.seed, self.total.shape) != (other.num_splits, other.seed, other.total.shape):
            raise ValueError("only Inception Scores of the same classes, splits and seed can be merged")
        self.n, self.total, self.negentropy = self.n + other.n, self.total + other.total, self.negentropy + other.negentropy
        self.seen += other.seen
        return self

    @property
    def score(self) -> Estimate:
        """Mean and standard error over the splits, in [1, C]; error None for one split. ValueError if a split is empty.

        IS = exp(E_x KL(p(y|x) || p(y)))   with p(y) the split's own mean             (Salimans et al., 2016, section 4)

        Published values state the deviation over 10 splits; the error here is that, unbiased, divided by sqrt(10). Biased downwards
        by few samples (p(y) looks less even than it is), and only meaningful for the classes that the classifier knows.
        """
        if int(self.n.min()) < 1:
            raise ValueError(f"an Inception Score of {self.num_splits} splits needs as many samples, and there are {int(self.n.sum())}")
        p = self.total / self.n[:, None]
        scores = (self.negentropy / self.n - torch.special.xlogy(p, p).sum(1)).clamp(min=0).exp()
        error = float(scores.std()) / self.num_splits**0.5 if self.num_splits > 1 else None
        return Estimate(float(scores.mean()), error, self.num_splits)


def inception_score(probabilities: Tensor, num_splits: int = 10, seed: int = 0) -> Estimate:
    """`InceptionScore.score` of p(y|x) (N, C)."""
    if probabilities.ndim != 2:
        raise ValueError(f"expected probabilities (N, C), got {tuple(probabilities.shape)}")
    return InceptionScore(probabilities.shape[1], num_splits, seed).update(probabilities).score


class Modes:
    """Counts of predicted classes: how many modes are there, and how far is their balance from the reference's."""

    def __init__(self, num_classes: int) -> None:
        self.counts = torch.zeros(num_classes, dtype=torch.int64)

    def update(self, predicted: Tensor) -> Modes:
        """Add predicted classes int64 (B,) in 0..C-1 (ValueError)."""
        p = predicted.detach().cpu().flatten()
        if len(p) and not (int(p.min()) >= 0 and int(p.max()) < len(self.counts)):
            raise ValueError(f"predictions are {int(p.min())}..{int(p.max())}, and there are classes 0..{len(self.counts) - 1}")
        self.counts += torch.bincount(p.long(), minlength=len(self.counts))
        return self

    def merge(self, other: Modes) -> Modes:
        """Add the counts of other samples; ValueError for another number of classes."""
        if len(self.counts) != len(other.counts):
            raise ValueError(f"counts of {len(self.counts)} and {len(other.counts)} classes cannot be merged")
        self.counts = self.counts + other.counts
        return self

    def num_found(self, least: int = 1) -> int:
        """Number of classes with at least `least` samples: the "modes" of stacked MNIST (Metz et al., 2017; out of 1,000 there)."""
        return int((self.counts >= least).sum())

    def kl(self, reference: Modes) -> float:
        """KL(p || r) = sum_y p_y log(p_y / r_y) in nats, >= 0, of these shares p to the reference's r (Metz et al., 2017); inf where r_y = 0 < p_y.

        A missing class costs less than its share suggests: with C even classes and only K left, log(C / K). ValueError without samples on a side.
        """
        if len(self.counts) != len(reference.counts) or not int(self.counts.sum()) or not int(reference.counts.sum()):
            raise ValueError("a divergence needs samples of the same classes on both sides")
        p, r = (c.double() / c.sum() for c in (self.counts, reference.counts))
        return max(0.0, float((torch.special.xlogy(p, p) - torch.special.xlogy(p, r)).sum()))
