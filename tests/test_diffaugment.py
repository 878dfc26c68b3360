"""DiffAugment: each change against a loop over samples and pixels, its random numbers, and gradients of gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pixelkiln.layers.diffaugment import brightened, contrasted, cut, diffaugment, saturated, translated

CHANGES = [brightened, saturated, contrasted, translated, cut, diffaugment]


def random_images(n: int = 6, channels: int = 3, height: int = 12, width: int = 16, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(1), dtype=dtype) * 2 - 1


def seeded(f: Callable[[Tensor], Tensor], x: Tensor, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return f(x)


@pytest.mark.parametrize("channels", [1, 3])
def test_colors_against_a_loop(channels: int) -> None:
    x = random_images(6, channels, dtype=torch.float64)
    torch.manual_seed(0)
    r = torch.rand(6, 1, 1, 1, dtype=torch.float64).flatten()
    for i in range(6):
        image, grey = x[i], sum(x[i, c] for c in range(channels)) / channels
        mean = float(image.sum() / image.numel())
        torch.testing.assert_close(seeded(brightened, x)[i], image + float(r[i]) - 0.5)
        torch.testing.assert_close(seeded(saturated, x)[i], torch.stack([grey + 2 * float(r[i]) * (image[c] - grey) for c in range(channels)]))
        torch.testing.assert_close(seeded(contrasted, x)[i], mean + (0.5 + float(r[i])) * (image - mean))
    if channels == 1:
        assert torch.equal(seeded(saturated, x), x)


def test_ranges_are_those_of_images_in_minus_one_to_one() -> None:
    """Half of the range [-1, 1] either way is a quarter of it: brightness +-0.5, factors up to 2 of saturation, 0.5 to 1.5 of contrast; all reached."""
    torch.manual_seed(0)
    zeros = torch.zeros(20_000, 1, 1, 1)
    b = brightened(zeros).flatten()
    two = torch.tensor([-1.0, 1.0])
    s = saturated(two.view(1, 2, 1, 1).expand(20_000, -1, -1, -1))[:, 1].flatten()
    c = contrasted(two.view(1, 1, 1, 2).expand(20_000, -1, -1, -1))[:, 0, 0, 1]
    for values, low, high in ((b, -0.5, 0.5), (s, 0.0, 2.0), (c, 0.5, 1.5)):
        assert low <= float(values.min()) < low + 0.001 and high - 0.001 < float(values.max()) <= high
        assert float(values.mean()) == pytest.approx((low + high) / 2, abs=0.02)
        assert float(values.std()) == pytest.approx((high - low) / 12**0.5, rel=0.02)


@pytest.mark.parametrize(("height", "width"), [(28, 28), (16, 32), (12, 20)])
def test_translation_against_a_loop_zeros_moved_in_and_at_most_an_eighth(height: int, width: int) -> None:
    x = random_images(100, 1, height, width)
    torch.manual_seed(3)
    got = translated(x)
    most, found = (height // 8, width // 8), set()
    for i in range(100):
        fits = []
        for dy in range(-most[0] - 1, most[0] + 2):
            for dx in range(-most[1] - 1, most[1] + 2):
                expected = torch.zeros(1, height, width)
                for r in range(max(0, -dy), min(height, height - dy)):
                    expected[:, r, max(0, -dx) : min(width, width - dx)] = x[i, :, r + dy, max(0, dx) : min(width, width + dx)]
                if torch.equal(got[i], expected):
                    fits.append((dy, dx))
        assert len(fits) == 1
        found.add(fits[0])
    assert {dy for dy, _ in found} == set(range(-most[0], most[0] + 1)) and {dx for _, dx in found} == set(range(-most[1], most[1] + 1))


@pytest.mark.parametrize(("height", "width"), [(28, 28), (16, 32), (15, 9)])
def test_cutout_is_half_the_side_and_centered_anywhere(height: int, width: int) -> None:
    torch.manual_seed(4)
    n = 4000
    hole = cut(torch.ones(n, 2, height, width)) == 0
    assert torch.equal(hole[:, 0], hole[:, 1])
    rows, columns = hole[:, 0].any(2), hole[:, 0].any(1)
    assert torch.equal(hole[:, 0], rows[:, :, None] & columns[:, None, :])
    for line, side in ((rows, height), (columns, width)):
        size = int(side * 0.5 + 0.5)
        centers, lengths = side + 1 - size % 2, line.sum(1)
        assert int(lengths.max()) == size and int(lengths.min()) == (size + 1) // 2  # a center at the border: half of the box is outside
        for at in (0, side // 2, side - 1):  # a pixel is in the box of every center near enough
            within = sum(c - size // 2 <= at < c - size // 2 + size for c in range(centers)) / centers
            assert float(line[:, at].double().mean()) == pytest.approx(within, abs=0.035)


@pytest.mark.parametrize("change", CHANGES)
def test_every_sample_has_its_own_random_numbers(change: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(5)
    x = random_images(1, 3, 16, 16).expand(40, -1, -1, -1)
    got = change(x)
    assert len({tuple(image.flatten().tolist()) for image in got}) > 15
    assert got.shape == x.shape
    assert not torch.equal(got, change(x)) and torch.equal(seeded(change, x), seeded(change, x))


@pytest.mark.parametrize("change", CHANGES)
def test_gradients_and_their_gradients(change: Callable[[Tensor], Tensor]) -> None:
    x = random_images(2, 3, 8, 9, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: seeded(change, x), x, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x: seeded(change, x).sin() * seeded(change, x.square(), 1), x, fast_mode=True)


def test_half_precision_has_the_random_numbers_of_single() -> None:
    """Else real images in fp32 and generated ones in bf16 would be told apart by the steps between brightnesses."""
    x = random_images().bfloat16()
    got = seeded(diffaugment, x)
    assert got.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(seeded(diffaugment, x), got)
    assert torch.equal(seeded(diffaugment, x.float()).bfloat16(), got)
