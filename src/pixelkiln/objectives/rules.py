"""The rules of an adversarial game as data, and how its recipes train."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..core.recipe import DataConfig, EmaConfig, OptConfig, Size, TrainConfig, by_size
from ..core.types import UserError
from ..layers.ada import Groups
from .adversarial import OBJECTIVES, Name
from .truncation import Truncation

__all__ = ["Rules", "Setting", "adam", "checked", "data_for", "suited", "training"]


@dataclass(frozen=True)
class Rules:
    """What the two networks play by; 0 switches a rule off."""

    objective: Name = "non-saturating"
    critic_steps: int = 1  # of D for each one of G, each with fresh images
    smoothing: float = 0.0  # real images have the target 1 - smoothing
    noise: float = 0.0  # deviation of the noise on all images that D sees, falling in a straight line
    noise_until: float = 0.5  # ... to 0 after this share of the training
    gradient: float = 0.0  # weight lambda of WGAN-GP's penalty
    r1: float = 0.0  # gamma of the penalty on real images; -1: 0.0002 H W / batch (StyleGAN2-ADA's)
    r2: float = 0.0  # ... and on generated ones
    r_end: float = 1.0  # both fall, by a cosine, to this share of themselves
    r_every: int = 1  # steps between two penalties, which then weigh so many times (times critic_steps) more (lazy)
    r_sigma: float = 0.0  # above 0: r1 and r2 by differences at this distance in place of second derivatives
    orthogonal: float = 0.0  # beta, on G's weights
    orthogonal_d: float = 0.0  # ... on D's
    consistency: float = 0.0  # weight of D's answers to shifted real images
    consistency_fake: float = 0.0  # ... and to shifted generated ones
    augment: Literal["none", "diffaugment", "ada"] = "none"
    ada: Groups = "bgc"  # ADA's transforms: b blits, g geometry, c color, f frequencies, n noise, c cutout
    ada_target: float = 0.6  # of the mean sign of D's answers to real images
    ada_speed: float = 500_000.0  # images in which ADA's probability may go from 0 to 1


@dataclass(frozen=True)
class Setting:
    """What the configurations of all families have in common."""

    rules: Rules = Rules()
    latent: int = 128  # dimensions of z
    reference: int = 256  # latents on which the statistics for sampling are measured
    statistics: Literal["standing", "running"] = "standing"  # of BatchNorm, when images are drawn
    truncation: Truncation = "resampled"  # what --truncation means


def checked(rules: Rules) -> Rules:
    """The rules, if they go together. Raises `UserError`."""
    objective = OBJECTIVES[rules.objective]
    if rules.smoothing and not objective.smooths:
        raise UserError(f"model.rules.smoothing: {rules.objective} has no target to smooth; set it to 0, or take non-saturating or least-squares")
    for f in fields(rules):
        value: Any = getattr(rules, f.name)
        if isinstance(value, (int, float)) and value < 0 and not (f.name in ("r1", "r2") and value == -1):
            raise UserError(f"model.rules.{f.name} is {value}: it must not be negative")
    if rules.critic_steps < 1 or rules.r_every < 1:
        raise UserError("model.rules: critic_steps and r_every are at least 1")
    if rules.ada_speed == 0:
        raise UserError("model.rules.ada_speed: the images in which ADA's probability may go from 0 to 1; give more than 0")
    return rules


def suited(rules: Rules, discriminator: nn.Module) -> nn.Module:
    """The discriminator, if these rules make sense for it. Raises `UserError`."""
    penalties = [name for name in ("gradient", "r1", "r2") if getattr(rules, name)]
    if penalties and any(isinstance(m, _BatchNorm) for m in discriminator.modules()):
        raise UserError(
            f"model.rules.{penalties[0]} is a penalty on each image's own gradient, and BatchNorm in the discriminator mixes the images of a batch: "
            "give --model.nets.norm layer (or spectral, or none)"
        )
    if rules.r_sigma and penalties and any(isinstance(m, nn.Dropout) and m.p for m in discriminator.modules()):
        raise UserError("model.rules.r_sigma compares two answers of the discriminator, which dropout makes different by itself: give --model.nets.dropout 0")
    return discriminator


def adam(size: Size, *, small: float, base: float, betas: tuple[float, float]) -> OptConfig:
    """Adam at the paper's rate in base, and at one for a short budget in small."""
    return OptConfig("adam", lr=by_size(size, tiny=base, small=small, base=base), betas=betas)


def data_for(size: Size) -> DataConfig:
    """Sides that convolutional nets can halve; 64 pixels in base."""
    found: DataConfig = by_size(size, tiny=DataConfig(resolution=16), small=DataConfig(at_least=16, multiple=4), base=DataConfig(resolution=64))
    return found


def training(size: Size, *, d: OptConfig, g: OptConfig, batch: int = 128, steps: int = 50_000, half_life: float = 20_000.0,
             ramp: float = 0.02) -> TrainConfig:
    """How a family trains: tiny and small are the same for all, so that they can be compared; the arguments are those of base, and the rates."""
    return TrainConfig(
        steps=by_size(size, tiny=200, small=10_000, base=steps),
        batch=by_size(size, tiny=32, small=64, base=batch),
        opts={"d": d, "g": g},
        ema=EmaConfig(half_life=by_size(size, tiny=20_000.0, small=20_000.0, base=half_life), ramp=by_size(size, tiny=0.02, small=0.02, base=ramp)),
    )
