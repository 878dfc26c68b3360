"""Any quantizer from its configuration. L codes a position: `residual` of them in each of `groups` groups of channels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ..core.types import UserError
from ..layers.codebooks import VQ, SimVQ
from ..layers.quantize import Quantized, Quantizer
from ..layers.scalar import FSQ, LFQ
from ..layers.stacked import Grouped, Residual

__all__ = ["CodebookConfig", "FSQConfig", "LFQConfig", "Quantized", "Quantizer", "SimVQConfig", "VQConfig", "codebook"]


@dataclass(frozen=True)
class VQConfig:
    """A codebook of vectors, learned by moving averages or by its own loss."""

    codes: int = 512
    learn: Literal["ema", "loss"] = "ema"
    decay: float = 0.99  # of the averages
    commitment: float = 0.25
    gradient: Literal["straight-through", "rotation"] = "straight-through"
    cosine: bool = False  # vectors and codes of length 1
    dead: float = 0.03  # a code taken less often than this share of an equal share begins anew; 0: never


@dataclass(frozen=True)
class SimVQConfig:
    """A fixed codebook behind a trained linear map."""

    codes: int = 1024
    commitment: float = 0.25
    gradient: Literal["straight-through", "rotation"] = "straight-through"


@dataclass(frozen=True)
class FSQConfig:
    """A few channels, each rounded to one of so many values: 8 x 5 x 5 x 5 = 1,000 codes."""

    values: tuple[int, ...] = (8, 5, 5, 5)


@dataclass(frozen=True)
class LFQConfig:
    """Signs of a few channels, 2^bits codes."""

    bits: int = 10
    entropy: float = 0.1
    gamma: float = 1.0  # of the entropy of the mean
    tau: float = 1.0  # temperature of the entropies
    commitment: float = 0.25


CodebookConfig = VQConfig | SimVQConfig | FSQConfig | LFQConfig


def codebook(config: CodebookConfig, dim: int, residual: int = 1, groups: int = 1) -> Quantizer:
    """The quantizer of maps of `dim` channels. UserError for numbers that make none."""
    _check(config, dim, residual, groups)

    def one(dim: int) -> Quantizer:
        match config:
            case VQConfig():
                return VQ(dim, config.codes, learn=config.learn, decay=config.decay, commitment=config.commitment, gradient=config.gradient,
                          cosine=config.cosine, dead=config.dead)
            case SimVQConfig():
                return SimVQ(dim, config.codes, commitment=config.commitment, gradient=config.gradient)
            case FSQConfig():
                return FSQ(dim, config.values)
            case LFQConfig():
                return LFQ(dim, config.bits, entropy=config.entropy, gamma=config.gamma, tau=config.tau, commitment=config.commitment)

    return _stack(Grouped, groups, lambda: _stack(Residual, residual, lambda: one(dim // groups)))


def _stack(kind: Callable[[list[Quantizer]], Quantizer], num: int, make: Callable[[], Quantizer]) -> Quantizer:
    """`num` quantizers as one; one alone as it is."""
    return make() if num == 1 else kind([make() for _ in range(num)])


def _check(config: CodebookConfig, dim: int, residual: int, groups: int) -> None:
    """Refuse what cannot be, before anything is built."""
    if min(residual, groups, dim) < 1 or dim % groups:
        raise UserError(f"--model.residual {residual} and --model.groups {groups} must be 1 or more, and the groups divide --model.dim {dim}")
    match config:
        case VQConfig() | SimVQConfig():
            if config.codes < 2:
                raise UserError(f"--model.codebook.codes is {config.codes}: a codebook has 2 codes or more")
            if isinstance(config, VQConfig) and not 0 < config.decay < 1:
                raise UserError(f"--model.codebook.decay is {config.decay}: give a number between 0 and 1")
        case FSQConfig():
            if not config.values or min(config.values) < 2:
                raise UserError(f"--model.codebook.values {','.join(map(str, config.values))}: each channel has 2 values or more")
        case LFQConfig():
            if not 1 <= config.bits <= 20:
                raise UserError(f"--model.codebook.bits is {config.bits}: give 1 to 20")
