"""What a method is, and the small things that it may be able to do. Every class here is an interface; a method is final."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .types import Ability, Batch, Condition, DataInfo, ImageShape, Moment, Request, UserError

__all__ = ["Classifier", "Codec", "Denoiser", "Fit", "Latent", "Likelihood", "Method", "Posterior", "Score", "Tokenizer", "Update"]


@dataclass(frozen=True)
class Update:
    """One row that the loop executes: minimise `loss(batch, moment)["loss"]` over the parameters of `nets`; freeze every other net.

    nets: names of submodules of the method. opt: name of the optimiser; rows that share it share its moments.
    every: run at steps divisible by it. repeat: times in a row. fresh: draw a new batch each time, or take the last row's again.
    The loss returns a mapping with the scalar "loss" (a mean over the batch) and any other scalars to be logged.
    """

    name: str
    nets: tuple[str, ...]
    loss: Callable[[Batch, Moment], Mapping[str, Tensor]]
    opt: str
    every: int = 1
    repeat: int = 1
    fresh: bool = True


@dataclass(frozen=True)
class Fit:
    """Closed form or EM: `run(passes)` gets a function that yields one ordered pass over the training images, and returns scalars to log."""

    name: str
    nets: tuple[str, ...]
    run: Callable[[Callable[[], Iterable[Batch]]], Mapping[str, float]]


class Method(nn.Module, ABC):
    """A generator of images: it owns networks, says which updates train them, and can sample.

    Submodules assigned in the constructor are its nets. State that matters is a buffer. `parents` are trained methods, frozen and
    not part of the state. `averaged` names the nets of which the engine keeps an exponential moving average for sampling.
    """

    abilities: frozenset[Ability] = frozenset()
    averaged: tuple[str, ...] = ()
    roles: Mapping[str, type] = {}  # parent's role -> the protocol that it must have
    still: bool = False  # True: it keeps what it made of each training image, so that images must not be augmented
    generates: bool = True  # False: `draw` refuses, as the method only serves others as a parent

    def __init__(self, info: DataInfo, parents: Mapping[str, Method] | None = None) -> None:
        super().__init__()
        self.info = info
        self.parents: dict[str, Method] = dict(parents or {})
        for role, protocol in self.roles.items():
            if role not in self.parents:
                raise UserError(f"{type(self).__name__.lower()} builds on a trained run: give it with --parent {role}=RUN")
            if not isinstance(self.parents[role], protocol):
                kind = type(self.parents[role]).__name__
                raise UserError(f"parent {role!r} must be a {protocol.__name__.lower()}, and {kind} is not one: give another run")
            if issubclass(protocol, Denoiser) and Ability.SOURCE in self.parents[role].abilities:
                raise UserError(f"parent {role!r} changes pictures and needs one for each image that it makes: give the run of a model that draws from noise")
            if issubclass(protocol, Codec) and self.parents[role].shape != info.shape:
                raise UserError(f"parent {role!r} has images of {tuple(self.parents[role].shape)}, and these are {tuple(info.shape)}: give the data that it was trained on")
        for parent in self.parents.values():
            parent.requires_grad_(False).eval()

    @property
    def shape(self) -> ImageShape:
        """Shape of one image."""
        return self.info.shape

    @property
    def device(self) -> torch.device:
        """Where the parameters are (a method without any asks its parents)."""
        for tensor in [*self.parameters(), *self.buffers()]:
            return tensor.device
        for parent in self.parents.values():
            return parent.device
        return torch.device("cpu")

    def updates(self) -> Sequence[Update | Fit]:
        """The rows that the loop executes; () means that there is nothing to train."""
        return ()

    def after_step(self, moment: Moment, terms: Mapping[str, Tensor]) -> None:
        """Called after each step, without gradients; may change buffers only."""

    @torch.no_grad()
    def sample(self, request: Request) -> Tensor:
        """Images (n, C, H, W) in [-1, 1] for n = len(request.seeds); a field that the method has no ability for is refused."""
        for name in sorted(request.given()) if self.generates else ():
            if name not in self.abilities:
                able = ", ".join(sorted(self.abilities)) or "nothing but a seed"
                raise UserError(f"{type(self).__name__.lower()} does not take {name!r}: it takes {able}")
        was_training = self.training
        self.eval()
        try:
            return self.draw(request).float().clamp(-1, 1)
        finally:
            self.train(was_training)

    @abstractmethod
    def draw(self, request: Request) -> Tensor:
        """What `sample` does once the request is known to be one that the method can serve."""


class Codec(ABC):
    """Images to codes and back. encode: (B, C, H, W) in [-1, 1] -> z; decode: z -> (B, C, H, W)."""

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor: ...


class Posterior(Codec):
    """A codec with a distribution over the vectors z that an image may be the code of: q(z|x) = N(mean, exp(log_var)).

    label (B,) int64, -1 = none, of a method that takes labels; None: none of them has one.
    """

    def observed(self, x: Tensor, u: Tensor) -> Tensor:
        """What `posterior` is to be given, made of images x and uniform u in [0, 1), both (B, C, H, W)."""
        return x

    @abstractmethod
    def posterior(self, x: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """mean (B, J) and log_var (B, J), None where a code is a point."""

    @abstractmethod
    def paint(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) of z (B, J), which `decode` makes of codes: these are another coordinate system where a prior is learned."""


class Tokenizer(Codec):
    """A codec whose codes are numbers, so that an image is a sequence of them, one codebook's codes after another's and row by row in each.

    vocabulary: codes of every codebook, K; grids: rows and columns of each codebook's codes, in the order of the sequence.
    """

    vocabulary: int
    grids: tuple[tuple[int, int], ...]

    @abstractmethod
    def tokens(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> (B, N) int64 in 0..K-1, N codes in all."""

    @abstractmethod
    def from_tokens(self, tokens: Tensor) -> Tensor:
        """(B, N) -> x (B, C, H, W)."""

    def log_likelihood(self, x: Tensor, tokens: Tensor) -> Tensor | None:
        """log p(x | tokens) of 8-bit images, nats (B,), where the decoder is a distribution over them; else None."""
        return None


class Denoiser(ABC):
    """E[x0 | x] for x = x0 + sigma * noise (variance-exploding coordinates, which every Gaussian path maps to by x / alpha).

    denoise: x (B, C, H, W), sigma (B,) -> x0 (B, C, H, W). sigma_range: the smallest and largest sigma it was trained for.
    clip: its estimates are kept in [-1, 1], and what classifier-free guidance makes of them is kept there, too.
    """

    sigma_range: tuple[float, float]
    clip: bool = False

    @abstractmethod
    def denoise(self, x: Tensor, sigma: Tensor, cond: Condition) -> Tensor: ...

    @abstractmethod
    def sigmas(self, steps: int, solver: str, spacing: str | None = None, levels: tuple[float, float] | None = None) -> Tensor:
        """Noise levels (steps + 1,) float64, falling, the last one 0, as this method spaces them for the solver, or as asked for."""


class Classifier(ABC):
    """log p(label | x) for x = x0 + sigma * noise, at any sigma: what classifier guidance differentiates.

    logits: x (B, C, H, W), sigma (B,) -> log p(label | x) (B, K) up to a constant of each row. sigma_range: as a Denoiser's.
    """

    sigma_range: tuple[float, float]

    @abstractmethod
    def logits(self, x: Tensor, sigma: Tensor) -> Tensor: ...

    def maps(self, x: Tensor) -> list[Tensor]:
        """Feature maps (B, C_l, h_l, w_l) of clean images, from fine to coarse, differentiable: what perceptual distances compare. May be none."""
        return []


class Latent(ABC):
    """A map from a standard normal latent to images: what interpolation walks in."""

    @abstractmethod
    def latents(self, seeds: Sequence[int]) -> Tensor:
        """z (n, ...) ~ N(0, I), row i from seed i alone."""

    @abstractmethod
    def from_latents(self, z: Tensor, request: Request) -> Tensor:
        """Images (n, C, H, W) for the latents; request.seeds are ignored."""


@dataclass(frozen=True)
class Score:
    """Log-likelihood of images, nats (B,), and what it means: `kind` ("exact", "bound", "estimate"), `of` (what is modelled, in words), the
    constant `per_dim` (nats per dimension) that turns it into a probability of 8-bit images, None where that makes no sense, and `how`
    many samples or steps gave it, in words."""

    nats: Tensor
    kind: str
    of: str
    per_dim: float | None = 0.0
    how: str = ""


class Likelihood(ABC):
    """log p(x) of images in [-1, 1]; `samples` is the number of importance samples, or of network evaluations an image, where it is not exact.

    num_images: how many test images an evaluation takes, so that it stays a matter of a minute.
    """

    num_images: int = 1000

    @abstractmethod
    def log_prob(self, x: Tensor, samples: int, gen: torch.Generator) -> Score: ...

    def terms(self, x: Tensor, samples: int, gen: torch.Generator) -> Tensor:
        """Where it is a sum over the steps of a chain: steps and the mean nats of each, (K, 2); else (0, 2)."""
        return x.new_zeros(0, 2)


def describe(method: type[Method]) -> dict[str, Any]:
    """Facts for the catalog: what the method takes and what it can do."""
    able = {"classifier": Classifier, "codec": Codec, "denoiser": Denoiser, "latent": Latent, "likelihood": Likelihood, "tokenizer": Tokenizer}
    return {"takes": sorted(method.abilities), "can": [k for k, v in able.items() if issubclass(method, v)]}
