"""ADA's transforms: filters, the one affine map, color, frequencies, noise, cutout; what p means; gradients of gradients."""

from __future__ import annotations

import itertools
import math
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.spatial.transform import Rotation
from torch import Tensor

from pixelkiln.core.types import UserError
from pixelkiln.layers.ada import POWER, Augmentations, Groups, amplified, cut, gains, noisy
from pixelkiln.layers.ada_color import Colors, colored, colors, matrix
from pixelkiln.layers.ada_geometry import Blits, Moves, Sampled, blits, blitted, inverse, moves, resampled
from pixelkiln.layers.wavelets import SYM2, SYM6, bands, downsampling, period, reflected, sym6_delay, upsampling

GROUPS = get_args(Groups)
CPU = torch.device("cpu")
MANY = 100_000
DRAWN = torch.zeros(1, 1, 32, 24, dtype=torch.float64).expand(MANY, -1, -1, -1)  # so many images' random numbers


def random_images(n: int = 8, channels: int = 3, height: int = 16, width: int = 16, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(1), dtype=dtype) * 2 - 1


def wave(y: Tensor, x: Tensor, height: int, width: int) -> Tensor:
    """A smooth picture that reflection at the outermost pixels continues without a kink, at any positions in pixels from the center."""
    a, b = (math.pi * (c + (side - 1) / 2) / (side - 1) for c, side in ((y, height), (x, width)))
    return 0.4 * torch.cos(a) * torch.cos(2 * b) + 0.3 * torch.cos(3 * a) - 0.3 * torch.cos(b) + 0.2 * torch.cos(2 * a) * torch.cos(3 * b)


def grid(height: int, width: int) -> tuple[Tensor, Tensor]:
    """y (H, W), x (H, W) of all pixels, from the center."""
    y, x = (torch.arange(side, dtype=torch.float64) - (side - 1) / 2 for side in (height, width))
    return torch.meshgrid(y, x, indexing="ij")


# -- filters


@pytest.mark.parametrize(("taps", "moments"), [(SYM2, 2), (SYM6, 6)])
def test_filters_are_the_orthogonal_ones_of_daubechies(taps: tuple[float, ...], moments: int) -> None:
    h = np.array(taps)
    assert h.sum() == pytest.approx(math.sqrt(2), abs=1e-11) and (h**2).sum() == pytest.approx(1, abs=1e-11)
    for m in range(1, moments):
        assert (h[: -2 * m] * h[2 * m :]).sum() == pytest.approx(0, abs=1e-11)
    w = np.linspace(0, np.pi, 50)
    power = abs(np.exp(-1j * np.outer(w, np.arange(len(h)))) @ h) ** 2
    closed = 2 * np.cos(w / 2) ** (2 * moments) * sum(math.comb(moments - 1 + k, k) * np.sin(w / 2) ** (2 * k) for k in range(moments))
    np.testing.assert_allclose(power, closed, atol=1e-9)


def test_sym6_is_the_least_asymmetric_of_its_kind() -> None:
    """All filters with that power are products over one root of each reciprocal pair; sym6 is the one with the straightest phase."""
    y = np.roots([math.comb(5 + k, k) for k in range(6)][::-1])
    pairs = [np.roots([1, 4 * r - 2, 1]) for r in y if r.imag >= -1e-12]  # y = (2 - z - 1/z) / 4
    w, found = np.linspace(0.01, 2.2, 200), []
    for choice in itertools.product((0, 1), repeat=len(pairs)):
        roots = [-1.0] * 6
        for pick, pair in zip(choice, pairs, strict=True):
            roots += [pair[pick]] if abs(pair[pick].imag) < 1e-9 else [pair[pick], pair[pick].conj()]
        h = np.poly(roots).real
        h *= math.sqrt(2) / h.sum()
        phase = np.unwrap(np.angle(np.exp(-1j * np.outer(w, np.arange(12))) @ h))
        found.append((abs(phase - np.polyval(np.polyfit(w, phase, 1), w)).max(), h))
    best = min(found, key=lambda f: f[0])
    assert min(abs(h - np.array(SYM6)).max() for bend, h in found if bend < best[0] + 1e-6) < 1e-9  # it and its mirror image bend alike


@pytest.mark.parametrize("size", [2, 5, 28, 32])
def test_doubling_the_rate_against_zeros_between_pixels_and_a_convolution(size: int) -> None:
    x = torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = np.pad(x.numpy(), 40, mode="reflect")
    zeros = np.zeros(2 * len(whole))
    zeros[::2] = whole
    expected = np.convolve(zeros, math.sqrt(2) * np.array(SYM6))[80 : 80 + period(size) + 1]
    got = upsampling(size, torch.float64, CPU) @ x
    np.testing.assert_allclose(got[: len(expected)].numpy(), expected[: len(got)], atol=1e-12)
    assert float(got[0]) == pytest.approx(float(got[-1]), abs=1e-12)


@pytest.mark.parametrize("size", [2, 16, 28])
def test_halving_undoes_doubling(size: int) -> None:
    up, down = upsampling(size, torch.float64, CPU), downsampling(size, torch.float64, CPU)
    through = down @ up[torch.arange(2 * size + 10) % period(size)]
    torch.testing.assert_close(through, torch.eye(size, dtype=torch.float64), atol=1e-11, rtol=0)


def test_samples_lie_where_the_delay_says() -> None:
    i = torch.arange(33, dtype=torch.float64)
    up = upsampling(33, torch.float64, CPU) @ torch.cos(math.pi * 3 * i / 32)
    j = torch.arange(len(up), dtype=torch.float64)
    error = (up - torch.cos(math.pi * 3 * (j - sym6_delay()) / 64)).abs().max()
    middle = (up - torch.cos(math.pi * 3 * (j - 5.5) / 64)).abs().max()
    assert error < 1e-3 < 0.03 < middle  # the middle of the filter is not where its samples are


@pytest.mark.parametrize("size", [3, 16, 28, 64])
def test_bands_add_up_and_answer_to_frequencies_as_the_closed_form(size: int) -> None:
    b = bands(size, torch.float64, CPU)
    torch.testing.assert_close(b.sum(0), torch.eye(size, dtype=torch.float64), atol=1e-12, rtol=0)

    def p(w: float) -> float:
        return abs(sum(h * np.exp(-1j * w * k) for k, h in enumerate(SYM2))) ** 2 / 2

    i = torch.arange(size, dtype=torch.float64)
    for k in range(size):
        w = math.pi * k / (size - 1)
        mode = torch.cos(w * i)  # reflection continues it, so that it is an eigenvector
        expected = (p(w) * p(2 * w) * p(4 * w), p(w) * p(2 * w) * (1 - p(4 * w)), p(w) * (1 - p(2 * w)), 1 - p(w))
        for matrix_, factor in zip(b, expected, strict=True):
            torch.testing.assert_close(matrix_ @ mode, factor * mode, atol=1e-11, rtol=0)
        if k in (0, size - 1):
            assert expected[0 if k == 0 else 3] == pytest.approx(1)
        middle = [j for j in range(4) if (1 / 16, 3 / 16, 3 / 8, 3 / 4)[j] * math.pi == pytest.approx(w, abs=0.01)]
        assert all(max(expected) == expected[j] for j in middle)


# -- geometry


def some(n: int, seed: int = 0) -> tuple[Blits, Moves]:
    g = torch.Generator().manual_seed(seed)
    r = torch.rand(n, 8, generator=g, dtype=torch.float64)
    flip, turns = 1 - 2 * (r[:, 0] > 0.5).double(), (4 * r[:, 1]).floor()
    shift = torch.randint(-3, 4, (n, 2), generator=g).double()
    return Blits(flip, turns, shift), Moves(torch.exp2(r[:, 2] - 0.3), 6 * r[:, 3] - 3, torch.exp2(r[:, 4] - 0.5), 6 * r[:, 5] - 3, 3 * r[:, 6:] - 1.5)


def steps(b: Blits, m: Moves, i: int) -> list[np.ndarray]:
    """The eight transforms of sample i, each as a matrix of homogeneous positions."""

    def turn(angle: float) -> np.ndarray:
        return np.array([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]])

    def move(by: Tensor) -> np.ndarray:
        return np.array([[1, 0, float(by[0])], [0, 1, float(by[1])], [0, 0, 1]])

    s, a = float(m.scale[i]), float(m.stretch[i])
    return [np.diag([float(b.flip[i]), 1, 1]), turn(math.pi / 2 * float(b.turns[i])), move(b.shift[i]), np.diag([s, s, 1]), turn(float(m.first[i])),
            np.diag([a, 1 / a, 1]), turn(float(m.second[i])), move(m.shift[i])]  # fmt: skip


def test_one_map_is_the_product_of_the_inverse_transforms() -> None:
    b, m = some(50)
    linear, offset = inverse(b, m)
    for i in range(50):
        whole = np.linalg.inv(np.linalg.multi_dot(steps(b, m, i)[::-1]))
        np.testing.assert_allclose(linear[i].numpy(), whole[:2, :2], atol=1e-12)
        np.testing.assert_allclose(offset[i].numpy(), whole[:2, 2], atol=1e-12)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (28, 28), (33, 24)])
def test_sampling_shows_the_analytic_picture_at_the_mapped_positions(height: int, width: int) -> None:
    """Frequencies up to 3 half waves in 24 pixels: bilinear samples half a pixel apart are right to (pi/8)^2 / 32 times the amplitude and a bit."""
    y, x = grid(height, width)
    b, m = some(20)
    linear, offset = inverse(b, m)
    there = torch.einsum("nij,jhw->nihw", linear, torch.stack([x, y])) + offset[:, :, None, None]
    picture = wave(y, x, height, width).expand(20, 1, -1, -1)
    got = resampled(picture, linear, offset)
    torch.testing.assert_close(got[:, 0], wave(there[:, 1], there[:, 0], height, width), atol=0.02, rtol=0)


def test_one_map_equals_its_transforms_one_after_another() -> None:
    side = 40
    y, x = grid(side, side)
    b, m = some(6, seed=3)
    together = resampled(wave(y, x, side, side).expand(6, 1, -1, -1), *inverse(b, m))
    for i in range(6):
        picture = wave(y, x, side, side)[None, None]
        back = np.eye(3)
        for step in steps(b, m, i):
            one = torch.from_numpy(np.linalg.inv(step))
            picture = resampled(picture, one[None, :2, :2], one[None, :2, 2])
            back = back @ np.linalg.inv(step)
        near = torch.from_numpy(np.abs(back[:2] @ np.stack([x.numpy(), y.numpy(), np.ones_like(x)]).reshape(3, -1)).max(0).reshape(side, side)) < side / 2 - 4
        alive = near & (x.abs() < side / 2 - 8) & (y.abs() < side / 2 - 8)  # elsewhere a step in between has reflected what the whole has not
        assert int(alive.sum()) > 100
        assert float((picture - together[i])[0, 0][alive].abs().max()) < 0.05  # eight times bilinear; of another order of transforms it is above 0.3


@pytest.mark.parametrize("side", [8, 15])
def test_blits_move_pixels_exactly(side: int) -> None:
    x = random_images(8, 2, side, side)
    padded = F.pad(x, (3, 3, 3, 3), mode="reflect")
    for flip, turns, (dx, dy) in itertools.product((1.0, -1.0), (0, 1, 2, 3), ((0, 0), (2, -1), (-3, 3))):
        expected = padded.flip(3) if flip < 0 else padded
        expected = torch.rot90(expected, -turns, (2, 3))[:, :, 3 - dy : 3 - dy + side, 3 - dx : 3 - dx + side]
        b = Blits(torch.full((8,), flip), torch.full((8,), float(turns)), torch.tensor([[float(dx), float(dy)]]).expand(8, 2))
        assert torch.equal(blitted(x, b), expected)


@pytest.mark.parametrize(("height", "width"), [(6, 8), (5, 8)])
def test_blits_of_a_rectangle_against_a_loop_over_pixels(height: int, width: int) -> None:
    x = random_images(4, 1, height, width)
    for turns in range(4):
        b = Blits(torch.tensor([1.0, -1.0, 1.0, -1.0]), torch.full((4,), float(turns)), torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, -1.0], [2.0, 1.0]]))
        got = blitted(x, b)
        for i, r, c in itertools.product(range(4), range(height), range(width)):
            vx, vy = c - (width - 1) / 2 - float(b.shift[i, 0]), r - (height - 1) / 2 - float(b.shift[i, 1])
            for _ in range(turns):
                vx, vy = vy, -vx
            vx *= float(b.flip[i])
            row, column = math.floor(vy + (height - 1) / 2 + 0.5), math.floor(vx + (width - 1) / 2 + 0.5)
            assert got[i, 0, r, c] == x[i, 0, int(reflected(torch.tensor(row), height)), int(reflected(torch.tensor(column), width))]


def test_sampling_is_linear_and_its_gradient_is_the_librarys() -> None:
    x, places = random_images(3, 2, 7, 9, torch.float64).requires_grad_(), random_images(3, 5, 6, 2, torch.float64).detach()
    weights = torch.randn(3, 2, 5, 6, dtype=torch.float64)
    ours = torch.autograd.grad((Sampled.apply(x, places) * weights).sum(), x)[0]
    theirs = torch.autograd.grad((F.grid_sample(x, places, "bilinear", "border", align_corners=False) * weights).sum(), x)[0]
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)


# -- random numbers


def share(on: Tensor) -> float:
    return float(on.double().mean())


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_distributions_of_blits(p: float) -> None:
    torch.manual_seed(0)
    b = blits(DRAWN, torch.tensor(p))
    assert share(b.flip == -1) == pytest.approx(p / 2, abs=0.006)
    for k in (1, 2, 3):
        assert share(b.turns == k) == pytest.approx(p / 4, abs=0.006)
    assert torch.equal(b.turns % 1, torch.zeros(MANY).double()) and torch.equal(b.shift % 1, torch.zeros(MANY, 2).double())
    assert b.shift.abs().amax(0).tolist() == ([3, 4] if p else [0, 0])  # an eighth of 24 across and of 32 down
    for axis, most in ((0, 3), (1, 4)):
        for k in range(-most + 1, most):  # inner numbers are rounded to from an interval of length 1 out of 2 most
            assert share(b.shift[:, axis] == k) == pytest.approx(p / (2 * most) + (1 - p) * (k == 0), abs=0.006)
    assert abs(float((b.flip * (b.turns == 1)).mean()) - (1 - p) * p / 4) < 0.006  # flips and turns are chosen independently


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_distributions_of_moves(p: float) -> None:
    torch.manual_seed(1)
    m = moves(DRAWN, torch.tensor(p))
    for factor in (m.scale, m.stretch):
        assert share(factor != 1) == pytest.approx(p, abs=0.006)
        assert float(factor.log2().std()) == pytest.approx(0.2 * math.sqrt(p), abs=0.003) and abs(float(factor.log2().mean())) < 0.003
    each = 1 - math.sqrt(1 - p)
    for angle in (m.first, m.second):
        assert share(angle != 0) == pytest.approx(each, abs=0.006)
        assert float(angle.abs().max()) <= math.pi and float(angle.var()) == pytest.approx(each * math.pi**2 / 3, abs=0.03)
    assert share((m.first != 0) | (m.second != 0)) == pytest.approx(p, abs=0.006)  # 1 - (1 - p_rot)^2
    assert share((m.shift != 0).any(1)) == pytest.approx(p, abs=0.006)
    assert m.shift.std(0).tolist() == pytest.approx([3 * math.sqrt(p), 4 * math.sqrt(p)], abs=0.06)


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_distributions_of_colors(p: float) -> None:
    torch.manual_seed(2)
    c = colors(DRAWN, torch.tensor(p))
    for changed in (c.brightness != 0, c.contrast != 1, c.hue != 0, c.saturation != 1):
        assert share(changed) == pytest.approx(p, abs=0.006)
    assert share(c.flip == -1) == pytest.approx(p / 2, abs=0.006)
    assert float(c.brightness.std()) == pytest.approx(0.2 * math.sqrt(p), abs=0.003)
    assert float(c.contrast.log2().std()) == pytest.approx(0.5 * math.sqrt(p), abs=0.006)
    assert float(c.saturation.log2().std()) == pytest.approx(math.sqrt(p), abs=0.012)
    assert float(c.hue.var()) == pytest.approx(p * math.pi**2 / 3, abs=0.03) and float(c.hue.abs().max()) <= math.pi


def test_expected_colors_are_the_closed_form() -> None:
    """Grey: E[c (1 - 2 i)(x + b)] = E[c] (1 - p) x, where E[c] = 1 - p + p exp((0.5 ln 2)^2 / 2)."""
    torch.manual_seed(3)
    x, p = torch.full((MANY, 1, 1, 1), 0.7, dtype=torch.float64), 0.4
    expected = (1 - p + p * math.exp((0.5 * math.log(2)) ** 2 / 2)) * (1 - p) * 0.7
    assert float(colored(x, colors(x, torch.tensor(p))).mean()) == pytest.approx(expected, abs=0.01)


# -- color


def one_by_one(c: Colors, i: int) -> Tensor:
    """The matrix of sample i as a product of five, the rotation by scipy."""
    v = np.ones(3) / math.sqrt(3)
    vv = np.outer(v, v)
    found = np.eye(4)
    for m, t in ((np.eye(3), float(c.brightness[i])), (float(c.contrast[i]) * np.eye(3), 0.0), (np.eye(3) - 2 * vv * (float(c.flip[i]) < 0), 0.0),
                 (Rotation.from_rotvec(float(c.hue[i]) * v).as_matrix(), 0.0), (vv + float(c.saturation[i]) * (np.eye(3) - vv), 0.0)):  # fmt: skip
        found = np.block([[m, np.full((3, 1), t)], [np.zeros((1, 3)), np.ones((1, 1))]]) @ found
    return torch.from_numpy(found)


def test_color_matrix_is_the_product_of_its_transforms() -> None:
    torch.manual_seed(4)
    c = colors(DRAWN[:40], torch.tensor(0.8))
    m, added = matrix(c)
    for i in range(40):
        torch.testing.assert_close(torch.cat([m[i], added[i]], dim=1), one_by_one(c, i)[:3], atol=1e-12, rtol=0)


def test_colors_move_pixels_by_the_matrix_and_grey_by_its_mean_row() -> None:
    torch.manual_seed(5)
    x = random_images(40, dtype=torch.float64)
    c = colors(x, torch.tensor(0.8))
    got, grey = colored(x, c), colored(x[:, :1], c)
    for i in range(40):
        whole = one_by_one(c, i)
        expected = torch.einsum("ij,jhw->ihw", whole, torch.cat([x[i], torch.ones(1, 16, 16).double()]))[:3]
        torch.testing.assert_close(got[i], expected, atol=1e-12, rtol=0)
        row = whole[:3].mean(0)
        torch.testing.assert_close(grey[i], row[:3].sum() * x[i, :1] + row[3], atol=1e-12, rtol=0)


def test_hue_and_saturation_keep_luma_and_greys() -> None:
    torch.manual_seed(6)
    x, c = random_images(20, dtype=torch.float64), colors(DRAWN[:20], torch.tensor(1.0))
    still = torch.zeros(20, dtype=torch.float64)
    c = c._replace(brightness=still, contrast=still + 1, flip=still + 1)
    got = colored(x, c)
    torch.testing.assert_close(got.mean(1), x.mean(1), atol=1e-12, rtol=0)
    assert float((got - x).abs().amax((1, 2, 3)).min()) > 0.01
    grey = x[:, :1].expand(-1, 3, -1, -1)
    torch.testing.assert_close(colored(grey, c), grey, atol=1e-12, rtol=0)
    turned = colored(x, c._replace(saturation=still + 1))  # a rotation keeps lengths, too
    torch.testing.assert_close(turned.square().sum(1), x.square().sum(1), atol=1e-12, rtol=0)


def test_other_channels_are_refused() -> None:
    with pytest.raises(UserError, match="1 or 3 channels, not 4"):
        Augmentations("bgc")(random_images(2, 4), torch.tensor(0.5))


# -- frequencies, noise, cutout


def test_gains_against_the_papers_loop() -> None:
    torch.manual_seed(7)
    got = gains(DRAWN[:50], torch.tensor(0.6))
    torch.manual_seed(7)
    on, t = torch.rand(50, 4) < 0.6, torch.exp2(torch.randn(50, 4, dtype=torch.float64))
    for n in range(50):
        g = np.ones(4)
        for i in range(4):
            if on[n, i]:
                one = np.ones(4)
                one[i] = float(t[n, i])
                g *= one / math.sqrt((np.array(POWER) * one**2).sum())
        np.testing.assert_allclose(got[n].numpy(), g, rtol=1e-12)


def test_frequencies_against_the_closed_form() -> None:
    g = torch.tensor([[1.0, 2.0, 0.5, 3.0]], dtype=torch.float64)
    i, j = torch.meshgrid(torch.arange(17).double(), torch.arange(12).double(), indexing="ij")
    x = (torch.cos(math.pi * 5 * i / 16) * torch.cos(math.pi * 9 * j / 11))[None, None]

    def answer(w: float) -> float:
        p = [abs(sum(h * np.exp(-1j * w * 2**d * k) for k, h in enumerate(SYM2))) ** 2 / 2 for d in range(3)]
        return float(p[0] * p[1] * p[2] + 2 * p[0] * p[1] * (1 - p[2]) + 0.5 * p[0] * (1 - p[1]) + 3 * (1 - p[0]))

    torch.testing.assert_close(amplified(x, g), answer(math.pi * 5 / 16) * answer(math.pi * 9 / 11) * x, atol=1e-11, rtol=0)


def test_noise_has_a_half_normal_deviation() -> None:
    torch.manual_seed(8)
    e = noisy(torch.zeros(4000, 3, 16, 16), torch.tensor(0.5)).flatten(1).std(1)
    assert share(e > 0) == pytest.approx(0.5, abs=0.03)
    s = e[e > 0]
    assert float(s.mean()) == pytest.approx(0.1 * math.sqrt(2 / math.pi), abs=0.004) and float(s.square().mean()) == pytest.approx(0.01, abs=0.001)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (28, 20)])
def test_cutout_is_a_box_of_half_the_sides_with_its_center_anywhere(height: int, width: int) -> None:
    torch.manual_seed(9)
    hole = cut(torch.ones(8000, 1, height, width), torch.tensor(0.5))[:, 0] == 0
    assert share(hole.any(2).any(1)) == pytest.approx(0.5, abs=0.02)
    hole = hole[hole.any(2).any(1)]
    rows, columns = hole.any(2), hole.any(1)
    assert torch.equal(hole, rows[:, :, None] & columns[:, None, :])
    for line, side in ((rows, height), (columns, width)):
        sizes = line.sum(1)
        assert int(sizes.max()) == side // 2 and int(sizes.min()) == side // 4  # a center at the border leaves half of the box
        inside = line[:, side // 2]
        assert share(inside) == pytest.approx(0.5, abs=0.04)
        assert share(line[:, 0]) == pytest.approx(0.25, abs=0.04) and share(line[:, -1]) == pytest.approx(0.25, abs=0.04)


# -- all together


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 28, 28), (3, 32, 32), (3, 16, 24), (1, 64, 48)])
def test_nothing_happens_at_zero(groups: Groups, channels: int, height: int, width: int) -> None:
    """Geometry, too: the two filters undo each other."""
    x = random_images(4, channels, height, width)
    got = Augmentations(groups)(x, torch.tensor(0.0))
    torch.testing.assert_close(got, x, atol=1e-5, rtol=0)
    if groups == "b":
        assert torch.equal(got, x)


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 28, 28), (3, 16, 24)])
def test_everything_moves_at_one_and_each_sample_by_itself(groups: Groups, channels: int, height: int, width: int) -> None:
    torch.manual_seed(10)
    x = random_images(1, channels, height, width).expand(64, -1, -1, -1)
    got = Augmentations(groups)(x, torch.tensor(1.0))
    assert got.shape == x.shape and bool(torch.isfinite(got).all())
    moved = (got - x).abs().amax((1, 2, 3)) > 0.01
    assert share(moved) == 1.0 if groups != "b" else share(moved) > 0.9  # a blit may be none: 1 in 8 times a small shift's chance
    if groups != "b":
        assert len({tuple(im.flatten().tolist()) for im in got}) == 64


def test_randomness_is_the_global_generators() -> None:
    x, aug = random_images(), Augmentations("bgcfnc")
    torch.manual_seed(11)
    a = aug(x, torch.tensor(0.7))
    b = aug(x, torch.tensor(0.7))
    torch.manual_seed(11)
    assert torch.equal(aug(x, torch.tensor(0.7)), a) and not torch.equal(a, b)


def test_share_of_changed_images_rises_with_p() -> None:
    torch.manual_seed(12)
    x = random_images(1, 3, 8, 8).expand(3000, -1, -1, -1)
    for p in (0.1, 0.5):
        same = share((Augmentations("bg")(x, torch.tensor(p)) - x).abs().amax((1, 2, 3)) < 1e-4)
        flips, turns, shift = 1 - p / 2, 1 - 3 * p / 4, 1 - p * 0.75  # of 8 pixels: a shift U(-1, 1) rounds to 0 in half of the cases, twice
        assert same == pytest.approx(flips * turns * shift * (1 - p) ** 4, abs=0.03)


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("channels", [1, 3])
def test_gradients_and_their_gradients(groups: Groups, channels: int) -> None:
    """R1 differentiates D(T(x)) twice."""
    x, aug = random_images(2, channels, 5, 4, torch.float64).requires_grad_(), Augmentations(groups)

    def f(x: Tensor) -> Tensor:
        torch.manual_seed(13)
        return aug(x, torch.tensor(0.9))

    assert torch.autograd.gradcheck(f, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x: f(x).sin() * f(x.square()), x, fast_mode=True)


def test_penalty_through_the_augmentation_is_that_of_the_unaugmented_image() -> None:
    """D(x) = |x|^2 / 2 sees T(x) = A x + a: grad = A^T T(x), by A's columns one by one."""
    x, aug = random_images(1, 1, 4, 4, torch.float64), Augmentations("bgc")

    def f(x: Tensor) -> Tensor:
        torch.manual_seed(14)
        return aug(x, torch.tensor(1.0))

    base = f(torch.zeros_like(x))
    a = torch.stack([(f(e.view(1, 1, 4, 4)) - base).flatten() for e in torch.eye(16, dtype=torch.float64)], dim=1)
    x.requires_grad_()
    (grad,) = torch.autograd.grad(f(x).square().sum() / 2, x, create_graph=True)
    torch.testing.assert_close(grad.flatten(), a.t() @ f(x).flatten(), atol=1e-10, rtol=0)
    (second,) = torch.autograd.grad(grad.square().sum() / 2, x)
    torch.testing.assert_close(second.flatten(), a.t() @ a @ grad.flatten(), atol=1e-10, rtol=0)


@pytest.mark.parametrize("groups", GROUPS)
def test_math_is_in_float32_under_autocast(groups: Groups) -> None:
    x, aug = random_images(), Augmentations(groups)
    torch.manual_seed(15)
    plain = aug(x, torch.tensor(0.8))
    torch.manual_seed(15)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(aug(x, torch.tensor(0.8)), plain)
        torch.manual_seed(15)
        half = aug(x.bfloat16(), torch.tensor(0.8))
    assert half.dtype == torch.bfloat16
    torch.manual_seed(15)
    torch.testing.assert_close(half, aug(x.bfloat16().float(), torch.tensor(0.8)).bfloat16(), atol=0, rtol=0)


def test_there_is_no_state() -> None:
    aug = Augmentations("bgcfnc")
    assert not list(aug.parameters()) and not list(aug.buffers())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("groups", GROUPS)
def test_on_a_gpu_as_on_the_processor_though_training_multiplies_in_tf32(groups: Groups) -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        x, aug = random_images(4, 3, 32, 32).cuda(), Augmentations(groups)
        torch.testing.assert_close(aug(x, torch.tensor(0.0, device="cuda")), x, atol=2e-5, rtol=0)
        linear, offset = inverse(*some(4))
        on, off = (resampled(x.to(d), linear.to(d, torch.float32), offset.to(d, torch.float32)).cpu() for d in ("cuda", "cpu"))
        torch.testing.assert_close(on, off, atol=2e-4, rtol=0)
        y = random_images(2, 3, 5, 4, torch.float64).cuda().requires_grad_()

        def f(y: Tensor) -> Tensor:
            torch.manual_seed(0)
            return aug(y, torch.tensor(0.9, device="cuda"))

        assert torch.autograd.gradgradcheck(lambda y: f(y).square(), y, nondet_tol=1e-10)
    finally:
        torch.set_float32_matmul_precision(before)
