"""BigGAN: large batches, a label and parts of z in every block, and truncation (Brock, Donahue, Simonyan 2019, arXiv 1809.11096).

    z = [z_0, z_1, ..., z_k],   block i of G: (1 + A_i c_i) * batchnorm(h) + B_i c_i,   c_i = [e(y), z_i]           section 3 and appendix B
    L_D = E[max(0, 1 - D(x, y))] + E[max(0, 1 + D(G(z, y), y))]
    L_G = -E[D(G(z, y), y)] + beta sum over W of |(W W^T) * (1 - I)|^2                                              eq. 3
    truncation: z ~ N(0, I), numbers beyond the threshold drawn again                                               section 3.1

One embedding e(y) serves all norms of G by linear maps, which save parameters; z enters at every resolution. G's rows are pushed to be orthogonal
without a say in their lengths, so that it also makes images of z that training rarely showed it, as truncation does. eq. 3 is taken as it stands: the
authors' program adds half of its gradient, so that their 1e-4 is 5e-5 here. Weights start orthogonal; spectral norms on both sides, none around e;
attention as SAGAN's; D at 2e-4 and G at 5e-5, Adam with betas (0, 0.999) and eps 1e-6 (the program's), two steps of D for each of G, batches of 2048
of which the gradients are added up in parts; the generator that samples is an average (0.9999 a step) with standing statistics (section 3, appendix C).

Size small, for a short budget, takes 1e-3 for both players and one step of D (MNIST, 4 minutes of one thread: `fd` 34 at 8e-4 and 2e-4, 3.8 so).

z must split evenly over the first layer and the k blocks (k = 2 for 28 pixels, 3 for 32, 4 for 64): 120 does for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import final

from ..core.protocols import Method
from ..core.recipe import Recipe, Size, Stage, by_size, on_mnist
from ..core.types import DataInfo
from ..nets.players import Players, players
from ..nets.resgan import ResNets
from ..objectives.game import Game
from ..objectives.rules import Rules, Setting, adam, data_for, training

__all__ = ["BigGAN", "BigGANConfig", "biggan"]


def nets(width: int, growth: int, attention: int, shared: int, d_grid: int = 8) -> ResNets:
    """BigGAN's choices at these widths."""
    return ResNets(width, width, growth, d_grid, 1, wide=True, attention=(attention,), g_spectral=True, split=True, shared=shared, init="orthogonal")


@dataclass(frozen=True)
class BigGANConfig(Setting):
    """Residual nets with attention, a shared embedding, z in parts, and the hinge loss."""

    nets: Players = nets(96, 16, 32, 128, 4)
    rules: Rules = Rules("hinge", critic_steps=2, orthogonal=1e-4)
    latent: int = 120


@final
class BigGAN(Game):
    """Class-conditional GAN for large batches."""

    def __init__(self, info: DataInfo, config: BigGANConfig, parents: Mapping[str, Method] | None = None) -> None:
        super().__init__(info, config, *players(info, config.latent, config.nets), parents)


def biggan(size: Size = "small") -> Recipe:
    """BigGAN: a shared embedding and parts of z in every block, orthogonal regularisation, truncation. Brock, Donahue, Simonyan 2019, arXiv 1809.11096."""
    model = BigGANConfig(
        nets=by_size(size, tiny=nets(8, 1, 8, 8), small=nets(16, 4, 16, 32), base=nets(96, 16, 32, 128, 4)),
        rules=Rules("hinge", critic_steps=by_size(size, tiny=2, small=1, base=2), orthogonal=1e-4),
        latent=by_size(size, tiny=12, small=120, base=120),
        reference=by_size(size, tiny=64, small=256, base=512),
    )
    d, g = (replace(adam(size, small=small, base=base, betas=(0.0, 0.999)), eps=1e-6) for small, base in ((1e-3, 2e-4), (1e-3, 5e-5)))
    train = training(size, d=d, g=g, batch=2048, steps=100_000, half_life=14_190_000.0, ramp=1.0)  # 0.9999 a step of 2048
    return Recipe(
        stages=(Stage(BigGAN, model, data_for(size), replace(train, accumulate=by_size(size, tiny=1, small=1, base=16))),),
        family="gan",
        paper="Brock, Donahue, Simonyan, Large Scale GAN Training for High Fidelity Natural Image Synthesis, 2019, arXiv 1809.11096",
        summary="labels and parts of z in every block, large batches, orthogonal regularisation, truncation",
        expect=on_mnist(size, "biggan", "2m", "avx512-bf16", fd=7.19),
    )
