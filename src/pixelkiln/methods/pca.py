"""Probabilistic principal component analysis as a generator (Tipping and Bishop, Probabilistic Principal Component Analysis, 1999).

Idea: an image is a point of a Gaussian with few long axes, x = W z + mu + sigma * eps, z ~ N(0, I_k), eps ~ N(0, I_D) (eq. 2), so that
x ~ N(mu, C) with C = W W^T + sigma^2 I. The likelihood has its maximum in closed form: with the eigenvalues L_1 >= L_2 >= ... and
eigenvectors U of the covariance S = 1/N sum (x - mu)(x - mu)^T,

    W = U_k (L_k - sigma^2 I)^(1/2)  (eq. 7),      sigma^2 = 1/(D - k) sum_{j > k} L_j  (eq. 8).

To sample is to draw z and to compute W z + mu: drawing the unscaled components is the usual mistake. There is nothing to iterate: one
`Fit` streams over the images, all in float64. Up to `DIRECT` dimensions it gathers S itself; above, it finds U_k by subspace iteration
from a random start (Halko, Martinsson and Tropp 2011, arXiv 0909.4061, algorithm 4.4), one pass an iteration, without D x D numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from ..core import rng
from ..core.protocols import Codec, Fit, Latent, Likelihood, Method, Score
from ..core.recipe import DataConfig, Expect, Recipe, Size, Stage, TrainConfig, by_size
from ..core.types import Batch, DataInfo, Request, UserError

__all__ = ["PCA", "PCAConfig", "pca"]

DIRECT = 2048  # dimensions up to which the covariance matrix is formed
OVERSAMPLE, ITERATIONS = 16, 7  # of the subspace iteration
MIN_NOISE = (2 / 255) ** 2 / (2 * math.pi)  # sigma^2 below which density times width of a level would exceed 1
Passes = Callable[[], Iterable[Batch]]


@dataclass(frozen=True)
class PCAConfig:
    """PCA. `noise` adds sigma * eps to samples: the model's own draws, which look grainy; without it they are its means."""

    components: int = 64
    noise: bool = False


@final
class Gaussian(nn.Module):
    """N(mean, C) in D dimensions by k axes U (D, k), their variances L (k,), and the variance sigma^2 of all other directions."""

    mean: Tensor
    axes: Tensor
    variances: Tensor
    noise: Tensor

    def __init__(self, dims: int, components: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dims, dtype=torch.float64))
        self.register_buffer("axes", torch.zeros(dims, components, dtype=torch.float64))
        self.axes.fill_diagonal_(1)
        self.register_buffer("variances", torch.ones(components, dtype=torch.float64))
        self.register_buffer("noise", torch.ones((), dtype=torch.float64))

    @property
    def weights(self) -> Tensor:
        """W = U (L - sigma^2 I)^(1/2), (D, k), eq. 7."""
        return self.axes * (self.variances - self.noise).sqrt()

    def posterior_mean(self, x: Tensor) -> Tensor:
        """E[z|x] = M^-1 W^T (x - mu), (B, k), for x (B, D); M = W^T W + sigma^2 I = L is diagonal here (eq. 6)."""
        return (x - self.mean) @ self.weights / self.variances

    def log_prob(self, x: Tensor) -> Tensor:
        """log N(x; mu, C), (B,), for x (B, D), by C^-1 = U L^-1 U^T + (I - U U^T) / sigma^2 (Woodbury's identity): O(D k) an image."""
        dims, k = self.axes.shape
        r = x - self.mean
        along = r @ self.axes  # (B, k)
        across = r - along @ self.axes.T  # (B, D), orthogonal to the axes
        distance = (along**2 / self.variances).sum(1) + (across**2).sum(1) / self.noise
        log_det = self.variances.log().sum() + (dims - k) * self.noise.log()
        return -0.5 * (dims * math.log(2 * math.pi) + log_det + distance)


@final
class PCA(Method, Codec, Latent, Likelihood):
    """x = W z + mu + sigma * eps, in closed form."""

    def __init__(self, info: DataInfo, config: PCAConfig, parents: Mapping[str, Method] | None = None) -> None:
        super().__init__(info, parents)
        if not 0 < config.components < info.shape.numel:
            most = info.shape.numel - 1
            raise UserError(f"--model.components is {config.components}: for images of {most + 1} numbers choose 1 to {most}")
        self.config = config
        self.model = Gaussian(info.shape.numel, config.components)

    def updates(self) -> Sequence[Fit]:
        return (Fit("eigen", ("model",), self.fit),)

    @torch.no_grad()
    def fit(self, passes: Passes) -> Mapping[str, float]:
        """Mean, axes and variances of the images that `passes()` yields; fewer images than components are a UserError."""
        k, dims = self.config.components, self.shape.numel
        count, mean = _mean(passes, self.model.mean)
        if count <= k:
            raise UserError(f"{count} images cannot give {k} components: set --model.components below {count}, or give more images")
        solve = _eigen_direct if dims <= DIRECT else _eigen_iterated
        variances, axes, total = solve(_centered(passes, mean), count, mean, k)
        noise = ((total - variances.sum()) / (dims - k)).clamp_min(MIN_NOISE)  # eq. 8
        signs = axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()  # (1, k): an axis has no direction of its own
        self.model.mean.copy_(mean)
        self.model.axes.copy_(axes * signs)
        self.model.variances.copy_(torch.maximum(variances, noise))
        self.model.noise.copy_(noise)
        return {"images": float(count), "explained": float(variances.sum() / total.clamp_min(1e-300)), "noise_variance": float(noise)}

    def encode(self, x: Tensor) -> Tensor:
        """Posterior means (B, k)."""
        return self.model.posterior_mean(x.flatten(1).double()).float()

    def decode(self, z: Tensor) -> Tensor:
        """W z + mu, (B, C, H, W), for z (B, k); not clipped."""
        x = z.double() @ self.model.weights.T + self.model.mean
        return x.unflatten(1, tuple(self.shape)).float()

    def latents(self, seeds: Sequence[int]) -> Tensor:
        return rng.noise(rng.streams(seeds, "latent"), (self.config.components,), self.device)

    def from_latents(self, z: Tensor, request: Request) -> Tensor:
        return self.decode(z).clamp(-1, 1)

    def draw(self, request: Request) -> Tensor:
        x = self.decode(self.latents(request.seeds))
        if self.config.noise:
            eps = rng.noise(rng.streams(request.seeds, "noise"), tuple(self.shape), self.device)
            x = x + self.model.noise.sqrt().float() * eps
        return x

    @torch.no_grad()
    def log_prob(self, x: Tensor, samples: int, gen: torch.Generator) -> Score:
        """log N(x; mu, C) in nats, exact, for x (B, C, H, W) in [-1, 1]; neither samples nor gen is used."""
        nats = self.model.log_prob(x.flatten(1).double())
        return Score(nats, "exact", "density on [-1, 1], at the 8-bit images (no dequantization)", math.log(2 / 255))


def _mean(passes: Passes, like: Tensor) -> tuple[int, Tensor]:
    """Number of images, and their mean (D,)."""
    count, total = 0, torch.zeros_like(like)
    for batch in passes():
        count += len(batch.x)
        total += batch.x.flatten(1).to(like).sum(0)
    return count, total / max(count, 1)


def _centered(passes: Passes, mean: Tensor) -> Callable[[], Iterator[Tensor]]:
    """A function that yields one pass over the images less their mean, (B, D)."""
    return lambda: (batch.x.flatten(1).to(mean) - mean for batch in passes())


def _eigen_direct(rows: Callable[[], Iterator[Tensor]], count: int, like: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k largest eigenvalues (k,) of the covariance, falling, their eigenvectors (D, k), and its trace."""
    s = like.new_zeros(len(like), len(like))  # (D, D)
    for r in rows():
        s += r.T @ r / count
    values, vectors = torch.linalg.eigh(s)  # rising
    return values[-k:].flip(0), vectors[:, -k:].flip(1), s.trace()


def _eigen_iterated(rows: Callable[[], Iterator[Tensor]], count: int, like: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same by subspace iteration: Q <- orth(S Q), then the eigenvectors of Q^T S Q (Halko et al. 2011, algorithms 4.4 and 5.3)."""
    start = torch.randn(len(like), min(k + OVERSAMPLE, len(like)), generator=rng.generator("pca"), dtype=torch.float64)
    y, q, total = start.to(like), start.to(like), like.new_zeros(())
    for _ in range(ITERATIONS):
        q, y, total = torch.linalg.qr(y).Q, torch.zeros_like(y), torch.zeros_like(total)  # (D, l), (D, l), ()
        for r in rows():
            y += r.T @ (r @ q) / count  # S Q
            total += (r**2).sum() / count
    small = q.T @ y  # Q^T S Q, (l, l)
    values, vectors = torch.linalg.eigh((small + small.T) / 2)
    return values[-k:].flip(0), q @ vectors[:, -k:].flip(1), total


def pca(size: Size = "small") -> Recipe:
    """Probabilistic PCA (Tipping and Bishop 1999): fitted in seconds, with an exact likelihood; what every other generator has to beat."""
    stage = Stage(
        method=PCA,
        model=PCAConfig(components=by_size(size, tiny=8, small=64, base=256)),
        data=DataConfig(at_least=by_size(size, tiny=1, small=16, base=32)),
        train=TrainConfig(batch=1024),
    )
    return Recipe(
        (stage,),
        family="classical",
        paper="Tipping and Bishop, Probabilistic Principal Component Analysis, Journal of the Royal Statistical Society B 61, 1999",
        summary="a Gaussian with few axes, in closed form: exact likelihood, blurry samples",
        expect=by_size(size, tiny=(), small=(Expect("fd", 66.9, "mnist", "pixelkiln train pca --data mnist --out R", "2 processor cores"),), base=()),
    )
