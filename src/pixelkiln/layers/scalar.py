"""Codes without a codebook, whose numbers are read off the signs or the rounded values of a few channels: FSQ and LFQ.

FSQ (Mentzer et al. 2023, arXiv 2309.15505): channel i is bounded and rounded to one of L_i values, so that K = prod L_i and there is nothing to
learn and nothing to collapse,

    f(y) = tanh(SPREAD y) (L - 1)(1 + eps) / 2 - offset,   offset = 1/2 for even L, else 0
    q = round(f(y)), straight through,  divided by floor(L / 2) to lie in [-1, 1]                                  section 3.1 and appendix A

(the paper shifts y so that f(0) = 0; here y has mean 0, and the border of the two middle values of an even L lies there).

LFQ (Yu et al. 2023, arXiv 2310.05737, section 3.2): q = sign(z), K = 2^d, and an entropy term that makes every vector sure of its code and all
codes as frequent,

    L_entropy = E[H(p(. | z))] - gamma H(E[p(. | z)]),   p(c | z) = softmax_c(-|z - c|^2 / tau)                    eq. 5

For codes of signs, p is a product over channels of p_i(+) = sigmoid(4 z_i / tau), so that the first entropy is a sum over channels. The mean of
the product over n vectors needs no (n, K) table either: split into two halves of channels with tables A (n, K_a) and B (n, K_b), it is A^T B / n.

Both read z (n, D) by a linear map to their few channels, whitened, and hand it back by another. Uncorrelated channels of equal variance take nearly all
codes; without that the encoder settles on a few (docs/LOG.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .quantize import Quantized, Quantizer, Usage, maps, rows, straight_through
from .whitened import Whitened

__all__ = ["FSQ", "LFQ", "mean_entropies"]

EPS = 1e-3  # how far beyond the outermost value the bound reaches
SPREAD = 1.2  # of N(0, 1) the four values of L = 4 are alike frequent, 1.19 exactly; five have 0.17 to 0.21, eight 0.10 to 0.15


@final
class FSQ(Quantizer):
    """levels_of: number of values of each channel, L_i >= 2. No loss. Numbers: sum_i (q_i + floor(L_i / 2)) prod_{j < i} L_j."""

    bound: Tensor
    offset: Tensor
    middle: Tensor
    basis: Tensor

    def __init__(self, dim: int, levels_of: Sequence[int]) -> None:
        super().__init__()
        self.dim, self.levels_of, self.vocabulary = dim, tuple(levels_of), math.prod(levels_of)
        wide = torch.tensor(levels_of, dtype=torch.float64)
        tables = {"bound": (wide - 1) * (1 + EPS) / 2, "offset": (wide % 2 == 0).double() / 2, "middle": wide.div(2, rounding_mode="floor")}
        for name, table in tables.items():
            self.register_buffer(name, table.float(), persistent=False)
        self.register_buffer("basis", torch.tensor([math.prod(levels_of[:i]) for i in range(len(wide))]), persistent=False)
        self.enter, self.even, self.leave = nn.Linear(dim, len(wide)), Whitened(len(wide)), nn.Linear(len(wide), dim)
        self.usage = Usage(self.vocabulary)

    def bounded(self, y: Tensor) -> Tensor:
        """f(y), (..., d) -> (..., d)."""
        return torch.tanh(SPREAD * y) * self.bound - self.offset

    def numbers(self, q: Tensor) -> Tensor:
        """Rounded values (..., d) -> numbers (...,)."""
        return ((q + self.middle).round().long() * self.basis).sum(-1)

    def values(self, index: Tensor) -> Tensor:
        """Numbers (...,) -> rounded values (..., d): the implied codebook."""
        wide = torch.tensor(self.levels_of, device=index.device)
        return (index[..., None] // self.basis % wide).float() - self.middle

    def quantize(self, z: Tensor) -> Quantized:
        bounded = self.bounded(self.even(self.enter(rows(z))))  # (n, d)
        q = bounded.detach().round()
        index = self.numbers(q)
        if self.moving:
            self.usage.update(index)
        out = self.leave(straight_through(bounded, q) / self.middle)
        return Quantized(maps(out, z), maps(index[:, None], z), z.new_zeros(()), self.usage.terms())

    def lookup(self, indices: Tensor) -> Tensor:
        return self.leave(self.values(indices[:, 0]) / self.middle).permute(0, 3, 1, 2)


def mean_entropies(z: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """E[H(p(. | z))] and H(E[p(. | z)]) in nats, scalars, over the rows of z (n, d), p over all 2^d vectors of signs."""
    logit = 4 * z / tau  # (n, d): log p_i(+) / p_i(-)
    plus, minus = F.logsigmoid(logit), F.logsigmoid(-logit)
    each = -(plus.exp() * plus + minus.exp() * minus).sum(1).mean()
    first, last = (_table(part, F.logsigmoid(-l)) for part, l in zip(plus.tensor_split(2, 1), logit.tensor_split(2, 1)))
    joint = first.t() @ last / len(z)  # (2^d_a, 2^d_b)
    return each, -torch.xlogy(joint, joint.clamp_min(1e-30)).sum()


def _table(plus: Tensor, minus: Tensor) -> Tensor:
    """Probabilities of all sign vectors of d channels, (n, 2^d), from log p_i(+) and log p_i(-), (n, d)."""
    table = plus.new_zeros(len(plus), 1)
    for i in range(plus.shape[1]):
        table = torch.cat([table + minus[:, i : i + 1], table + plus[:, i : i + 1]], dim=1)
    return table.exp()


@final
class LFQ(Quantizer):
    """bits: channels d. Numbers: bit i is the sign of channel i. L = entropy (E[H] - gamma H(E)) + beta |z - sg(q)|^2, beta = commitment."""

    def __init__(self, dim: int, bits: int, *, entropy: float = 0.1, gamma: float = 1.0, tau: float = 1.0, commitment: float = 0.25) -> None:
        super().__init__()
        self.dim, self.bits, self.vocabulary = dim, bits, 2**bits
        self.entropy, self.gamma, self.tau, self.commitment = entropy, gamma, tau, commitment
        self.enter, self.even, self.leave = nn.Linear(dim, bits), Whitened(bits), nn.Linear(bits, dim)
        self.usage = Usage(self.vocabulary)

    def quantize(self, z: Tensor) -> Quantized:
        flat = self.even(self.enter(rows(z)))  # (n, d)
        bits = flat.detach() > 0
        q = torch.where(bits, 1.0, -1.0)
        index = (bits.long() << torch.arange(self.bits, device=z.device)).sum(1)
        if self.moving:
            self.usage.update(index)
        each, joint = mean_entropies(flat, self.tau)
        loss = self.entropy * (each - self.gamma * joint) + self.commitment * F.mse_loss(flat, q)
        terms = {"code_entropy": each.detach(), "mean_code_entropy": joint.detach(), **self.usage.terms()}
        return Quantized(maps(self.leave(straight_through(flat, q)), z), maps(index[:, None], z), loss, terms)

    def lookup(self, indices: Tensor) -> Tensor:
        bits = indices[:, 0, ..., None] >> torch.arange(self.bits, device=indices.device) & 1
        return self.leave(2.0 * bits - 1).permute(0, 3, 1, 2)
