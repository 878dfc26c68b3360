"""A prior for the codes of a trained autoencoder, fitted after the fact: what the decoder is given is then what it was trained on.

A decoder has learned to paint the codes of images, z ~ q(z) = E_x q(z|x), the aggregate posterior; drawn from N(0, I) it is also given what is not among
them, and that is what is ugly. Here a density p(z) is fitted to codes of the training images; encoder and decoder stay as they are. The run is the
parent "codec". By what density:

    gmm     sum_m w_m N(z; mu_m, C_m), by EM              Ghosh et al., From Variational to Deterministic Autoencoders, 2020, arXiv 1903.12436, section 4
    vamp    1/K sum_k q(z | x_k), x_k training images     Tomczak and Welling, VAE with a VampPrior, 2018, arXiv 1705.07120, eq. 9, where x_k are learned
    flow    z = mu + s g(u), u ~ N(0, I), g of couplings  Dinh et al., Density Estimation Using Real NVP, 2017, arXiv 1605.08803
    normal  N(0, I): nothing is fitted, for comparison

Where the images have classes there is one density for each, p(z|y), though the autoencoder never saw a label; without a label it is
p(z) = sum_y p(y) p(z|y). Of an autoencoder that takes labels, codes are q(z|x, y), and there is a density besides for codes of images without one.

The score is log p(z) of held-out images' codes, in nats. For one and the same autoencoder it is the term of the bound E_q[log p(x|z) + log p(z) - log q(z|x)]
by which priors differ: a nat of one is a nat of the other.

n images, J units of z, K components, Y classes. A latent is e ~ N(0, I): the first number of J + 1 chooses the component of a mixture, or the class.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, final

import torch
from torch import Tensor

from ..core import rng
from ..core.protocols import Codec, Fit, Latent, Likelihood, Method, Posterior, Score, Update
from ..core.recipe import EmaConfig, Expect, OptConfig, Recipe, Size, Stage, TrainConfig, by_size
from ..core.types import Ability, Batch, DataInfo, Moment, Request, UserError
from ..nets.density import FlowDensity
from ..objectives.mixtures import Components, Mixture, expectation_maximization, spread
from ..objectives.variational import reparameterize
from ..solvers.categorical import pick

__all__ = ["FlowConfig", "GMMConfig", "LatentPrior", "LatentPriorConfig", "NormalConfig", "VampConfig", "flow_prior", "gmm_prior", "vamp_prior"]

Passes = Callable[[], Iterable[Batch]]


@dataclass(frozen=True)
class GMMConfig:
    """Gaussians, fitted by EM in float64."""

    components: int = 10  # of each class, or in all where there are no classes
    covariance: Literal["full", "diagonal"] = "full"
    floor: float = 1e-6  # added to every variance, in shares of the codes' mean variance
    rounds: int = 100  # of EM at most
    tolerance: float = 1e-3  # nats a code that a round must gain


@dataclass(frozen=True)
class VampConfig:
    """Posteriors of training images."""

    components: int = 100  # images of each class, or in all where there are no classes


@dataclass(frozen=True)
class FlowConfig:
    """Affine couplings."""

    width: int = 64  # hidden units of a coupling
    layers: int = 6
    drop: float = 0.1  # share of images that lose their label, of a codec that takes labels


@dataclass(frozen=True)
class NormalConfig:
    """N(0, I)."""


@dataclass(frozen=True)
class LatentPriorConfig:
    """The density, and what it is fitted to."""

    density: GMMConfig | VampConfig | FlowConfig | NormalConfig = field(default_factory=GMMConfig)
    by_class: bool = True  # a density for each class, where there are classes
    codes: Literal["drawn", "mean"] = "drawn"  # from q(z|x), or its mean


class Codes(NamedTuple):
    """Codes of all training images: mean (N, J), log_var (N, J) or None, z (N, J), and labels (N,) or None."""

    mean: Tensor
    log_var: Tensor | None
    z: Tensor
    label: Tensor | None


@final
class LatentPrior(Method, Latent, Likelihood):
    """density: a `Mixture`, or a `FlowDensity`."""

    abilities = frozenset({Ability.LABEL})
    roles = {"codec": Codec}
    num_images = 10_000

    def __init__(self, info: DataInfo, config: LatentPriorConfig, parents: Mapping[str, Method] | None = None) -> None:
        super().__init__(info, parents)
        codec = self.parents["codec"]
        assert isinstance(codec, Codec)
        self.config, self.codec = config, [codec]  # in a list: it is no net of ours
        self.labeled = isinstance(codec, Posterior) and Ability.LABEL in codec.abilities  # the codec itself takes labels
        if self.labeled and codec.info.classes != info.classes:
            raise UserError("the codec takes labels of other classes than these images have: give the data that it was trained on")
        by_class = self.labeled or (config.by_class and not isinstance(config.density, NormalConfig))
        self.classes = len(info.classes) if by_class else 0
        self.abilities = self.abilities if self.classes else frozenset()
        mean, log_var = self.posterior(torch.zeros(1, *info.shape, device=codec.device), None)
        if mean.ndim != 2 or not mean.is_floating_point():
            raise UserError("a code of this codec is no vector: give a run with one, such as a vae's (for codebooks there is code-prior)")
        self.dims, d = mean.shape[1], config.density
        if isinstance(d, VampConfig) and (log_var is None or config.codes == "mean"):
            raise UserError("a mixture of posteriors needs an encoder that gives distributions, and these are points: take gmm-prior or flow-prior")
        if isinstance(d, FlowConfig):
            if self.dims < 2 or not 0 < d.drop < 1:
                raise UserError("a flow needs codes of 2 numbers or more, and a --model.density.drop above 0 and below 1")
            self.density: Any = FlowDensity(self.dims, d.width, d.layers, self.classes)
            self.averaged = ("density",)
            return
        each = 1 if isinstance(d, NormalConfig) else d.components
        if each < 1:
            raise UserError("--model.density.components must be 1 or more")
        groups = 1 if isinstance(d, NormalConfig) else self.classes + (self.labeled or not self.classes)
        self.density = Mixture(self.classes + 1, each * groups, self.dims, isinstance(d, GMMConfig) and d.covariance == "full")

    # -- codes

    def posterior(self, x: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """mean and log_var (n, J) of q(z|x), for what `observed` returns; None where it is a point."""
        codec = self.codec[0]
        return codec.posterior(x, label if self.labeled else None) if isinstance(codec, Posterior) else (codec.encode(x), None)

    @torch.no_grad()
    def coded(self, x: Tensor, label: Tensor | None, gen: torch.Generator | None = None) -> Codes:
        """Codes of images (n, C, H, W); randomness from gen, or from torch's generator of the CPU."""
        codec = self.codec[0]
        if isinstance(codec, Posterior):
            x = codec.observed(x, torch.rand(x.shape, generator=gen).to(x))
        mean, log_var = self.posterior(x, label)
        if log_var is None or self.config.codes == "mean":
            return Codes(mean.float(), log_var, mean.float(), label)
        return Codes(mean, log_var, reparameterize(mean, log_var, torch.randn(mean.shape, generator=gen).to(mean)), label)

    def all_codes(self, passes: Passes, told: bool) -> Codes:
        """Of all training images; told: the codec is told their labels, where it takes them."""
        parts = [(self.coded(b.x, b.cond.label if told else None), b.cond.label) for b in passes()]
        mean, log_var, z = (None if part[0] is None else torch.cat(part) for part in list(zip(*(codes for codes, _ in parts)))[:3])
        labels = [label for _, label in parts if label is not None]
        assert mean is not None and z is not None
        return Codes(mean, log_var, z, torch.cat(labels) if labels else None)

    # -- training

    def updates(self) -> Sequence[Fit | Update]:
        """A fit, and for the flow a row besides."""
        match self.config.density:
            case NormalConfig():
                return ()
            case FlowConfig():
                return (Fit("center", ("density",), self.center), Update("codes", ("density",), self.loss, opt="main"))
        return (Fit("mixture", ("density",), self.fit),)

    def center(self, passes: Passes) -> Mapping[str, float]:
        """Mean and deviation of the codes, and how often each class occurs."""
        codes = self.all_codes(passes, told=True)
        self.density.mean.copy_(codes.z.mean(0))
        self.density.deviation.copy_(codes.z.std(0, correction=0).clamp_min(1e-6))
        if self.classes:
            assert codes.label is not None
            self.density.shares.copy_(codes.label.bincount(minlength=self.classes) / len(codes.z))
        return {"images": float(len(codes.z))}

    def loss(self, batch: Batch, moment: Moment) -> Mapping[str, Tensor]:
        """-log p(z|y) in nats per code."""
        label = batch.cond.label if self.classes else None
        if label is not None and self.labeled:
            assert isinstance(self.config.density, FlowConfig)
            label = label.masked_fill(torch.rand(len(label), device=label.device) < self.config.density.drop, -1)
        return {"loss": -self.log_codes(self.coded(batch.x, label).z, label).mean()}

    def fit(self, passes: Passes) -> Mapping[str, float]:
        """The mixtures of all groups of codes: one a class, and, for a codec that takes labels, of codes of images without one."""
        told = self.all_codes(passes, told=True)
        groups = [told]
        if self.classes:
            assert told.label is not None
            groups = [told._replace(mean=told.mean[i], z=told.z[i], log_var=None if told.log_var is None else told.log_var[i])
                      for i in (told.label == y for y in range(self.classes))]
            groups += [self.all_codes(passes, told=False)] if self.labeled else []
        d = self.config.density
        assert isinstance(d, GMMConfig | VampConfig)
        for codes, name in zip(groups, [*self.info.classes, "any class"], strict=False):
            if len(codes.z) < d.components:
                of = f" of class {name}" * (self.classes > 0)
                raise UserError(f"{len(codes.z)} images{of} are too few for {d.components} components: give fewer, --model.density.components")
        scale = float(told.z.double().var(0, correction=0).mean())
        found = [self._of(codes, d, scale) for codes in groups]
        weights = torch.block_diag(*(part.weights[None] for part in found))  # (groups, M)
        if self.classes and not self.labeled:
            shares = torch.tensor([len(codes.z) for codes in groups]).to(weights) / len(told.z)
            weights = torch.cat([weights, shares[None] @ weights])
        self.density.take(weights, torch.cat([part.means for part in found]), torch.cat([part.white for part in found]))
        nats = self.log_codes(told.z, told.label if self.classes else None).mean()
        return {"images": float(len(told.z)), "components": float(weights.shape[1]), "nats_per_code": -float(nats)}

    def _of(self, codes: Codes, d: GMMConfig | VampConfig, scale: float) -> Components:
        """The mixture of one group of codes, whose mean variance is `scale` over all groups."""
        gen = rng.generator("latent-prior", int(torch.randint(2**31, ())))
        if isinstance(d, GMMConfig):
            z = codes.z.double()
            start = spread(z, d.components, gen)
            return expectation_maximization(z, start, d.covariance == "full", d.floor * scale, d.rounds, d.tolerance)[0]
        assert codes.log_var is not None
        rows = torch.randperm(len(codes.mean), generator=gen)[: d.components].to(codes.mean.device)
        return Components(torch.full((d.components,), 1 / d.components).to(codes.mean), codes.mean[rows], torch.exp(-0.5 * codes.log_var[rows]))

    # -- the density

    def log_codes(self, z: Tensor, label: Tensor | None) -> Tensor:
        """log p(z|y), (n,), for z (n, J) and labels (n,), -1 = none; None: none of them has one."""
        y = torch.full((len(z),), -1, device=z.device) if label is None else label
        if isinstance(self.density, Mixture):
            found: Tensor = self.density.log_prob(z, torch.where(y < 0, self.classes, y))
        elif self.classes and not self.labeled and bool((y < 0).any()):
            found = torch.where(y < 0, self.density.mixed(z), self.density.log_prob(z, y))
        else:
            found = self.density.log_prob(z, y)
        return found

    @torch.no_grad()
    def log_prob(self, x: Tensor, samples: int, gen: torch.Generator) -> Score:
        """log p(z) of one z ~ q(z|x) for each of images (n, C, H, W), whose labels are not told."""
        return Score(self.log_codes(self.coded(x, None, gen).z, None), "exact", f"the code of an image, {self.dims} numbers", None, "one code an image")

    def latents(self, seeds: Sequence[int]) -> Tensor:
        """(n, J), and a number more in front where there is something to choose."""
        chooses = isinstance(self.density, Mixture) or (self.classes > 0 and not self.labeled)
        return rng.noise(rng.streams(seeds, "latent"), (self.dims + chooses,), self.device)

    def codes_of(self, e: Tensor, label: Tensor | None) -> Tensor:
        """z (n, J) of latents e and labels (n,), -1 = none; None: none of them has one."""
        y = torch.full((len(e),), -1, device=e.device) if label is None else label
        share = 0.5 * (1 + torch.erf(e[:, 0] / math.sqrt(2)))  # Phi, uniform
        if isinstance(self.density, Mixture):
            chosen = pick(self.density.weights[torch.where(y < 0, self.classes, y)], share)
        else:
            chosen = torch.where(y < 0, pick(self.density.shares.expand(len(e), -1), share), y) if self.classes and not self.labeled else y
        z: Tensor = self.density(e[:, -self.dims :], chosen)
        return z

    def from_latents(self, z: Tensor, request: Request) -> Tensor:
        """What the codec paints of the codes."""
        codec, label = self.codec[0], request.cond.label
        codes = self.codes_of(z, label)
        return codec.paint(codes, label if self.labeled else None) if isinstance(codec, Posterior) else codec.decode(codes)

    def draw(self, request: Request) -> Tensor:
        return self.from_latents(self.latents(request.seeds), request)


def _recipe(size: Size, name: str, density: GMMConfig | VampConfig | FlowConfig, train: TrainConfig, paper: str, fd: float) -> Recipe:
    stage = Stage(LatentPrior, LatentPriorConfig(density), train=train, parents={"codec": ""})
    command = f"pixelkiln train vae --data mnist --out V --budget 3m --model.prior normal; pixelkiln train {name} --parent codec=V --out R"
    expect = (Expect("fd", fd, "mnist", command, "1 thread of an AMD EPYC beside other programs, fp32"),)
    summary = "a trained autoencoder with {} for its prior".format({"gmm-prior": "a mixture of Gaussians", "vamp-prior": "posteriors of training images"}.get(name, "a flow"))
    return Recipe((stage,), family="vae", paper=paper, summary=summary, expect=by_size(size, tiny=(), small=expect, base=()))


def gmm_prior(size: Size = "small") -> Recipe:
    """A mixture of Gaussians over the codes of a trained autoencoder: `--parent codec=RUN`; fitted in seconds. Ghosh et al. 2020, arXiv 1903.12436."""
    paper = "Ghosh, Sajjadi, Vergari, Black, Schölkopf, From Variational to Deterministic Autoencoders, 2020, arXiv 1903.12436"
    return _recipe(size, "gmm-prior", GMMConfig(by_size(size, tiny=2, small=10, base=20)), TrainConfig(steps=0, batch=1000), paper, 6.60)


def vamp_prior(size: Size = "small") -> Recipe:
    """A mixture of the posteriors of training images: `--parent codec=RUN`; fitted in seconds. Tomczak and Welling 2018, arXiv 1705.07120."""
    paper = "Tomczak and Welling, VAE with a VampPrior, 2018, arXiv 1705.07120"
    return _recipe(size, "vamp-prior", VampConfig(by_size(size, tiny=5, small=100, base=500)), TrainConfig(steps=0, batch=1000), paper, 6.27)


def flow_prior(size: Size = "small") -> Recipe:
    """A flow over the codes of a trained autoencoder: `--parent codec=RUN`. Dinh et al. 2017, arXiv 1605.08803."""
    density = by_size(size, tiny=FlowConfig(8, 2), small=FlowConfig(), base=FlowConfig(256, 8))
    train = TrainConfig(
        steps=by_size(size, tiny=100, small=4000, base=20_000),
        batch=by_size(size, tiny=32, small=256, base=512),
        opts={"main": OptConfig(lr=2e-3, decay="cosine", final=0.02)},
        ema=EmaConfig(half_life=50_000),
    )
    return _recipe(size, "flow-prior", density, train, "Dinh, Sohl-Dickstein, Bengio, Density Estimation Using Real NVP, 2017, arXiv 1605.08803", 6.58)
