"""DINOv2 and CLIP through transformers (extra `pretrained`): a local folder or a name on the Hub, safetensors only, no code from it.

Images are prepared as the folder's preprocessor_config.json says, as the library's own Pillow-based processors do: 8-bit bicubic with
antialiasing, center crop, x / 255, normalized.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.files import read_json
from ..core.types import UserError
from ..data.prepare import resize
from .extractor import Named

__all__ = ["MODELS", "Preparation", "pretrained"]

MODELS = {"dinov2": "facebook/dinov2-large", "clip": "openai/clip-vit-large-patch14-336"}  # default names on the Hub
EXTRA = "pip install 'pixelkiln[pretrained]'"


@dataclass(frozen=True)
class Preparation:
    """short: the shorter side after resizing (None: both sides to `size`); crop: of the center, (height, width) or None; mean, std a channel."""

    short: int | None
    size: tuple[int, int] | None
    crop: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def read(cls, config: Mapping[str, Any], where: str) -> Preparation:
        """From preprocessor_config.json. Errors: `UserError` for what is not done here."""
        if config.get("resample", 3) != 3 or abs(config.get("rescale_factor", 1 / 255) - 1 / 255) > 1e-9 or not config.get("do_normalize", True):
            raise UserError(f"{where}: its images are not prepared by bicubic resizing, x / 255 and normalizing, which is all that is done here")
        size = config.get("size") or {}
        size = {"shortest_edge": size} if isinstance(size, int) else size
        both = (int(size["height"]), int(size["width"])) if "height" in size else None
        crop = config.get("crop_size") if config.get("do_center_crop", True) else None
        crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
        short = int(size["shortest_edge"]) if "shortest_edge" in size else None
        if not config.get("do_resize", True):
            short = both = None
        window = (int(crop["height"]), int(crop["width"])) if crop else None
        return cls(short, both, window, tuple(config["image_mean"]), tuple(config["image_std"]))

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 (N, 3, H, W) -> float (N, 3, H', W'), normalized."""
        height, width = images.shape[2:]
        if self.short is not None:
            scale = self.short / min(height, width)
            images = resize(images, *(self.short if n == min(height, width) else int(n * scale) for n in (height, width)))
        elif self.size is not None:
            images = resize(images, *self.size)
        if self.crop is not None:
            images = _center(images, *self.crop)
        mean, std = (torch.tensor(v)[:, None, None] for v in (self.mean, self.std))
        return (images.float() / 255 - mean) / std

    def __str__(self) -> str:
        size = f"shorter side to {self.short}" if self.short is not None else f"to {self.size[0]}x{self.size[1]}" if self.size else "not resized"
        crop = f", center {self.crop[0]}x{self.crop[1]}" if self.crop else ""
        return f"{size}, antialiased bicubic, 8 bits{crop}, x / 255, normalized"


def _center(images: Tensor, height: int, width: int) -> Tensor:
    """The middle of the images; black around those that are smaller."""
    h, w = images.shape[2:]
    top, left = max(0, height - h), max(0, width - w)
    images = F.pad(images, (left // 2, left - left // 2, top // 2, top - top // 2))
    h, w = images.shape[2:]
    i, j = (h - height) // 2, (w - width) // 2
    return images[:, :, i : i + height, j : j + width]


def pretrained(kind: str, where: str | None = None) -> Named:
    """The extractor "dinov2" (the class token after the last norm, as Stein et al., 2023, arXiv 2306.04675) or "clip" (image embeddings of length 1,
    as CMMD: Jayasumana et al., 2024, arXiv 2401.09603). Errors: `UserError` without the library, or for a folder that does not hold such a model."""
    try:
        from transformers import CLIPVisionModelWithProjection, Dinov2Model
    except ImportError:
        raise UserError(f"--extractor {kind} needs the library transformers: {EXTRA}") from None
    name = where or MODELS[kind]
    model = Dinov2Model if kind == "dinov2" else CLIPVisionModelWithProjection
    try:
        net = model.from_pretrained(name, use_safetensors=True, trust_remote_code=False, dtype=torch.float32).eval().requires_grad_(False)
        config = read_json(_config(name))
    except (OSError, ValueError) as e:
        first = str(e).strip().splitlines()[0][:160]
        raise UserError(f"{name}: not a {kind} model that can be read ({first}): give a folder with its safetensors, or a name on the Hub") from None
    prepare = Preparation.read(config, name)
    sha = hashlib.sha256(repr(prepare).encode())
    for key, tensor in sorted(net.state_dict().items()):
        sha.update(key.encode() + tensor.contiguous().numpy().tobytes())

    def embed(images: Tensor) -> Tensor:
        out = net(pixel_values=prepare(images))
        return out.last_hidden_state[:, 0] if kind == "dinov2" else F.normalize(out.image_embeds, dim=1)

    dim = net.config.hidden_size if kind == "dinov2" else net.config.projection_dim
    quoted = {"mmd": "cmmd"} if kind == "clip" else {}
    return Named(f"{kind}-{Path(name).name}", sha.hexdigest()[:8], f"-{kind}", int(dim), str(prepare), embed, quoted)


def _config(name: str) -> Path:
    """preprocessor_config.json of a folder or of a model on the Hub."""
    if Path(name).is_dir():
        return Path(name) / "preprocessor_config.json"
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(name, "preprocessor_config.json"))
