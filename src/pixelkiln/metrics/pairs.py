"""How alike are two images, pixel by pixel: PSNR, SSIM, MS-SSIM. One number an image; `Moments(1)` streams their mean and its error."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["SCALES", "ms_ssim", "psnr", "ssim"]

WINDOW, SIGMA = 11, 1.5  # Wang et al., 2004, section III.B
K1, K2 = 0.01, 0.03
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # exponents of the scales, finest first: Wang, Simoncelli and Bovik, 2003, section 3.2


def _pair(x: Tensor, y: Tensor, data_range: float) -> tuple[Tensor, Tensor]:
    """Both as float64: differences of uint8 would wrap, and variances cancel in float32."""
    if x.ndim != 4 or x.shape != y.shape or not x.numel():
        raise ValueError(f"expected two batches of images (N, C, H, W) of one shape, got {tuple(x.shape)} and {tuple(y.shape)}")
    if x.dtype != y.dtype:
        raise ValueError(f"expected images of one type, got {x.dtype} and {y.dtype}: their ranges differ")
    if not data_range > 0:
        raise ValueError(f"data_range is the largest possible difference of two pixels (255, 1 or 2), and it is {data_range}")
    x, y = x.detach().double(), y.detach().double()
    low, high = float(torch.minimum(x.min(), y.min())), float(torch.maximum(x.max(), y.max()))
    if not high - low <= data_range * (1 + 1e-6):
        raise ValueError(f"pixels are between {low:.4g} and {high:.4g}, which is more than the stated data_range {data_range}")
    return x, y


def psnr(x: Tensor, y: Tensor, *, data_range: float) -> Tensor:
    """Peak signal-to-noise ratio in decibel of each pair of images (N, C, H, W), (N,) float64; inf for equal images.

    PSNR = 10 log10(L^2 / mean (x - y)^2),   L = data_range: 255 for uint8, 2 for [-1, 1], never guessed from the batch

    ValueError for shapes or types that differ, or pixels that do not fit into the range.
    """
    x, y = _pair(x, y, data_range)
    return 10 * torch.log10(data_range**2 / (x - y).square().flatten(1).mean(1))


def _blur(x: Tensor) -> Tensor:
    """Mean under the Gaussian window, (N, C, H, W) -> (N, C, H - 10, W - 10): only where the window fits."""
    t = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    w = torch.exp(-(t**2) / (2 * SIGMA**2))
    w = w / w.sum()
    flat = x.flatten(0, 1)[:, None]
    return F.conv2d(F.conv2d(flat, w.view(1, 1, -1, 1)), w.view(1, 1, 1, -1)).unflatten(0, x.shape[:2]).squeeze(2)


def _terms(x: Tensor, y: Tensor, data_range: float) -> tuple[Tensor, Tensor]:
    """Means over pixels and channels, (N,), of SSIM and of its contrast-structure part."""
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    mx, my = _blur(x), _blur(y)
    vx, vy, cov = _blur(x * x) - mx**2, _blur(y * y) - my**2, _blur(x * y) - mx * my
    structure = (2 * cov + c2) / (vx + vy + c2)
    luminance = (2 * mx * my + c1) / (mx**2 + my**2 + c1)
    return (luminance * structure).flatten(1).mean(1), structure.flatten(1).mean(1)


def ssim(x: Tensor, y: Tensor, *, data_range: float) -> Tensor:
    """Structural similarity of each pair of images (N, C, H, W), (N,) float64 in [-1, 1], 1 for equal images; mean over channels.

    SSIM = (2 mx my + C1)(2 sxy + C2) / ((mx^2 + my^2 + C1)(sx^2 + sy^2 + C2)),   C1 = (0.01 L)^2, C2 = (0.03 L)^2    (Wang et al., 2004, eq. 13)

    Local moments under the paper's Gaussian window (11 x 11, deviation 1.5), where it fits. Means depend on the origin: the range is to
    start at 0. No downsampling first, as MATLAB's script suggests. ValueError as for `psnr`, for images smaller than 11 pixels, and
    for negative pixels.
    """
    x, y = _pair(x, y, data_range)
    _check_ssim(x, y, WINDOW)
    return _terms(x, y, data_range)[0]


def _check_ssim(x: Tensor, y: Tensor, least: int) -> None:
    """Refuse small images and a range that does not start at 0."""
    if min(x.shape[2:]) < least:
        raise ValueError(f"images must be at least {least} pixels wide and high here, and they are {x.shape[2]}x{x.shape[3]}")
    if min(float(x.min()), float(y.min())) < 0:
        raise ValueError("structural similarity needs pixels from 0 on: map [-1, 1] to [0, 1] first, and use data_range 1")


def ms_ssim(x: Tensor, y: Tensor, *, data_range: float, exponents: Sequence[float] = SCALES) -> Tensor:
    """Multi-scale structural similarity of each pair of images (N, C, H, W), (N,) float64 in [0, 1].

    MS-SSIM = SSIM_M^(w_M) prod_{j < M} CS_j^(w_j)              (Wang, Simoncelli and Bovik, 2003, eq. 7)

    CS is the contrast-structure part; each scale is the 2 x 2 mean of the one before; negative factors count as 0. Five scales need 176
    pixels: for smaller images give fewer exponents, which is another score. ValueError as for `ssim`.
    """
    x, y = _pair(x, y, data_range)
    _check_ssim(x, y, WINDOW * 2 ** (len(exponents) - 1))
    found = torch.ones(len(x), dtype=x.dtype, device=x.device)
    for j, w in enumerate(exponents):
        whole, structure = _terms(x, y, data_range)
        last = j == len(exponents) - 1
        found = found * (whole if last else structure).clamp(min=0) ** w
        if not last:
            x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return found
