"""The residual generators and discriminators of SNGAN, SAGAN and BigGAN. n images, C channels, H x W pixels, d latent, K classes, k halvings.

G: a linear layer to a small grid, then blocks that double it: norm, ReLU, up, conv, norm, ReLU, conv, beside a shortcut up, 1 x 1 conv.
D: blocks that halve: ReLU, conv, ReLU, conv, pool, beside a shortcut pool, 1 x 1 conv; then the sum over pixels of ReLU.
(Miyato et al. 2018, arXiv 1802.05957, appendix B.4; Brock et al. 2019, arXiv 1809.11096, appendix B.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.types import ImageShape, UserError
from ..layers.attention import PooledAttention2d
from ..layers.batchnorm import ConditionalBatchNorm
from ..layers.resample import DownConv2d, UpConv2d, doubled
from ..layers.spectral import spectral
from .dcgan import stem
from .judge import Condition, Judge, planes

__all__ = ["ResGenerator", "ResNets", "ResTrunk", "res_nets"]

Layer = TypeVar("Layer", bound=nn.Module)


@dataclass(frozen=True)
class ResNets:
    """Residual blocks on both sides."""

    g_width: int = 64  # generator's channels at full resolution
    d_width: int = 64  # discriminator's after its first halving
    growth: int = 1  # channels double with each halving, up to so many times the width: 1 is SNGAN's plan for CIFAR-10, 16 that for ImageNet
    d_grid: int = 8  # D halves while its shorter side is above this
    d_rest: int = 2  # blocks of D behind the last halving
    wide: bool = False  # D's blocks widen at their first convolution, not at the second
    attention: tuple[int, ...] = ()  # sides at which self-attention stands; each means the largest side that occurs up to it
    g_spectral: bool = False  # spectral norms in G (never around what embeds a label)
    d_spectral: bool = True  # ... and in D
    split: bool = False  # z in equal parts, one for the first layer and one for each block's norms
    shared: int = 0  # dimensions of one embedding of the label for all norms of G; 0: each norm has its own
    init: Literal["xavier", "orthogonal"] = "xavier"
    condition: Condition = "projection"  # how D takes the label; G's norms take it unless this is none


def made(layer: Layer, config: ResNets, spectrally: bool) -> Layer:
    """The layer with its first weights, xavier (times sqrt 2 for 3 x 3 convolutions, which follow a ReLU) or orthogonal, bias 0, and its norm."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if config.init == "orthogonal":
        nn.init.orthogonal_(weight)
    else:
        nn.init.xavier_uniform_(weight, 2**0.5 if weight.shape[2:].numel() > 1 else 1.0)
    if isinstance(bias := getattr(layer, "bias", None), Tensor):
        nn.init.zeros_(bias)
    return spectral(layer) if spectrally else layer


def widths(width: int, growth: int, num: int) -> list[int]:
    """Channels at the highest resolution, at half of it, ..."""
    return [width * min(2**i, growth) for i in range(num)]


def levels(sides: Sequence[int], asked: Sequence[int]) -> set[int]:
    """Where among these falling sides attention stands. Raises `UserError` where none is small enough."""
    for side in asked:
        if side < sides[-1]:
            raise UserError(f"model.nets.attention {side}: there is no side so small; these networks pass {', '.join(map(str, sides))}")
    return {next(i for i, s in enumerate(sides) if s <= side) for side in asked}


# -- generator


@final
class UpBlock(nn.Module):
    """x -> conv(relu(norm(conv(up(relu(norm(x))))))) + conv1(up(x)). A 1 x 1 convolution may as well come before the doubling, and is cheaper there."""

    def __init__(self, ins: int, outs: int, norm: Callable[[int], nn.Module], wrap: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(ins), norm(outs)
        self.conv1, self.conv2 = wrap(UpConv2d(ins, outs)), wrap(nn.Conv2d(outs, outs, 3, padding=1))
        self.short = wrap(nn.Conv2d(ins, outs, 1))

    def forward(self, x: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        """x (n, C_in, H, W), args the vector of conditional norms if they are -> (n, C_out, 2H, 2W)."""
        h = self.conv1(F.relu(self.norm1(x, *args)))
        h = self.conv2(F.relu(self.norm2(h, *args)))
        return h + doubled(self.short(x))


@final
class ResGenerator(nn.Module):
    """z (n, d) -> images (n, C, H, W) in [-1, 1].

    Each block's norms are conditional on [the label's vector, the block's part of z]: the label as a one-hot vector, or by the shared embedding.
    """

    def __init__(self, shape: ImageShape, latent: int, classes: int, config: ResNets) -> None:
        super().__init__()
        h, w, k = stem(shape)
        c = widths(config.g_width, config.growth, k + 1)
        self.parts = k + 1 if config.split else 1
        if latent % self.parts:
            low = latent // self.parts * self.parts
            near = " or ".join(str(n) for n in (low, low + self.parts) if n)
            raise UserError(f"model.latent {latent} does not split into {self.parts} equal parts, for the first layer and {k} blocks: set it to {near}")
        part = latent // self.parts
        self.grid, self.classes = (h, w, c[k]), classes
        self.embed = made(nn.Embedding(classes, config.shared), config, False) if classes and config.shared else None
        dim = (config.shared or classes if classes else 0) + (part if config.split else 0)
        embeds = classes > 0 and not config.shared  # then the norms' own matrices are the embeddings

        def wrap(layer: Layer) -> Layer:
            return made(layer, config, config.g_spectral)

        def norm(channels: int) -> nn.Module:
            if not dim:
                return nn.BatchNorm2d(channels)
            found = ConditionalBatchNorm(channels, dim, embeds)
            if not embeds:
                found.gain, found.shift = wrap(found.gain), wrap(found.shift)
            return found

        self.stem = wrap(nn.Linear(part, h * w * c[k]))
        self.blocks = nn.ModuleList(UpBlock(c[i + 1], c[i], norm, wrap) for i in reversed(range(k)))
        at = levels([shape.height // 2**i for i in range(1, k + 1)], config.attention)  # after the halving i + 1
        self.attention = nn.ModuleDict({str(k - 1 - i): PooledAttention2d(c[i + 1], wrap) for i in sorted(at)})  # before block k - 1 - i
        self.norm, self.out = nn.BatchNorm2d(c[0]), wrap(nn.Conv2d(c[0], shape.channels, 3, padding=1))

    def conditions(self, z: Tensor, label: Tensor | None) -> list[tuple[Tensor, ...]]:
        """The arguments of each block's norms: () or (vector (n, dim),)."""
        parts: Sequence[Tensor | None] = z.chunk(self.parts, dim=1)[1:] if self.parts > 1 else [None] * len(self.blocks)
        who = None
        if self.classes:
            assert label is not None
            who = F.one_hot(label, self.classes).to(z.dtype) if self.embed is None else self.embed(label)
        pairs = [[t for t in (who, part) if t is not None] for part in parts]
        return [(torch.cat(pair, dim=1),) if pair else () for pair in pairs]

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """z (n, d), label (n,) -> x (n, C, H, W)."""
        h = self.stem(z.chunk(self.parts, dim=1)[0]).unflatten(1, self.grid).permute(0, 3, 1, 2)  # (n, top, h, w), already channels last
        for i, (block, args) in enumerate(zip(self.blocks, self.conditions(z, label), strict=True)):
            if str(i) in self.attention:
                h = self.attention[str(i)](h)
            h = block(h, args)
        x: Tensor = self.out(F.relu(self.norm(h))).tanh()
        return x


# -- discriminator


@final
class DownBlock(nn.Module):
    """x -> pool(conv(relu(conv(relu(x))))) + conv1(pool(x)); without `halve` no pools, and the shortcut is x itself if the widths agree.

    first: no ReLU on the image ("optimized block"). The shortcut gets x, not relu(x): no ReLU here works in place on x.
    """

    def __init__(self, ins: int, outs: int, wrap: Callable[[nn.Module], nn.Module], halve: bool = True, first: bool = False, wide: bool = False) -> None:
        super().__init__()
        self.halve, self.first = halve, first
        hidden = outs if wide or first else ins
        self.conv1 = wrap(nn.Conv2d(ins, hidden, 3, padding=1))
        self.conv2 = wrap(DownConv2d(hidden, outs) if halve else nn.Conv2d(hidden, outs, 3, padding=1))
        self.short = wrap(nn.Conv2d(ins, outs, 1)) if halve or ins != outs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """x (n, C_in, H, W) -> (n, C_out, H / 2, W / 2), or of the same sides."""
        h = self.conv1(x if self.first else F.relu(x))
        h = self.conv2(F.relu(h))
        y: Tensor = h + self.short(F.avg_pool2d(x, 2) if self.halve else x)
        return y


@final
class ResTrunk(nn.Module):
    """Images of so many channels -> features (n, F), the sum over pixels of ReLU."""

    def __init__(self, channels: int, shape: ImageShape, config: ResNets, wrap: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        h, w, sides = shape.height, shape.width, list[int]()
        while h % 2 == 0 and w % 2 == 0 and (min(h, w) > config.d_grid or not sides):
            h, w = h // 2, w // 2
            sides.append(h)
        c = widths(config.d_width, config.growth, len(sides))
        at, blocks = levels(sides, config.attention), list[nn.Module]()
        for i, (ins, outs) in enumerate(zip([channels, *c], c, strict=False)):
            blocks.append(DownBlock(ins, outs, wrap, first=i == 0, wide=config.wide))
            if i in at:
                blocks.append(PooledAttention2d(outs, wrap))
        self.blocks = nn.Sequential(*blocks, *(DownBlock(c[-1], c[-1], wrap, halve=False) for _ in range(config.d_rest)))
        self.features = c[-1]

    def forward(self, x: Tensor) -> Tensor:
        """x (n, C, H, W) -> (n, F), at least fp32: a sum of many numbers."""
        h = F.relu(self.blocks(x))
        return h.sum((2, 3), dtype=torch.promote_types(h.dtype, torch.float32))


def res_nets(shape: ImageShape, latent: int, classes: int, config: ResNets) -> tuple[nn.Module, nn.Module]:
    """Generator and discriminator."""
    generator = ResGenerator(shape, latent, classes, config)

    def wrap(layer: nn.Module) -> nn.Module:
        return made(layer, config, config.d_spectral)

    trunk = ResTrunk(shape.channels + planes(config.condition, classes), shape, config, wrap)
    return generator, Judge(trunk, trunk.features, shape, classes, config.condition, wrap)
