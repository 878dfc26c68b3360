"""Exponential moving average of weights in fp32, by half-life in images; buffers are copied, never averaged."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from ..core.recipe import EmaConfig

__all__ = ["Average", "decay"]


def decay(config: EmaConfig, batch: int, images: int) -> float:
    """beta = 0.5^(batch / min(half_life, ramp * images)) (EDM, Karras et al. 2022, training loop): independent of the batch size."""
    return 0.5 ** (batch / max(min(config.half_life, config.ramp * images), 1e-8))


class Average:
    """The averaged copy of some nets' parameters."""

    def __init__(self, method: nn.Module, nets: tuple[str, ...], config: EmaConfig) -> None:
        self.config = config
        self.live = {f"{net}.{name}": p for net in nets for name, p in getattr(method, net).named_parameters()}
        self.mean = {name: p.detach().float().clone() for name, p in self.live.items()}
        self.now = [p.detach() for p in self.live.values()]  # the same memory

    @torch.no_grad()
    def update(self, batch: int, images: int) -> None:
        """mean <- beta mean + (1 - beta) live, after a step; images = how many were seen, this batch included."""
        weight = 1 - decay(self.config, batch, images)
        torch._foreach_lerp_(list(self.mean.values()), [p.float() for p in self.now], weight)

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

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take a saved average."""
        for name, value in tensors.items():
            self.mean[name].copy_(value)
