"""What is seen of a pipeline at work, evaluation by evaluation, and how it is stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

__all__ = ["Stopped", "Watch"]


class Stopped(Exception):
    """Somebody has asked the work to stop."""


class Watch:
    """Counts evaluations of the denoising network, and stops before the next one once `stop` was called. at: told the number so far.

    preview: told the images so far, uint8 (N, 3, H, W), every `every` steps.
    """

    def __init__(self, at: Callable[[int], None] = lambda done: None, preview: Callable[[Tensor], None] | None = None, every: int = 0) -> None:
        self.at, self.preview, self.every = at, preview, every
        self.evaluations, self.stopped = 0, False

    def stop(self) -> None:
        """No further evaluation is begun."""
        self.stopped = True

    @contextmanager
    def over(self, net: torch.nn.Module) -> Iterator[None]:
        """Inside, the network's calls are counted and can be stopped."""

        def before(module: torch.nn.Module, args: Any) -> None:
            if self.stopped:
                raise Stopped

        def after(module: torch.nn.Module, args: Any, out: Any) -> None:
            self.evaluations += 1
            self.at(self.evaluations)

        handles = [net.register_forward_pre_hook(before), net.register_forward_hook(after)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def callbacks(self, pipe: Any, known: Any) -> dict[str, Any]:
        """Arguments of the pipeline that show previews; none where there are no previews or it cannot."""
        if self.preview is None or not self.every:
            return {}
        show = self.preview

        def new(pipe: Any, step: int, time: Any, values: dict[str, Any]) -> dict[str, Any]:
            if (step + 1) % self.every == 0:
                show(decoded(pipe, values["latents"]))
            return {}

        def old(step: int, time: Any, latents: Tensor) -> None:
            show(decoded(pipe, latents))

        if "callback_on_step_end" in known:
            return {"callback_on_step_end": new}
        return {"callback": old, "callback_steps": self.every} if "callback" in known else {}


@torch.no_grad()
def decoded(pipe: Any, latents: Tensor) -> Tensor:
    """Latents on the way as uint8 images (N, 3, H, W), by the pipeline's own VAE."""
    vae = pipe.vae
    if latents.ndim == 3 and hasattr(pipe, "_unpack_latents"):
        height, width = pipe._preview_size
        latents = pipe._unpack_latents(latents, height, width, pipe.vae_scale_factor)
    z = latents.to(vae.dtype) / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0)
    return ((vae.decode(z, return_dict=False)[0].float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).cpu()
