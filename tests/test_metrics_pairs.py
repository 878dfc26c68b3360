"""PSNR, SSIM, MS-SSIM, perceptual distance and path length against scikit-image, torchmetrics, loops and closed forms; their traps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor
from torch.nn import functional as F

from pixelkiln.core.images import from_uint8, to_uint8
from pixelkiln.metrics import Moments, ms_ssim, path_length, perceptual_distance, psnr, ssim
from pixelkiln.metrics.perceptual import lerp, slerp


def images(n: int, c: int, h: int, w: int, seed: int) -> Tensor:
    """Smooth random pictures, float32 in [0, 1]."""
    coarse = torch.rand(n, c, h // 4 + 2, w // 4 + 2, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, (h, w), mode="bicubic", align_corners=False).clamp(0, 1)


def disturbed(x: Tensor, seed: int, scale: float = 0.1) -> Tensor:
    return (x + scale * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))).clamp(0, 1)


# ---- PSNR


def test_psnr_against_scikit_image() -> None:
    x = images(4, 3, 20, 17, 0)
    y = disturbed(x, 1)
    expected = [peak_signal_noise_ratio(a.double().numpy(), b.double().numpy(), data_range=1.0) for a, b in zip(x, y)]
    np.testing.assert_allclose(psnr(x, y, data_range=1).numpy(), expected, rtol=1e-12)


def test_psnr_of_bytes_does_not_wrap() -> None:
    """uint8 5 - 250 is 11 if it wraps, and the worst picture would look like a good one."""
    dark, bright = torch.full((1, 1, 4, 4), 5, dtype=torch.uint8), torch.full((1, 1, 4, 4), 250, dtype=torch.uint8)
    assert int((dark - bright)[0, 0, 0, 0]) == 11
    assert float(psnr(dark, bright, data_range=255)) == pytest.approx(20 * math.log10(255 / 245))
    assert float(psnr(dark, dark, data_range=255)) == math.inf


def test_the_range_is_never_guessed() -> None:
    x = images(1, 1, 16, 16, 2)
    for score in (psnr, ssim, ms_ssim):
        with pytest.raises(TypeError, match="data_range"):
            score(x, x)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="more than the stated data_range"):
        psnr(255 * x, x, data_range=1)
    with pytest.raises(ValueError, match="more than the stated data_range"):
        ssim(to_uint8(2 * x - 1), to_uint8(x - 1), data_range=1)
    with pytest.raises(ValueError, match="of one type"):
        psnr(to_uint8(2 * x - 1), x, data_range=255)
    with pytest.raises(ValueError, match="one shape"):
        psnr(x, x[..., :8], data_range=1)


def test_a_pair_scores_the_same_in_any_batch() -> None:
    """With a range guessed from the batch, as some libraries do, it would not."""
    x = images(5, 2, 24, 24, 3) * torch.linspace(0.2, 1, 5)[:, None, None, None]
    y = disturbed(x, 4)
    for score in (psnr, ssim):
        alone = torch.cat([score(a[None], b[None], data_range=1) for a, b in zip(x, y)])
        torch.testing.assert_close(score(x, y, data_range=1), alone, rtol=1e-12, atol=1e-12)
    scores = psnr(x, y, data_range=1)[:, None]
    streamed = Moments(1).update(scores[:2]).merge(Moments(1).update(scores[2:]))
    assert float(streamed.mean) == pytest.approx(float(scores.mean()))
    assert float(streamed.error) == pytest.approx(float(scores.std()) / 5**0.5)


# ---- SSIM


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 28, 28), (3, 32, 41), (1, 11, 11)])
def test_ssim_against_scikit_image_with_the_papers_window(channels: int, height: int, width: int) -> None:
    x = images(3, channels, height, width, 5)
    y = disturbed(x, 6)
    expected = [
        structural_similarity(
            a.double().numpy(), b.double().numpy(), data_range=1.0, channel_axis=0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        for a, b in zip(x, y)
    ]
    np.testing.assert_allclose(ssim(x, y, data_range=1).numpy(), expected, rtol=1e-9)


def test_ssim_is_not_the_uniform_window() -> None:
    """scikit-image's defaults (uniform 7 x 7, sample covariance) are another score."""
    x = images(1, 1, 40, 40, 7)
    y = disturbed(x, 8, 0.2)
    uniform = structural_similarity(x[0, 0].double().numpy(), y[0, 0].double().numpy(), data_range=1.0)
    assert abs(uniform - float(ssim(x, y, data_range=1))) > 0.02


def test_ssim_against_torchmetrics() -> None:
    from torchmetrics.functional.image import structural_similarity_index_measure

    x = images(4, 3, 33, 40, 9).double()
    y = disturbed(x, 10)
    _, maps = structural_similarity_index_measure(y, x, data_range=1.0, reduction="none", return_full_image=True)
    theirs = maps[..., 5:-5, 5:-5].flatten(1).mean(1)  # without the border, where their window is reflected
    torch.testing.assert_close(ssim(x, y, data_range=1), theirs, rtol=1e-9, atol=1e-9)


def test_ms_ssim_against_torchmetrics() -> None:
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure, structural_similarity_index_measure

    x = images(2, 3, 182, 177, 11).double()
    y = disturbed(x, 12)
    a, b, expected = x, y, torch.ones(2, dtype=torch.float64)
    for j, w in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
        more = {"return_contrast_sensitivity": True} if j < 4 else {"return_full_image": True}
        _, part = structural_similarity_index_measure(a, b, data_range=1.0, reduction="none", **more)
        expected *= (part if j < 4 else part[..., 5:-5, 5:-5].flatten(1).mean(1)) ** w
        a, b = (torch.nn.functional.avg_pool2d(z, 2) for z in (a, b))
    torch.testing.assert_close(ms_ssim(x, y, data_range=1), expected, rtol=1e-9, atol=1e-9)
    whole = multiscale_structural_similarity_index_measure(y, x, data_range=1.0, reduction="none", normalize="relu")
    torch.testing.assert_close(ms_ssim(x, y, data_range=1), whole, rtol=0, atol=1e-3)  # theirs keeps the reflected border at the last scale
    inverted = ms_ssim(x, 1 - x, data_range=1)  # negative structure: 0, never NaN
    assert inverted.tolist() == [0, 0]


def test_ssim_of_one_scale_equal_images_and_bytes() -> None:
    x = images(2, 1, 30, 30, 13)
    y = disturbed(x, 14)
    torch.testing.assert_close(ms_ssim(x, y, data_range=1, exponents=(1.0,)), ssim(x, y, data_range=1))
    assert ssim(x, x, data_range=1).tolist() == [1, 1]
    a, b = to_uint8(2 * x - 1), to_uint8(2 * y - 1)
    torch.testing.assert_close(ssim(a, b, data_range=255), ssim(x, y, data_range=1), rtol=0, atol=1e-3)


def test_ssim_refuses_what_has_no_window_or_another_origin() -> None:
    x = images(1, 1, 28, 28, 15)
    with pytest.raises(ValueError, match="at least 11 pixels"):
        ssim(x[..., :10], x[..., :10], data_range=1)
    with pytest.raises(ValueError, match="at least 176 pixels"):
        ms_ssim(x, x, data_range=1)
    with pytest.raises(ValueError, match="from 0 on"):
        ssim(2 * x - 1, 2 * x - 1, data_range=2)


def test_8_bits_are_rounded_and_clamped_never_truncated_or_wrapped() -> None:
    """(x * 255).byte() gives 127 for 0.5, 1 for 1.01 and 254 for -0.01."""
    x = torch.tensor([0.5, 1.01, -0.01, 1.0, 0.0])
    assert to_uint8(2 * x - 1).tolist()[0] in (127, 128)
    assert to_uint8(2 * x - 1).tolist()[1:] == [255, 0, 255, 0]
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(from_uint8(every) + 0.9 / 255), every)  # below half a step: the nearest, not the next lower


# ---- perceptual distance


def stages(x: Tensor) -> list[Tensor]:
    """Two maps of fixed random filters."""
    gen = torch.Generator().manual_seed(0)
    w1 = torch.randn(6, x.shape[1], 3, 3, generator=gen, dtype=torch.float64).to(x)
    w2 = torch.randn(4, 6, 3, 3, generator=gen, dtype=torch.float64).to(x)
    f = F.conv2d(x, w1).relu()
    return [f, F.conv2d(f, w2, stride=2)]


def test_perceptual_distance_against_loops() -> None:
    x = images(2, 3, 9, 8, 16).double()
    y = disturbed(x, 17)
    weights = [torch.rand(6), torch.rand(4)]
    for ws in (None, weights):
        expected = []
        for i in range(2):
            total = 0.0
            for level, (f, g) in enumerate(zip(stages(2 * x - 1), stages(2 * y - 1))):
                cells = []
                for h in range(f.shape[2]):
                    for w in range(f.shape[3]):
                        a, b = f[i, :, h, w].numpy(), g[i, :, h, w].numpy()
                        a, b = a / max(np.linalg.norm(a), 1e-10), b / max(np.linalg.norm(b), 1e-10)
                        cells.append(sum((1.0 if ws is None else float(ws[level][c])) * (a[c] - b[c]) ** 2 for c in range(len(a))))
                total += float(np.mean(cells))
            expected.append(total)
        found = perceptual_distance(x, y, span=(0, 1), stages=stages, weights=ws)
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)


def test_perceptual_distance_is_symmetric_zero_at_equality_and_differentiable_there() -> None:
    x = images(3, 1, 12, 12, 18)
    y = disturbed(x, 19)
    torch.testing.assert_close(*(perceptual_distance(a, b, span=(0, 1), stages=stages) for a, b in ((x, y), (y, x))))
    black = torch.zeros(3, 1, 12, 12, requires_grad=True)  # where all features may be 0
    zero = perceptual_distance(black, black.detach(), span=(-1, 1), stages=lambda z: [z.relu()])
    zero.sum().backward()
    assert zero.tolist() == [0, 0, 0]
    assert black.grad is not None
    assert black.grad.isfinite().all()
    scores = [float(perceptual_distance(x, disturbed(x, 20, s), span=(0, 1), stages=stages).mean()) for s in (0.02, 0.08, 0.3)]
    assert scores == sorted(scores)
    assert scores[0] > 0


def test_the_same_pictures_in_another_range_have_the_same_distance() -> None:
    """Images in [0, 1] handed to a network that expects [-1, 1] score lower: the span is stated, checked and mapped."""
    x = images(3, 3, 16, 16, 21)
    y = disturbed(x, 22)
    unit = perceptual_distance(x, y, span=(0, 1), stages=stages)
    torch.testing.assert_close(perceptual_distance(2 * x - 1, 2 * y - 1, span=(-1, 1), stages=stages), unit, rtol=1e-4, atol=1e-7)
    bytes_ = perceptual_distance(to_uint8(2 * x - 1), to_uint8(2 * y - 1), span=(0, 255), stages=stages)
    torch.testing.assert_close(bytes_, unit, rtol=0.05, atol=1e-4)
    mistaken = perceptual_distance(x, y, span=(-1, 1), stages=stages)  # possible, but the caller has said so
    assert (mistaken - unit).abs().max() > 0.1 * unit.max()


@pytest.mark.parametrize(
    ("x", "span", "message"),
    [
        (torch.full((1, 1, 8, 8), 2.0), (-1, 1), "between 2 and 2"),
        (torch.full((1, 1, 8, 8), -0.5), (0, 1), "between -0.5 and -0.5"),
        (torch.zeros(1, 1, 8, 8, dtype=torch.uint8), (0, 1), r"span \(0, 255\)"),
        (torch.full((1, 1, 8, 8), float("nan")), (0, 1), "between nan"),
        (torch.zeros(1, 1, 8, 8), (1, 0), "lowest, highest"),
    ],
)
def test_perceptual_distance_refuses_other_ranges(x: Tensor, span: tuple[float, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        perceptual_distance(x, x, span=span, stages=stages)


@pytest.mark.parametrize("weights", [[torch.ones(6)], [torch.ones(6), torch.ones(5)], [torch.ones(6), -torch.ones(4)]])
def test_perceptual_distance_refuses_weights_that_do_not_fit(weights: Sequence[Tensor]) -> None:
    x = images(1, 1, 8, 8, 23)
    with pytest.raises(ValueError, match=r"weights of \[6, 4\] channels"):
        perceptual_distance(x, x, span=(0, 1), stages=stages, weights=weights)


# ---- path length


def squared(a: Tensor, b: Tensor) -> Tensor:
    return (a.double() - b.double()).square().flatten(1).sum(1)


def flat(z: Tensor) -> Tensor:
    return z[:, :, None, None]


def test_path_length_of_a_linear_generator_in_w() -> None:
    """l_W = |A (w2 - w1)|^2 a path, whose mean over normal w is 2 tr A^T A."""
    a = torch.randn(20, 8, generator=torch.Generator().manual_seed(24), dtype=torch.float64)
    found = path_length(lambda w: (w.double() @ a.T)[:, :, None, None], squared, dim=8, num=3000, mapping=lambda z: z, eps=1e-2, trim=0)
    assert found.error is not None
    assert found.value == pytest.approx(float(2 * (a * a).sum()), abs=4 * found.error)
    assert found.num == 3000


def test_path_length_on_the_sphere() -> None:
    """G = identity: the path is a great circle of radius sqrt(D), so that a step of eps moves 2 sqrt(D) sin(w eps / 2)."""
    seen: list[Tensor] = []

    def generate(z: Tensor) -> Tensor:
        seen.append(z.double())
        return flat(z)

    found = path_length(generate, squared, dim=16, num=400, eps=0.1, ends=True, trim=0, batch=400)
    start, step = seen
    w = 2 * torch.asin(((step - start).norm(dim=1) / 8).clamp(max=1)) / 0.1  # |chord| = 2 * 4 sin(w eps / 2)
    np.testing.assert_allclose(start.norm(dim=1).numpy(), 4, rtol=1e-6)
    assert found.value == pytest.approx(float((8 * (w * 0.05).sin()).square().mean() / 0.01), rel=1e-5)
    assert float(w.mean()) == pytest.approx(math.pi / 2, abs=0.05)  # directions in 16 dimensions are nearly orthogonal


def test_slerp_and_lerp() -> None:
    a, b = (torch.randn(6, 5, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in (25, 26))
    t = torch.linspace(0, 1, 6, dtype=torch.float64)
    p = slerp(a, b, t)
    np.testing.assert_allclose(p.norm(dim=1), 5**0.5)
    np.testing.assert_allclose(p[0], a[0] / a[0].norm() * 5**0.5)
    np.testing.assert_allclose(p[-1], b[-1] / b[-1].norm() * 5**0.5)
    whole = torch.nn.functional.cosine_similarity(a, b).acos()
    np.testing.assert_allclose(torch.nn.functional.cosine_similarity(a, p).acos()[1:], (t * whole)[1:], rtol=1e-6)  # the angle grows evenly
    assert torch.equal(lerp(a, b, t)[0], a[0])
    assert slerp(a, a, t).isfinite().all()


def test_path_length_is_the_same_for_any_batch_and_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    run = lambda **more: path_length(flat, squared, dim=4, num=50, **more)
    first = run(batch=7)
    assert first == run(batch=50)
    assert first.value != run(seed=1).value
    assert torch.equal(torch.get_rng_state(), before)


def test_path_length_of_8_bit_images_is_rounding_noise() -> None:
    """A step of 1e-4 is far below 1/255: rounded images either do not move or jump. Integers are refused, rounded floats show why."""
    a = 0.05 * torch.randn(12, 6, generator=torch.Generator().manual_seed(27))

    def smooth(z: Tensor) -> Tensor:
        return (z @ a.T)[:, :, None, None]

    exact = path_length(smooth, squared, dim=6, num=2000).value
    coarse = path_length(smooth, squared, dim=6, num=2000, eps=0.1).value
    assert exact == pytest.approx(coarse, rel=0.05)  # the limit is reached
    rounded = path_length(lambda z: from_uint8(to_uint8(smooth(z))), squared, dim=6, num=2000, trim=0).value
    assert rounded > 5 * exact
    with pytest.raises(ValueError, match="leave the rounding to 8 bits out"):
        path_length(lambda z: to_uint8(smooth(z)), squared, dim=6, num=20)


def test_path_length_trims_as_the_paper_does() -> None:
    """StyleGAN keeps lo <= d <= hi with the 1 % quantile's lower and the 99 % quantile's higher neighbor."""
    all_, kept = (path_length(flat, squared, dim=3, num=500, trim=t, batch=500) for t in (0, 0.01))
    seen: list[Tensor] = []
    path_length(flat, lambda a, b: seen.append(squared(a, b)) or squared(a, b), dim=3, num=500, batch=500)  # type: ignore[func-returns-value]
    d = (seen[0] / 1e-8).numpy()
    lo, hi = np.percentile(d, 1, method="lower"), np.percentile(d, 99, method="higher")
    expected = d[(d >= lo) & (d <= hi)]
    assert kept.num == len(expected)
    assert kept.value == pytest.approx(expected.mean(), rel=1e-9)
    assert all_.value == pytest.approx(d.mean(), rel=1e-9)


@pytest.mark.parametrize("more", [{"eps": 0}, {"trim": 0.5}, {"num": 1}])
def test_path_length_refuses(more: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="eps > 0"):
        path_length(flat, squared, **{"dim": 3, **more})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"must be \(64,\)"):
        path_length(flat, lambda a, b: (a - b).sum(), dim=3)


