"""Distances in the feature maps of a network that the caller gives: of two images, and along a generator's paths."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pixelkiln.core.rng import noise, streams

from .result import Estimate

__all__ = ["lerp", "path_length", "perceptual_distance", "slerp"]

Stages = Callable[[Tensor], Sequence[Tensor]]  # images (N, C, H, W) in [-1, 1] -> feature maps (N, C_l, H_l, W_l)
SLACK = 1e-4  # rounding that a range forgives


def _unit(x: Tensor, span: tuple[float, float]) -> Tensor:
    """Images of the stated span, mapped to [-1, 1]."""
    low, high = span
    if not low < high:
        raise ValueError(f"the span of the pixels is (lowest, highest), not {span}")
    if not x.is_floating_point() and span != (0, 255):
        raise ValueError(f"{x.dtype} images have the span (0, 255), not {span}")
    x = x if x.is_floating_point() else x.float()
    slack, least, most = SLACK * (high - low), float(x.detach().min()), float(x.detach().max())
    if not (least >= low - slack and most <= high + slack):
        raise ValueError(f"pixels are between {least:.4g} and {most:.4g}, and the stated span is {span}")
    return (x - low) * (2 / (high - low)) - 1


def perceptual_distance(
    x: Tensor, y: Tensor, *, span: tuple[float, float], stages: Stages, weights: Sequence[Tensor] | None = None
) -> Tensor:
    """Distance of each pair of images (N, C, H, W), (N,), >= 0 and 0 for equal ones; differentiable.

    d = sum_l mean_hw sum_c w_lc (f_lhwc - g_lhwc)^2,   f, g the maps of x, y, of length 1 over the channels   (Zhang et al., 2018, eq. 1)

    `span` is the range of the pixels, (-1, 1), (0, 1) or (0, 255): it is checked, and the stages always see [-1, 1], as LPIPS's networks
    expect. `weights` (C_l,) a stage, >= 0, are LPIPS's linear layers; None is 1 everywhere. It is "LPIPS" only with LPIPS's own
    network and weights. ValueError for shapes that differ, pixels outside the span, or weights that do not fit.
    """
    if x.ndim != 4 or x.shape != y.shape or not x.numel():
        raise ValueError(f"expected two batches of images (N, C, H, W) of one shape, got {tuple(x.shape)} and {tuple(y.shape)}")
    maps = list(stages(_unit(x, span))), list(stages(_unit(y, span)))
    if weights is not None:
        wanted = [f.shape[1] for f in maps[0]]
        if [tuple(w.shape) for w in weights] != [(c,) for c in wanted] or min(float(w.min()) for w in weights) < 0:
            raise ValueError(f"expected non-negative weights of {wanted} channels, one tensor a stage")
    total = x.new_zeros(len(x), dtype=maps[0][0].dtype)
    for level, (f, g) in enumerate(zip(*maps, strict=True)):
        square = (_normal(f) - _normal(g)).square()  # (N, C_l, H_l, W_l)
        w = 1.0 if weights is None else weights[level].to(square)[:, None, None]
        total = total + (w * square).sum(1).mean((1, 2))
    return total


def _normal(f: Tensor) -> Tensor:
    """Each position's channels scaled to length 1; where all are 0 they stay 0, with a finite gradient."""
    return f / (f.square().sum(1, keepdim=True) + 1e-20).sqrt()


def lerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """a + t (b - a), rows (B, D), t (B,)."""
    return a + t[:, None] * (b - a)


def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Great circle between the directions of a and b (B, D) at t (B,), of length sqrt(D): where normal noise lives (Shoemake, 1985).

    (sin((1 - t) w) a + sin(t w) b) / sin w,   w the angle, after both are scaled to length sqrt(D)
    """
    a, b = (z / z.norm(dim=1, keepdim=True) for z in (a, b))
    w = torch.atan2((a - b).norm(dim=1), (a + b).norm(dim=1)) * 2  # accurate at 0, where acos is not
    plain = w < 1e-6
    s = torch.where(plain, 1.0, w.sin())
    p = torch.where(plain, 1 - t, ((1 - t) * w).sin() / s)[:, None] * a + torch.where(plain, t, (t * w).sin() / s)[:, None] * b
    return p * math.sqrt(a.shape[1])


def path_length(
    generate: Callable[[Tensor], Tensor],
    distance: Callable[[Tensor, Tensor], Tensor],
    *,
    dim: int,
    num: int = 1000,
    seed: int = 0,
    mapping: Callable[[Tensor], Tensor] | None = None,
    eps: float = 1e-4,
    ends: bool = False,
    trim: float = 0.01,
    batch: int = 64,
) -> Estimate:
    """Perceptual path length: mean squared change of the images per squared step in the latent space, >= 0; with its standard error.

    l_Z = E[ d(G(slerp(z1, z2; t)), G(slerp(z1, z2; t + eps))) / eps^2 ]                                  (Karras et al., 2019, eq. 2)
    l_W = E[ d(g(lerp(f(z1), f(z2); t)), g(lerp(f(z1), f(z2); t + eps))) / eps^2 ],   f = mapping         (eq. 3)

    generate: latents (B, D) -> float images, never rounded to 8 bits (a step of eps is far below 1/255, and rounding noise is divided
    by eps^2): integer images are refused. distance: two batches of images -> (B,), quadratic near 0 as `perceptual_distance` is.
    t is uniform, or 0 with `ends`; paths outside the `trim` and 1 - `trim` quantiles are left out (StyleGAN's 1 % and 99 %; the lower and
    the higher neighbor of the quantile stay). Path i depends on (seed, i) alone. Interpolated in float64, handed over in float32.
    ValueError for eps, trim or num out of range, distances that are not (B,), integer images.
    """
    if not eps > 0 or not 0 <= trim < 0.5 or num < 2:
        raise ValueError(f"a path length needs eps > 0, 0 <= trim < 0.5 and num >= 2, not {eps}, {trim} and {num}")
    found = []
    for start in range(0, num, batch):
        keys = [seed * 2**32 + i for i in range(start, min(start + batch, num))]
        z1, z2 = (noise(streams(keys, f"path {end}"), (dim,)) for end in (1, 2))  # (B, D)
        t = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in streams(keys, "path t")])
        t = torch.zeros_like(t) if ends else t
        a, b, walk = (z1, z2, slerp) if mapping is None else (mapping(z1), mapping(z2), lerp)
        near, far = (generate(walk(a.double(), b.double(), s).float()) for s in (t, t + eps))
        if not (near.is_floating_point() and far.is_floating_point()):
            raise ValueError(f"a path length needs float images, and the generator returns {near.dtype}: leave the rounding to 8 bits out")
        d = distance(near, far)
        if d.shape != t.shape:
            raise ValueError(f"the distance of {len(t)} pairs must be ({len(t)},), and it is {tuple(d.shape)}")
        found.append(d.detach().double().cpu() / eps**2)
    lengths = torch.cat(found).sort().values
    drop = math.floor(trim * (num - 1))
    kept = lengths[drop : num - drop]
    return Estimate(float(kept.mean()), float(kept.std()) / len(kept) ** 0.5, len(kept))
