"""BatchNorm's statistics for sampling, measured for the very weights that draw."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["has_statistics", "with_standing_stats"]


def has_statistics(net: nn.Module) -> bool:
    """Whether what it draws depends on running statistics."""
    return any(isinstance(m, _BatchNorm) and m.track_running_stats for m in net.modules())


def with_standing_stats(net: nn.Module, args: tuple[Any, ...], reference: tuple[Any, ...]) -> Tensor:
    """net(*args) with every BatchNorm's statistics measured in one pass over the reference arguments: "standing statistics".

    They belong to the very weights that draw (running ones lag behind, and were gathered by other weights than averaged ones), and row i depends
    on row i of the arguments alone. Other buffers (those of spectral norms) start from what they are, and take the step that a forward pass in
    training takes. The net, its own buffers included, is left as it was; gradients flow to args.
    (Brock et al. 2019, arXiv 1809.11096, appendix B, have them for the same reason.)
    """
    norms = {name: m for name, m in net.named_modules() if isinstance(m, _BatchNorm)}
    buffers = {name: b.clone() for name, b in net.named_buffers()}
    shares = {}
    for name, m in norms.items():
        buffers[f"{name}.num_batches_tracked"].zero_()
        for kind in ("running_mean", "running_var"):
            buffers[f"{name}.{kind}"].zero_()
            shares[f"{name}.{kind}"] = m.momentum or 1.0  # None: a plain mean over the batches
    training = net.training
    try:
        with torch.no_grad():
            functional_call(net.train(), buffers, reference)  # from zero, one call leaves momentum * statistic
            for name, share in shares.items():
                buffers[name] /= share
        out: Tensor = functional_call(net.eval(), buffers, args)
        return out
    finally:
        net.train(training)
