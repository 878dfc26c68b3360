"""Any network of diffusion from its configuration: F(x (B, C, H, W), t (B,), cond) -> (B, C_out, H, W)."""

from __future__ import annotations

from torch import nn

from ..core.types import ImageShape, UserError
from .dit import DiT, DiTConfig
from .mlp import MLPConfig, MLPDenoiser
from .mpunet import MPUNet, MPUNetConfig
from .unet import UNet, UNetConfig

__all__ = ["NetConfig", "backbone"]

NetConfig = UNetConfig | MPUNetConfig | DiTConfig | MLPConfig


def backbone(shape: ImageShape, dim: int, config: NetConfig, *, map_channels: int = 0, out_channels: int | None = None) -> nn.Module:
    """The network for images of this shape, whose condition has a vector of `dim` and a map of `map_channels`; out_channels: by default
    the image's (2 C: with a learned variance). Raises `UserError` for sides that it does not divide."""
    c, h, w = shape
    if h % config.multiple or w % config.multiple:
        raise UserError(f"images of {h}x{w} do not divide by {config.multiple}; give --data.resolution a multiple of it")
    into, out = c + map_channels, out_channels or c
    if isinstance(config, MLPConfig):
        return MLPDenoiser(ImageShape(into, h, w), dim, config, out)
    if isinstance(config, DiTConfig):
        return DiT(into, dim, config, out)
    if isinstance(config, MPUNetConfig):
        return MPUNet(into, dim, config, out)
    return UNet(into, dim, config, out)
