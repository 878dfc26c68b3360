"""Scores of images beside each other, reconstructions or edits and what they were made from, and of paths through a latent space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor

from ..core.images import to_uint8
from ..core.protocols import Codec, Latent
from ..core.types import UserError
from ..metrics import Moments, Result, ms_ssim, path_length, perceptual_distance, psnr, ssim
from ..metrics.pairs import SCALES
from .extractor import FeatureExtractor
from .sample import Trained
from .scores import METRICS, Protocol, title

__all__ = ["Pairs", "path_result", "reconstruction"]

WINDOW = 11  # of SSIM: the coarsest scale holds it


@final
class Pairs:
    """Means of the scores `names` over pairs of uint8 images, streamed."""

    def __init__(self, names: Sequence[str], extractor: FeatureExtractor) -> None:
        self.names, self.extractor = names, extractor
        self.found = {name: Moments(1) for name in names}
        self.scales = 0

    def look(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """What `add` needs of pairs uint8 (B, C, H, W), in this process or in another. Errors: `UserError` for images that a score cannot compare."""
        seen = {}
        for name in self.names:
            try:
                seen[name] = self._each(name, x, y)[:, None]
            except ValueError as e:
                raise UserError(f"{name}: {e}: leave it out of the metrics") from None
            if not seen[name].isfinite().all():
                what = "some pairs are equal, and PSNR is infinite" if name == "psnr" else "some pairs have no finite score"
                raise UserError(f"{name}: {what}: leave it out of the metrics")
        return seen

    def add(self, seen: Mapping[str, Tensor]) -> None:
        """Add what `look` saw."""
        for name in self.names:
            self.found[name].update(seen[name])

    def _each(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        """One score a pair, (B,)."""
        if name == "psnr":
            return psnr(x, y, data_range=255)
        if name == "ssim":
            return ssim(x, y, data_range=255)
        if name == "ms-ssim":
            self.scales = max(1, sum(min(x.shape[2:]) >= WINDOW * 2**k for k in range(len(SCALES))))
            exponents = torch.tensor(SCALES[: self.scales], dtype=torch.float64)
            return ms_ssim(x, y, data_range=255, exponents=(exponents / exponents.sum()).tolist())
        return perceptual(self.extractor, x, y, (0, 255))

    def results(self, shared: Protocol) -> list[Result]:
        """Means with their standard errors."""
        found = []
        for name in self.names:
            m = self.found[name]
            own: Protocol = {"psnr": {"data range": 255}, "ssim": {"data range": 255}}.get(name, {})  # type: ignore[assignment]
            if name == "ms-ssim":
                own = {"data range": 255, "scales": self.scales}
            if name == "pd":
                own = {"extractor": self.extractor.name, "weights": self.extractor.weights}
            error = float(m.error[0]) if m.n > 1 else None
            found.append(Result(title(name, self.extractor), float(m.mean[0]), METRICS[name].better, None, {**shared, **own, "N": m.n}, error))
        return found


def perceptual(extractor: FeatureExtractor, x: Tensor, y: Tensor, span: tuple[float, float]) -> Tensor:
    """Perceptual distance of pairs (B,) in the extractor's maps, in fp32. Errors: `UserError` for one without maps."""

    def stages(images: Tensor) -> Sequence[Tensor]:
        found = extractor.stages(images.float())
        if not found:
            raise UserError(f"a perceptual distance needs feature maps, and {extractor.name} gives none: take the cnn or inception extractor")
        return found

    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        return perceptual_distance(x.cpu(), y.cpu(), span=span, stages=stages)


def reconstruction(trained: Trained, images: Tensor) -> Tensor:
    """What the method makes of the codes of images uint8 (B, C, H, W), uint8 as well. `UserError` where it does not encode."""
    method, device = trained.method, torch.device(trained.where.device)
    if not isinstance(method, Codec):
        raise UserError(f"{trained.facts['recipe']} neither encodes images nor takes a source: leave scores of pairs out of the metrics")
    with torch.no_grad(), trained.where.autocast():
        decoded = method.decode(method.encode((images.float() / 127.5 - 1).to(device)))
    return to_uint8(decoded.float().clamp(-1, 1)).cpu()


def path_result(trained: Trained, extractor: FeatureExtractor, num: int, seed: int, label: str | int | None) -> Result:
    """Perceptual path length between latents of the run, in fp32. Errors: `UserError` for a method without a latent space."""
    method = trained.method
    if not isinstance(method, Latent):
        raise UserError(f"{trained.facts['recipe']} has no latent space to walk in: leave ppl out of the metrics")
    shape = tuple(method.latents((0,)).shape[1:])

    def generate(z: Tensor) -> Tensor:
        request = trained.request(len(z), seed, label)
        with torch.no_grad():
            x = method.from_latents(z.view(-1, *shape).to(trained.where.device), request.take(slice(0, len(z))))
        return x.float().clamp(-1, 1).cpu()

    found = path_length(generate, lambda a, b: perceptual(extractor, a, b, (-1, 1)), dim=int(torch.tensor(shape).prod()), num=max(num, 2), seed=seed)
    own: Protocol = {"extractor": extractor.name, "weights": extractor.weights, "paths": found.num, "eps": 1e-4, "space": "latent, slerp, full", "seed": seed}
    return Result(title("ppl", extractor), found.value, METRICS["ppl"].better, None, own, found.error)
