"""A recipe is a function that returns plain frozen dataclasses: which method, which data, how long, and which number to expect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .protocols import Method
from .types import UserError

__all__ = ["MACHINES", "DataConfig", "EmaConfig", "Expect", "OptConfig", "Recipe", "Size", "Stage", "TrainConfig", "by_size", "on_mnist"]

Size = Literal["tiny", "small", "base"]


@dataclass(frozen=True)
class DataConfig:
    """How images are prepared. Where they come from is an argument of the command."""

    resolution: int | None = None  # side in pixels, antialiased; default: as the source has it
    at_least: int = 1  # smaller images are enlarged to this side
    multiple: int = 1  # the side is rounded up to a multiple of this
    channels: int | None = None  # 1 (grey) or 3 (RGB); default: as the source has it
    fit: Literal["crop", "letterbox", "pad"] = "crop"  # to a square: its center; all of it on the background; all of it, edges repeated
    background: str = "white"  # below what is transparent, and beside a letterboxed image: a color's name or #rrggbb
    flip: bool = False  # mirror at random, left to right
    crop: float = 1.0  # cut at random to a window with sides of this share at least, enlarged again
    translate: int = 0  # shift at random by up to so many pixels (edge repeated)

    @property
    def moves(self) -> bool:
        """Whether images change at random from one time to the next."""
        return self.flip or self.crop < 1 or self.translate > 0


@dataclass(frozen=True)
class OptConfig:
    """One optimiser. The learning rate at a step is a pure function: warm-up, then the decay to `final` times the rate."""

    kind: Literal["adam", "adamw", "rmsprop", "sgd", "muon"] = "adam"
    adam: tuple[str, ...] = ()  # with muon: parts of the nets whose matrices are Adam's, tables and heads (net.table)
    lr: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float | None = None  # largest gradient norm
    bound: float | None = None  # after each step, weights are cut to [-bound, bound]
    warmup: float = 0.0  # share of all steps in which the rate rises linearly from 0
    decay: Literal["constant", "cosine", "linear"] = "constant"
    final: float = 0.0  # the rate at the end, as a share of lr


@dataclass(frozen=True)
class EmaConfig:
    """Moving average of weights, with which a run samples.

    half-life: exponential, by half-life in images, ramped up: it is at most `ramp` times the images seen (EDM). power: by a power of the time
    (Karras et al. 2024, arXiv 2312.02696), as wide as the share stds[0] of the training; those of all `stds` are written `snapshots` times
    (0: never), so that an average of any width can be made afterwards.
    """

    kind: Literal["half-life", "power"] = "half-life"
    half_life: float = 500_000.0
    ramp: float = 0.05
    stds: tuple[float, ...] = (0.05, 0.1)  # with power
    snapshots: int = 16  # with power


@dataclass(frozen=True)
class TrainConfig:
    """How long and how fast. `steps` is the length unless the command gives a budget."""

    steps: int = 10_000
    batch: int = 128
    accumulate: int = 1  # the batch is split in so many parts, gradients added up
    opts: Mapping[str, OptConfig] = field(default_factory=lambda: {"main": OptConfig()})
    ema: EmaConfig | None = None
    log_every: int = 50
    sample_every: int | None = None  # steps between sample grids of the same seeds; default: ten over the run
    save_every: int | None = None  # steps between checkpoints, besides one every five minutes and at the end


@dataclass(frozen=True)
class Stage:
    """One training of a recipe. `parents` maps a role to the name of an earlier stage, or to "" for a run given by the user."""

    method: type[Method]
    model: Any  # the method's own frozen Config
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    parents: Mapping[str, str] = field(default_factory=dict)
    name: str = "main"


@dataclass(frozen=True)
class Expect:
    """A measured number, with the command and the machine that gave it."""

    metric: str
    value: float
    data: str
    command: str
    hardware: str


MACHINES = {  # where the numbers of the catalog were measured: in words, options of `train`, samples that were scored
    "amx": ("2 cores of a Xeon with AMX, bf16", "", 1000),
    "avx2": ("1 core of an AMD EPYC with AVX2, fp32", " --threads 1", 2000),
    "avx512-bf16": ("1 core of an AMD EPYC with AVX512-BF16, bf16", " --threads 1", 2000),
}


def on_mnist(size: str, recipe: str, budget: str, machine: Literal["amx", "avx2", "avx512-bf16"] = "amx", **scores: float) -> tuple[Expect, ...]:
    """Scores of a recipe's small size on MNIST after so much training on one of `MACHINES`; () for other sizes."""
    where, options, n = MACHINES[machine]
    command = f"pixelkiln train {recipe} --data mnist --out R --budget {budget}{options}; pixelkiln evaluate R -n {n}"
    return tuple(Expect(name, value, "mnist", command, where) for name, value in scores.items()) if size == "small" else ()


@dataclass(frozen=True)
class Recipe:
    """A whole way to a generator. The last stage is the one that samples."""

    stages: tuple[Stage, ...]
    family: str  # vae, gan, diffusion, classical, editing, ...
    paper: str  # authors, title, year, arXiv id
    summary: str  # one line for `pixelkiln list`
    expect: tuple[Expect, ...] = ()  # empty: unmeasured

    @property
    def last(self) -> Stage:
        """The stage that samples."""
        return self.stages[-1]


def by_size(size: str, **choices: Any) -> Any:
    """Pick the value for the size: by_size(size, tiny=..., small=..., base=...)."""
    if size not in choices:
        raise UserError(f"unknown size {size!r}: choose one of {', '.join(choices)}")
    return choices[size]
