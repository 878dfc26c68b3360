"""The two networks of an adversarial model from one configuration."""

from __future__ import annotations

from torch import nn

from ..core.types import DataInfo
from .dcgan import DCGANNets, dcgan_nets
from .mlpgan import MLPNets, mlp_nets
from .r3gan import R3Nets, r3_nets
from .resgan import ResNets, res_nets

__all__ = ["Players", "players"]

Players = DCGANNets | MLPNets | ResNets | R3Nets


def players(info: DataInfo, latent: int, config: Players) -> tuple[nn.Module, nn.Module]:
    """Generator (z (n, d), label) -> x (n, C, H, W) in [-1, 1], with the number of its `classes` (0: it takes no label), and discriminator
    (x, label) -> logits (n,), features (n, F), for images of this shape and these classes."""
    classes = 0 if config.condition == "none" else len(info.classes)
    if isinstance(config, MLPNets):
        return mlp_nets(info.shape, latent, classes, config)
    if isinstance(config, ResNets):
        return res_nets(info.shape, latent, classes, config)
    if isinstance(config, R3Nets):
        return r3_nets(info.shape, latent, classes, config)
    return dcgan_nets(info.shape, latent, classes, config)
