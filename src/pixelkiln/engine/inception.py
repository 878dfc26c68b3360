"""The network and weights that "FID", "KID" and "Inception Score" are names of, and the exact preparation of images for it.

Weights: the published conversion of TensorFlow's graph, told by its SHA-256, which is checked before a byte of it is read. Any other
weights give scores under other names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.download import download
from ..core.files import cache_dir, read_tensors
from ..core.types import UserError
from ..nets.inception import OUTPUTS, SIDE, Inception
from .extractor import Named
from .kept import keep, recall, writable

__all__ = ["PINNED", "URL", "clean_resize", "inception", "tf_resize"]

PINNED = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
URL = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
Say = Callable[[str], None]


def clean_resize(x: Tensor, side: int = SIDE) -> Tensor:
    """float (B, C, H, W) -> (B, C, side, side): Pillow's bicubic with antialiasing on float channels, not rounded; clipped to 0..255.

    The protocol of Parmar, Zhang and Zhu, 2022 (arXiv 2104.11222), "clean"; also where the size fits already.
    """
    if x.shape[2:] == (side, side):
        return x
    found = F.interpolate(x.double(), (side, side), mode="bicubic", align_corners=False, antialias=True)  # Pillow's weights are float64 as well
    return found.clamp(0, 255).to(x.dtype)


def tf_resize(x: Tensor, side: int = SIDE) -> Tensor:
    """float (B, C, H, W) -> (B, C, side, side): TensorFlow 1's bilinear, output i from input i H / side (no half-pixel centers), no antialiasing."""
    for dim in (2, 3):
        n = x.shape[dim]
        at = torch.arange(side, dtype=torch.float32) * (torch.tensor(n, dtype=torch.float32) / side)
        low = at.floor().long()
        w = (at - low).view((-1, 1) if dim == 2 else (-1,))
        a, b = x.index_select(dim, low), x.index_select(dim, (low + 1).clamp(max=n - 1))
        x = a + (b - a) * w
    return x


def inception(weights: Path | None = None, legacy: bool = False, say: Say = lambda _: None) -> Named:
    """The extractor of Heusel et al., 2017: pool3 of Inception, 2,048 features, and its predictions.

    weights: the published .pth (checked, then kept as safetensors), or safetensors; None downloads the former. legacy: TensorFlow's
    bilinear resizing, as in the first programs, instead of `clean_resize`. Errors: `UserError` for other weights.
    """
    tensors, published = _weights(weights, say)
    net = Inception()
    try:
        net.load_state_dict(tensors)
    except RuntimeError as e:
        raise UserError(f"{weights}: not the weights of this network ({str(e).splitlines()[1].strip()[:120]}): give the published file") from None
    net.eval().requires_grad_(False)
    resize = tf_resize if legacy else clean_resize
    words = "TensorFlow's bilinear without antialiasing" if legacy else "antialiased bicubic in float, not rounded"
    digest = PINNED[:8] if published else _digest(tensors)

    def prepare(x: Tensor) -> Tensor:
        return (resize(x.float()) - 128) / 128

    return Named(
        name="inception-v3",
        weights=digest,
        suffix="-inception",
        dim=Inception.dim,
        prepared=f"to {SIDE}x{SIDE}x3, {words}, then (x - 128) / 128",
        embed=lambda x: net(prepare(x)),
        quoted={"fd": "FID", "kd": "KID", "cs": "IS"} if published else {},
        num_classes=OUTPUTS,
        classify=net.logits,
        maps=lambda x: net.stages(prepare((x.expand(-1, 3, -1, -1) + 1) * 127.5)),
    )


def _digest(tensors: dict[str, Tensor]) -> str:
    """Digest of named tensors."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        sha.update(name.encode() + tensors[name].contiguous().numpy().tobytes())
    return sha.hexdigest()[:8]


def _weights(weights: Path | None, say: Say) -> tuple[dict[str, Tensor], bool]:
    """The tensors, and whether they are the published ones."""
    if weights is not None and weights.suffix == ".safetensors":
        return read_tensors(weights), False
    kept = cache_dir() / "weights" / f"inception-{PINNED[:16]}.safetensors"
    known = recall(kept)
    if known is not None and weights is None:
        return known, True
    writable(kept.parent)
    if weights is None:
        say(f"downloading {URL}")
        weights = download(URL, kept.with_suffix(".pth"), PINNED)
    elif not weights.is_file():
        raise UserError(f"{weights}: no such file")
    data = weights.read_bytes()
    if hashlib.sha256(data).hexdigest() != PINNED:
        raise UserError(f"{weights} is not the published file (SHA-256 {PINNED[:16]}…), and other pickles are not read: give that file, or .safetensors")
    tensors = torch.load(BytesIO(data), map_location="cpu", weights_only=True)  # the bytes whose hash is known
    keep(kept, tensors, {"source": URL, "source sha256": PINNED})
    return dict(tensors), True
