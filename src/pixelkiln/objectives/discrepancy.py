"""How far two sets of vectors are from one distribution, by a kernel, as a loss. n and m vectors of J numbers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

__all__ = ["SCALES", "inverse_multiquadratic", "mmd2"]

SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # of the kernel's width, as in the authors' program


def inverse_multiquadratic(x: Tensor, y: Tensor, scales: Sequence[float] = SCALES) -> Tensor:
    """k(x, y) = sum_s C_s / (C_s + |x - y|^2), C_s = 2 J s, (n, m), for x (n, J) and y (m, J).

    2 J is the mean of |x - y|^2 for two draws from N(0, I). Its tails are heavy: codes far from the prior still have a gradient. Differences are
    taken one by one, as the squared lengths of far vectors would cancel. (Tolstikhin et al. 2018, arXiv 1711.01558, section 4, with one C.)
    """
    square = (x[:, None] - y[None]).square().sum(2)  # (n, m)
    sizes = [2 * x.shape[1] * s for s in scales]
    return sum((c / (c + square) for c in sizes[1:]), sizes[0] / (sizes[0] + square))


def mmd2(x: Tensor, y: Tensor, scales: Sequence[float] = SCALES) -> Tensor:
    """Squared maximum mean discrepancy of x (n, J) and y (m, J) under this kernel, a scalar that may be negative; n, m >= 2 (assertion).

    sum_{i != j} k(x_i, x_j) / n(n-1) + sum_{i != j} k(y_i, y_j) / m(m-1) - 2 sum_ij k(x_i, y_j) / nm, unbiased: with the diagonals it would be
    above 0 for one and the same distribution, and grow where the codes of a batch fall together. (Gretton et al. 2012, eq. 3.)
    """
    n, m = len(x), len(y)
    assert min(n, m) >= 2, "a U-statistic needs pairs"
    xx, yy = (k.sum() - k.diagonal().sum() for k in (inverse_multiquadratic(x, x, scales), inverse_multiquadratic(y, y, scales)))
    return xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2 * inverse_multiquadratic(x, y, scales).mean()
