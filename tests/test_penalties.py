"""Penalties against slow loops over samples and pixels, written from the papers, in float64; their gradients, and the gradients of these."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pixelkiln.core.types import ImageShape
from pixelkiln.nets.dcgan import DCGANNets, Generator
from pixelkiln.nets.resgan import ResNets, res_nets
from pixelkiln.objectives.game import matrices
from pixelkiln.objectives.penalties import changed, difference_penalty, gradient_penalty, orthogonal, squared_gradient

SHAPE, UNITS = (2, 3, 2), 5
Weights = tuple[Tensor, Tensor, Tensor]


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def num(x: Tensor) -> float:
    return float(x.detach())


def weights() -> Weights:
    """Of D(x) = c . tanh(A x + b)."""
    made = (0.4 * rand(UNITS, 12, seed=1), 0.3 * rand(UNITS, seed=2), rand(UNITS, seed=3))
    return tuple(w.requires_grad_() for w in made)  # type: ignore[return-value]


def judge(w: Weights) -> Callable[[Tensor], Tensor]:
    a, b, c = w
    return lambda x: (x.flatten(1) @ a.t() + b).tanh() @ c


def slope(w: Weights, x: Tensor) -> list[Tensor]:
    """dD/dx of one image (C, H, W), pixel by pixel, by the chain rule on paper: sum_k c_k (1 - tanh^2(a_k . x + b_k)) a_kj."""
    a, b, c = w
    flat, found = x.reshape(-1), []
    inner = [sum((a[k, j] * flat[j] for j in range(len(flat))), b[k]) for k in range(UNITS)]
    for j in range(len(flat)):
        found.append(sum((c[k] * (1 - inner[k].tanh() ** 2) * a[k, j] for k in range(UNITS)), torch.zeros((), dtype=torch.float64)))
    return found


def slow_squared(w: Weights, x: Tensor) -> Tensor:
    """(1 / n) sum over images of the sum over pixels of (dD/dx)^2."""
    return sum((g**2 for image in x for g in slope(w, image)), torch.zeros(())) / len(x)


def slow_penalty(w: Weights, real: Tensor, fake: Tensor, a: Tensor) -> Tensor:
    """(1 / n) sum over images of (|dD/du| - 1)^2 at u_i = a_i x_i + (1 - a_i) y_i, the norm over all pixels of that image."""
    total = torch.zeros(())
    for i in range(len(real)):
        square = sum((g**2 for g in slope(w, a[i] * real[i] + (1 - a[i]) * fake[i])), torch.zeros(()))
        total = total + (square.sqrt() - 1) ** 2
    return total / len(real)


def seeded(w: Weights, real: Tensor, fake: Tensor) -> Tensor:
    torch.manual_seed(7)
    return gradient_penalty(judge(w), real, fake)


def same_with_gradients(found: Tensor, expected: Tensor, w: Weights) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    pairs = [torch.autograd.grad(loss, w, retain_graph=True, allow_unused=True) for loss in (found, expected)]
    for mine, slow in zip(*pairs, strict=True):
        torch.testing.assert_close(mine, slow, rtol=1e-8, atol=1e-9)


def test_r1_is_a_mean_over_images_of_a_sum_over_pixels() -> None:
    w, x = weights(), rand(4, *SHAPE, seed=5)
    same_with_gradients(squared_gradient(judge(w), x), slow_squared(w, x), w)
    ones = squared_gradient(lambda x: x.flatten(1).sum(1), torch.zeros(3, 3, 8, 8))
    assert num(ones) == 3 * 8 * 8  # a mean over pixels would say 1, a norm over channels 3


def test_the_wasserstein_penalty_is_that_of_every_image_by_itself() -> None:
    w, real, fake = weights(), rand(4, *SHAPE, seed=5), rand(4, *SHAPE, seed=6)
    found = seeded(w, real, fake)
    torch.manual_seed(7)
    a = torch.rand(4, 1, 1, 1).double()
    same_with_gradients(found, slow_penalty(w, real, fake, a), w)


def test_neither_the_norm_of_the_batch_nor_that_over_channels() -> None:
    """D = |x|^2 / 2 has the gradient x: images of norms 3 and 0.5 cost ((3 - 1)^2 + (0.5 - 1)^2) / 2."""
    x = torch.zeros(2, 2, 1, 2)
    x[0], x[1, 0, 0, 0] = 1.5, 0.5
    norms = x.flatten(1).norm(dim=1)
    assert norms.tolist() == [3.0, 0.5]
    assert num(gradient_penalty(lambda x: x.flatten(1).square().sum(1) / 2, x, x)) == pytest.approx((4 + 0.25) / 2)
    for wrong in ((x.norm() - 1) ** 2, (x.norm(dim=1) - 1).square().mean()):  # PyTorch-GAN's kind, and that over channels
        assert abs(num(wrong) - 2.125) > 0.3


def test_every_image_has_its_own_place_between_real_and_generated() -> None:
    seen: list[Tensor] = []

    def watching(x: Tensor) -> Tensor:
        seen.append(x.detach())
        return x.flatten(1).sum(1)

    gradient_penalty(watching, torch.ones(500, *SHAPE), torch.zeros(500, *SHAPE))
    (u,) = seen
    assert torch.equal(u, u[:, :1, :1, :1].expand_as(u))  # one number for all pixels of an image
    a = u[:, 0, 0, 0]
    assert len(a.unique()) > 490 and 0 <= num(a.min()) < 0.02 and 0.98 < num(a.max()) <= 1 and num(a.mean()) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("penalty", ["gradient", "r1"])
def test_a_flat_discriminator_gives_no_nan(penalty: str) -> None:
    w = torch.zeros(12, requires_grad=True)
    x = torch.randn(3, *SHAPE)
    critic = lambda x: x.flatten(1) @ w
    loss = gradient_penalty(critic, x, -x) if penalty == "gradient" else squared_gradient(critic, x)
    loss.backward()
    assert num(loss.detach()) == pytest.approx(1.0 if penalty == "gradient" else 0.0, abs=1e-5)
    assert w.grad is not None and bool(torch.isfinite(w.grad).all())


def test_first_and_second_gradients_are_those_of_finite_differences() -> None:
    x, y = rand(3, *SHAPE, seed=5), rand(3, *SHAPE, seed=6)

    def noisy(*w: Tensor) -> Tensor:
        torch.manual_seed(7)
        return difference_penalty(judge(w), x, 0.3)  # type: ignore[arg-type]

    functions = (lambda *w: squared_gradient(judge(w), x), lambda *w: seeded(w, x, y), noisy, lambda *w: changed(judge(w)(x), judge(w)(y)), lambda *w: orthogonal(w[:1]))
    for f in functions:
        assert torch.autograd.gradcheck(f, weights())
        assert torch.autograd.gradgradcheck(f, weights())


def test_differences_agree_with_second_derivatives() -> None:
    w, x = weights(), rand(4, *SHAPE, seed=5)
    torch.manual_seed(0)
    found = torch.stack([difference_penalty(judge(w), x, 1e-3) for _ in range(4000)])
    expected = num(squared_gradient(judge(w), x))
    assert num(found.mean()) == pytest.approx(expected, abs=4 * num(found.std()) / 4000**0.5)
    assert num(found.std()) / 4000**0.5 < 0.03 * expected


def test_orthogonal_is_the_sum_over_pairs_of_rows() -> None:
    w, v, tall = rand(3, 2, 2, 1, seed=1).requires_grad_(), rand(2, 5, seed=2).requires_grad_(), rand(7, 3, seed=3).requires_grad_()
    slow = torch.zeros((), dtype=torch.float64)
    for matrix in (w.reshape(3, 4), v, tall):
        for i in range(len(matrix)):
            for j in range(len(matrix)):
                if i != j:
                    slow = slow + sum(matrix[i, k] * matrix[j, k] for k in range(matrix.shape[1])) ** 2
    found = orthogonal([w, v, tall])
    torch.testing.assert_close(found, slow)
    for matrix, grad in zip((v, tall), torch.autograd.grad(found, (v, tall)), strict=True):
        by_hand = (matrix @ matrix.t() * (1 - torch.eye(len(matrix)))) @ matrix
        torch.testing.assert_close(grad, 4 * by_hand)  # BigGAN's program adds 2 of them: its 1e-4 is 5e-5 here
    assert num(orthogonal([5 * torch.eye(4)])) == 0, "rows may have any length"


def test_rows_of_a_transposed_convolution_are_its_outputs() -> None:
    net = nn.Sequential(nn.Conv2d(3, 5, 2), nn.ConvTranspose2d(5, 7, 4), nn.Linear(7, 2), nn.Embedding(9, 4), nn.BatchNorm2d(3))
    assert [w.shape[0] for w in matrices(net)] == [5, 7, 2]
    up = nn.ConvTranspose2d(2, 2, 1, bias=False)
    with torch.no_grad():
        up.weight.copy_(torch.tensor([[3.0, 0.0], [4.0, 5.0]])[:, :, None, None])  # in, out: outputs (3, 4) and (0, 5)
    assert num(orthogonal(matrices(up))) == 2 * 20**2


def test_embeddings_are_not_pushed_to_be_orthogonal_whatever_they_are() -> None:
    """A table, and the maps of one-hot labels in conditional norms; the maps of an embedding are weights as others (BigGAN)."""
    per_norm = [m.shape for m in matrices(Generator(ImageShape(1, 16, 16), 4, 10, DCGANNets(4, 4, condition="projection")))]
    assert len(per_norm) == 3 and not any(tuple(s) == (8, 10) or tuple(s) == (4, 10) for s in per_norm)
    for shared, extra in ((0, 0), (6, 2 * 2 * 2)):
        net, _ = res_nets(ImageShape(1, 16, 16), 4, 10, ResNets(4, 4, shared=shared))
        plain, _ = res_nets(ImageShape(1, 16, 16), 4, 0, ResNets(4, 4))
        assert len(matrices(net)) == len(matrices(plain)) + extra


def test_consistency_is_a_squared_difference_of_answers() -> None:
    a, b = rand(6, seed=1), rand(6, seed=2)
    assert num(changed(a, b)) == pytest.approx(sum((num(x) - num(y)) ** 2 for x, y in zip(a, b, strict=True)) / 6)


def test_penalties_are_at_least_fp32() -> None:
    """R2 meets images that a generator made in bf16, outside autocast."""
    w = torch.randn(12, requires_grad=True)
    x = torch.randn(3, *SHAPE, dtype=torch.bfloat16)
    critic = lambda x: x.flatten(1) @ w
    for loss in (squared_gradient(critic, x), gradient_penalty(critic, x, x), difference_penalty(critic, x, 0.1), orthogonal([w.bfloat16().view(3, 4)])):
        assert loss.dtype == torch.float32
    assert num(squared_gradient(critic, x)) == pytest.approx(num(w.square().sum()), rel=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        matrix = torch.randn(64, 64)
        gram = matrix.double() @ matrix.double().t()
        assert num(orthogonal([matrix])) == pytest.approx(num((gram - gram.diagonal().diag()).square().sum()), rel=1e-5)
