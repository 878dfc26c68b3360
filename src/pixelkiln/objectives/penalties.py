"""What keeps a discriminator smooth: penalties on its gradient, on its weights, and on its answers to changed images.

D is a callable x (B, C, H, W) -> logits (B,). Every penalty is a scalar, a mean over the batch, in fp32 at least, that can be differentiated by D's weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from .adversarial import wide

__all__ = ["Critic", "changed", "difference_penalty", "gradient_penalty", "input_gradients", "orthogonal", "squared_gradient"]

Critic = Callable[[Tensor], Tensor]


def input_gradients(critic: Critic, x: Tensor) -> Tensor:
    """d D(x_i) / d x_i of every image by itself, (B, C, H, W), with a graph to the weights.

    Computed without autocast's narrow types only if the caller switches autocast off; the sum over the batch is what is differentiated, since
    image i reaches logit i alone (`rules.suited` refuses a BatchNorm in D, which would break it).
    """
    x = wide(x.detach()).requires_grad_()
    (grad,) = torch.autograd.grad(wide(critic(x)).sum(), x, create_graph=True)
    return wide(grad)


def squared_gradient(critic: Critic, x: Tensor) -> Tensor:
    """E[ |grad D(x)|^2 ], the sum over C, H, W: R1 on real images, R2 on generated ones, without the factor gamma / 2.

    Mescheder et al. 2018, arXiv 1801.04406, eq. 9 and 10.
    """
    return input_gradients(critic, x).square().flatten(1).sum(1).mean()


def difference_penalty(critic: Critic, x: Tensor, sigma: float) -> Tensor:
    """The same by a random difference, E[ (D(x + sigma e) - D(x))^2 ] / sigma^2, e ~ N(0, I): no second derivatives, so that it compiles.

    Its mean over e is |grad D(x)|^2 + O(sigma^2). Lin et al. 2025, arXiv 2501.08316, section 3.3 (there without the division). The two answers
    must differ by e alone: a D that draws random numbers of its own (augmentation, dropout) has no place here.
    """
    x = wide(x)
    here, there = wide(critic(torch.cat([x, x + sigma * torch.randn_like(x)]))).chunk(2)
    return (there - here).square().mean() / sigma**2


def gradient_penalty(critic: Critic, real: Tensor, fake: Tensor) -> Tensor:
    """E[ (|grad D(u)| - 1)^2 ] at u = a x + (1 - a) G(z), a ~ U(0, 1) of each sample; the norm is that of a sample, over C, H, W together.

    Gulrajani et al. 2017, arXiv 1704.00028, eq. 3, without the factor lambda.
    """
    a = torch.rand(len(real), 1, 1, 1, device=real.device)
    grads = input_gradients(critic, a * real + (1 - a) * fake)
    norms = (grads.square().flatten(1).sum(1) + 1e-12).sqrt()  # at zero the root's slope is infinite
    return (norms - 1).square().mean()


def orthogonal(weights: Iterable[Tensor]) -> Tensor:
    """The sum over weights W (out, ...) of |(W W^T) * (1 - I)|^2: rows should be orthogonal, of any length.

    Brock et al. 2019, arXiv 1809.11096, eq. 3, without the factor beta. Its gradient is 4 ((W W^T) * (1 - I)) W; the authors' program adds half
    of it, so that its beta of 1e-4 is 5e-5 here. Of a weight with more rows than columns the smaller product is taken, as |W W^T| = |W^T W|: then it is
    |W^T W|^2 less the fourth powers of the rows' lengths (which nearly cancel only where rows are orthogonal, as so many cannot be).
    """
    total = torch.zeros(())
    for w in weights:
        with torch.autocast(w.device.type, enabled=False):
            rows = wide(w).flatten(1)
            tall = rows.shape[0] > rows.shape[1]
            gram = rows.t() @ rows if tall else rows @ rows.t()
        if tall:
            total = total.to(gram) + gram.square().sum() - rows.square().sum(1).square().sum()
        else:
            total = total.to(gram) + (gram - torch.diag(gram.diagonal())).square().sum()
    return total


def changed(logits: Tensor, others: Tensor) -> Tensor:
    """E[ (D(x) - D(T(x)))^2 ]: D should not mind the change T. Zhang et al. 2020, arXiv 1910.12027, eq. 5; Zhao et al. 2021, arXiv 2002.04724, for
    generated images, too (bCR)."""
    return (wide(logits) - wide(others)).square().mean()
