"""One Brownian path a seed: solvers with different numbers of steps then see the same noise, and come to the same image.

The reverse process x_r = (r / s)^2 x_s + (1 - r^2 / s^2) D + r sqrt(1 - r^2 / s^2) z, divided by r^2, is a Brownian motion with drift D in the
clock tau = s^-2: x_r / r^2 = x_s / s^2 + (r^-2 - s^-2) D + (B(r^-2) - B(s^-2)). So this is the clock in which noise of ancestral and SDE
solvers adds up exactly: where D stands still, any list of levels gives the same result (Montanari 2023, arXiv 2305.10690, calls it
stochastic localization).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from ..core.rng import noise, streams

__all__ = ["Brownian"]

LOG_MAX = 16 * math.log(2)  # levels in (2^-16, 2^16)
DEPTH = 20  # 2^20 leaves, 0.002 % of s wide


@final
class Brownian:
    """Noise for a solver (`contract.NoisePath`), (len(seeds), *shape) float32; row i depends on seeds[i] alone.

    between(s, r) = (B(r^-2) - B(s^-2)) / sqrt(r^-2 - s^-2) of a Brownian motion B that is a function of seed and time: a virtual tree
    over log s (Li et al. 2020, arXiv 2001.01328, section 4, without their tolerance). From the root, 2^-16 < s < 2^16, an interval's
    middle is drawn given its ends (Brownian bridge) with noise keyed by the place, 20 times; within the leaf the bridge once more.
    Increments have exactly their law, and are independent, unless two levels lie in one leaf, closer than 0.002 %.
    Called without levels it gives new noise each time, for what is not part of the path.
    """

    def __init__(self, seeds: Sequence[int], shape: Sequence[int], device: torch.device | str = "cpu", name: str = "brownian") -> None:
        self._seeds, self._shape, self._device, self._name = list(seeds), tuple(shape), device, name
        self._fresh = streams(self._seeds, name)
        self._last: tuple[float, Tensor] | None = None  # level and B there: the end of a step is the start of the next

    def __call__(self) -> Tensor:
        """Standard normal noise (B, ...), new at each call."""
        return noise(self._fresh, self._shape, self._device)

    def between(self, s: float, r: float) -> Tensor:
        """Standard normal noise (B, ...) of the way from s down to r: a function of the seeds, s and r. ValueError unless 2^16 > s > r > 2^-16."""
        if not math.exp(-LOG_MAX) < r < s < math.exp(LOG_MAX):
            raise ValueError(f"levels {s} and {r} must fall, and lie in (2^-16, 2^16)")
        start = self._last[1] if self._last is not None and self._last[0] == s else self._at(s)
        end = self._at(r)
        self._last = (r, end)
        return ((end - start) / math.sqrt(r**-2 - s**-2)).float().to(self._device)

    def _at(self, s: float) -> Tensor:
        """B(s^-2), (B, ...) float64 on the CPU."""
        u, tau = -math.log(s), s**-2
        a, b = -LOG_MAX, LOG_MAX
        low = math.exp(2 * a) ** 0.5 * self._noise("low")
        high = low + math.sqrt(math.exp(2 * b) - math.exp(2 * a)) * self._noise("high")
        node = 1
        for _ in range(DEPTH):
            middle = (a + b) / 2
            value = self._bridge(math.exp(2 * a), low, math.exp(2 * b), high, math.exp(2 * middle), node)
            if u < middle:
                b, high, node = middle, value, 2 * node
            else:
                a, low, node = middle, value, 2 * node + 1
        return self._bridge(math.exp(2 * a), low, math.exp(2 * b), high, tau, node)

    def _bridge(self, a: float, low: Tensor, b: float, high: Tensor, t: float, node: int) -> Tensor:
        """B(t) given B(a) and B(b): mean on the line, variance (b - t) (t - a) / (b - a)."""
        share = (t - a) / (b - a)
        return low + share * (high - low) + math.sqrt(max(share * (b - t), 0.0)) * self._noise(str(node))

    def _noise(self, place: str) -> Tensor:
        return noise(streams(self._seeds, f"{self._name} {place}"), self._shape).double()
