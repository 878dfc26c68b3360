"""Moving averages of weights in fp32: by half-life in images, or by a power of the time; buffers are copied, never averaged."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from ..core.recipe import EmaConfig
from ..core.types import UserError
from .posthoc import exponent

__all__ = ["Average", "decay"]


def decay(config: EmaConfig, batch: int, images: int) -> float:
    """beta = 0.5^(batch / min(half_life, ramp * images)) (EDM, Karras et al. 2022, training loop): independent of the batch size."""
    return 0.5 ** (batch / max(min(config.half_life, config.ramp * images), 1e-8))


class Average:
    """The averaged copies of some nets' parameters. The first, `mean`, is what sampling uses; kind "power" has one for each of its stds."""

    def __init__(self, method: nn.Module, nets: tuple[str, ...], config: EmaConfig) -> None:
        self.config = config
        self.exponents = [exponent(std) for std in config.stds] if config.kind == "power" else []
        if config.kind == "power" and len(set(config.stds)) < max(len(config.stds), 1):
            raise UserError(f"--train.ema.stds {','.join(map(str, config.stds))}: give at least one, each once")
        self.live = {f"{net}.{name}": p for net in nets for name, p in getattr(method, net).named_parameters()}
        self.means = [{name: p.detach().float().clone() for name, p in self.live.items()} for _ in self.exponents or [0]]
        self.mean = self.means[0]
        self.now = [p.detach() for p in self.live.values()]  # the same memory

    @torch.no_grad()
    def update(self, batch: int, images: int) -> None:
        """mean <- beta mean + (1 - beta) live, after a step; images = how many were seen, this batch included."""
        if self.exponents:  # beta = (1 - batch / images)^(g + 1)
            away = [-math.expm1((g + 1) * math.log1p(-batch / images)) if images > batch else 1.0 for g in self.exponents]
        else:
            away = [1 - decay(self.config, batch, images)]
        now = [p.float() for p in self.now]
        for mean, weight in zip(self.means, away, strict=True):
            torch._foreach_lerp_(list(mean.values()), now, weight)

    def due(self, step: int, total: int) -> bool:
        """Whether a snapshot belongs after `step` of `total` steps: `snapshots` of them, evenly, the last at the end."""
        num = self.config.snapshots if self.exponents else 0
        return step * num // total > (step - 1) * num // total

    def snapshot(self) -> dict[str, dict[str, Tensor]]:
        """All averages by their std, fp32: from a file of half the size but 2^-11 of rounding, lengths below the shortest come out 40 times worse."""
        return {f"std-{std}": mean for std, mean in zip(self.config.stds, self.means, strict=True)}

    def groups(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint holds: the average that samples, and the others."""
        others = zip(self.config.stds[1:], self.means[1:], strict=False)
        return {"average": self.mean, "averages": {f"{std}/{name}": value for std, mean in others for name, value in mean.items()}}

    def restore(self, read: Callable[[str], Mapping[str, Tensor]]) -> None:
        """Take back what `groups` gave."""
        for group, tensors in self.groups().items():
            saved = read(group) if tensors else {}
            for name, value in tensors.items():
                value.copy_(saved[name])

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the nets hold the averaged weights; afterwards, exactly those that they had."""
        kept = {name: p.detach().clone() for name, p in self.live.items()}
        try:
            self._put(self.mean)
            yield
        finally:
            self._put(kept)

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, p in self.live.items():
            p.copy_(values[name])
