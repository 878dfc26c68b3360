"""Any network of diffusion from its configuration: F(x (B, C, H, W), t (B,), cond) -> (B, C_out, H, W)."""

from __future__ import annotations

from typing import Protocol

from torch import nn

from ..core.types import DataInfo, ImageShape, UserError
from .conditioning import Conditioner
from .dit import DiT, DiTConfig
from .mlp import MLPConfig, MLPDenoiser
from .mpunet import MPUNet, MPUNetConfig
from .unet import UNet, UNetConfig

__all__ = ["Conditional", "NetConfig", "backbone", "conditional"]

NetConfig = UNetConfig | MPUNetConfig | DiTConfig | MLPConfig


class Conditional(Protocol):
    """What the configurations of conditional diffusion models have in common."""

    @property
    def net(self) -> NetConfig: ...
    @property
    def dim(self) -> int: ...  # of the vector that carries time and condition
    @property
    def drop(self) -> float: ...  # share of samples that lose their condition
    @property
    def captions(self) -> int: ...  # words of a caption that are read, in place of the label; 0: none


def conditional(info: DataInfo, config: Conditional, *, map_channels: int = 0, out_channels: int | None = None) -> tuple[Conditioner, nn.Module]:
    """The module that turns conditions into tensors, and the network that takes them; errors as `backbone`."""
    classes = 0 if config.captions else len(info.classes)
    condition = Conditioner(classes, config.dim, config.drop, words=config.captions)
    words = config.captions > 0
    return condition, backbone(info.shape, config.dim, config.net, map_channels=map_channels, out_channels=out_channels, words=words)


def backbone(shape: ImageShape, dim: int, config: NetConfig, *, map_channels: int = 0, out_channels: int | None = None, words: bool = False) -> nn.Module:
    """The network for images of this shape, whose condition has a vector of `dim`, a map of `map_channels` and words of `dim`; out_channels: by
    default the image's (2 C: with a learned variance). Raises `UserError` for sides that it does not divide. A perceptron has no attention for
    words: it takes the caption's vector."""
    c, h, w = shape
    if h % config.multiple or w % config.multiple:
        raise UserError(f"images of {h}x{w} do not divide by {config.multiple}; give --data.resolution a multiple of it")
    into, out = c + map_channels, out_channels or c
    if isinstance(config, MLPConfig):
        return MLPDenoiser(ImageShape(into, h, w), dim, config, out)
    if isinstance(config, DiTConfig):
        return DiT(into, dim, config, out, words)
    if isinstance(config, MPUNetConfig):
        return MPUNet(into, dim, config, out, words)
    return UNet(into, dim, config, out, words)
