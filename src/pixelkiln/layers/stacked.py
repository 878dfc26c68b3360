"""Several codes a position: residual quantization (Lee et al. 2022, arXiv 2203.01941) and groups of channels (product quantization, Jegou et al. 2011).

Residual: r_1 = z, q_l = Q_l(r_l), r_{l+1} = r_l - sg(q_l), and the code is sum_l q_l (eq. 2 to 4): each level says what the coarser ones left.
The loss is the mean of the levels' own; for VQ that is the mean of |z - sg(q_1 + ... + q_l)|^2 over l, eq. 7. The gradient is the mean of the
levels' gradients: a plain sum of L straight-through levels would hand the decoder's gradient to the encoder L times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from .quantize import Quantized, Quantizer

__all__ = ["Grouped", "Residual"]


class _Many(Quantizer):
    """Quantizers of one vocabulary, whose codes stand behind each other along the levels."""

    def __init__(self, parts: Sequence[Quantizer], dim: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.dim, self.vocabulary, self.levels = dim, parts[0].vocabulary, sum(part.levels for part in parts)

    def _split(self, indices: Tensor) -> list[Tensor]:
        """Indices (B, L, h, w) of each part, looked up: (B, D or D / G, h, w) each."""
        each = indices.split([part.levels for part in self.parts], dim=1)
        parts: Any = self.parts
        return [part.lookup(index) for part, index in zip(parts, each)]

    def _found(self, z: Tensor, found: Sequence[Quantized]) -> Quantized:
        loss = torch.stack([f.loss for f in found]).mean()
        return Quantized(z, torch.cat([f.indices for f in found], dim=1), loss, _mean([f.terms for f in found]))


def _mean(terms: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([t[name] for t in terms]).mean() for name in terms[0]}


@final
class Residual(_Many):
    """What one quantizer leaves goes to the next."""

    def __init__(self, parts: Sequence[Quantizer]) -> None:
        super().__init__(parts, parts[0].dim)

    def quantize(self, z: Tensor) -> Quantized:
        rest = z
        found: list[Quantized] = []
        for part in self.parts:
            found.append(part(rest))
            rest = rest - found[-1].z.detach()
        total = torch.stack([f.z for f in found]).sum(0)
        mean = total / len(found)  # its gradient is the mean of the levels'
        return self._found(mean + (total - mean).detach(), found)

    def lookup(self, indices: Tensor) -> Tensor:
        return torch.stack(self._split(indices)).sum(0)


@final
class Grouped(_Many):
    """Each of G quantizers has D / G channels of its own."""

    def __init__(self, parts: Sequence[Quantizer]) -> None:
        super().__init__(parts, sum(part.dim for part in parts))

    def quantize(self, z: Tensor) -> Quantized:
        each = z.split([part.dim for part in self.parts], dim=1)
        found = [part(x) for part, x in zip(self.parts, each)]
        return self._found(torch.cat([f.z for f in found], dim=1), found)

    def lookup(self, indices: Tensor) -> Tensor:
        return torch.cat(self._split(indices), dim=1)
