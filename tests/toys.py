"""Recipes that live outside the library, as a user's would: a two-stage one, one that diverges, and one that collapses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pixelkiln.core.protocols import Codec, Method, Update
from pixelkiln.core.recipe import OptConfig, Recipe, Size, Stage, TrainConfig
from pixelkiln.core.rng import noise, streams
from pixelkiln.core.types import Batch, DataInfo, Moment, Request
from pixelkiln.data import open_source
from pixelkiln.methods.pca import PCA, pca


@dataclass(frozen=True)
class CodeConfig:
    """Of the toy prior over codes."""

    width: int = 8


class CodePrior(Method):
    """Second stage: a diagonal Gaussian over the codes of a frozen parent, learned by gradient descent (a test of two-stage recipes)."""

    roles = {"codec": Codec}

    def __init__(self, info: DataInfo, config: CodeConfig, parents: Mapping[str, Method] | None = None) -> None:
        super().__init__(info, parents)
        self.net = nn.Linear(1, 2 * self.parents["codec"].encode(torch.zeros(1, *info.shape)).shape[1], bias=False)

    def updates(self) -> Sequence[Update]:
        return (Update("nll", ("net",), self.loss, opt="main"),)

    def loss(self, batch: Batch, moment: Moment) -> Mapping[str, Tensor]:
        with torch.no_grad():
            z = self.parents["codec"].encode(batch.x)
        mean, log_std = self.net(torch.ones(1, 1)).float().chunk(2, dim=1)
        return {"loss": (log_std + 0.5 * ((z - mean) / log_std.exp()) ** 2).sum(1).mean()}

    def draw(self, request: Request) -> Tensor:
        mean, log_std = self.net(torch.ones(1, 1)).float().chunk(2, dim=1)
        return self.parents["codec"].decode(mean + log_std.exp() * noise(streams(request.seeds, "z"), mean.shape[1:]))


class Slower(Method):
    """A step takes a second by `clock`, and three in the second half of training; four times that until `busy`."""

    clock = busy = 0.0

    def __init__(self, info: DataInfo, config: CodeConfig, parents: Mapping[str, Method] | None = None) -> None:
        super().__init__(info, parents)
        self.net = nn.Linear(1, 1)

    def updates(self) -> Sequence[Update]:
        return (Update("main", ("net",), self.loss, opt="main"),)

    def loss(self, batch: Batch, moment: Moment) -> Mapping[str, Tensor]:
        Slower.clock += (1.0 if moment.progress < 0.5 else 3.0) * (4 if Slower.clock < Slower.busy else 1)
        return {"loss": self.net(torch.ones(1, 1)).square().mean()}

    def draw(self, request: Request) -> Tensor:
        return torch.zeros(len(request.seeds), *self.info.shape)


class Exploding(Method):
    """Its loss is infinite from step 3 on."""

    def __init__(self, info: DataInfo, config: CodeConfig, parents: Mapping[str, Method] | None = None) -> None:
        super().__init__(info, parents)
        self.net = nn.Linear(1, 1)

    def updates(self) -> Sequence[Update]:
        return (Update("up", ("net",), self.loss, opt="main"),)

    def loss(self, batch: Batch, moment: Moment) -> Mapping[str, Tensor]:
        value = self.net(torch.ones(1, 1)).mean()
        return {"loss": value / (0.0 if moment.step >= 3 else 1.0), "fine": value.detach()}

    def draw(self, request: Request) -> Tensor:
        return torch.zeros(len(request.seeds), *self.shape)


class Judge(nn.Module):
    """Images to numbers (torch.compile passes over a bare Sequential)."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Penalized(Method):
    """Its loss has the square of a gradient, as the penalties of GANs have."""

    def __init__(self, info: DataInfo, config: CodeConfig, parents: Mapping[str, Method] | None = None) -> None:
        super().__init__(info, parents)
        self.net = Judge(info.shape.numel, config.width)

    def updates(self) -> Sequence[Update]:
        return (Update("d", ("net",), self.loss, opt="main"),)

    def loss(self, batch: Batch, moment: Moment) -> Mapping[str, Tensor]:
        x = batch.x.flatten(1).requires_grad_()
        out = self.net(x)
        (grad,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        return {"loss": out.square().mean() + grad.square().sum(1).mean()}

    def draw(self, request: Request) -> Tensor:
        return torch.zeros(len(request.seeds), *self.shape)


@dataclass(frozen=True)
class CollapseConfig:
    """Of the toy that collapses."""

    always: bool = False  # whatever the rate


class Collapsing(Method):
    """Draws training images, or the first of them only once its weight has run away from 1: descent on a parabola of curvature 20.9, which does that
    above a rate of 2 / 20.9. From 1.001 at a rate of 0.1 it is 0.07 away after 50 steps and 5.5 after 100."""

    def __init__(self, info: DataInfo, config: CollapseConfig, parents: Mapping[str, Method] | None = None) -> None:
        super().__init__(info, parents)
        self.always = config.always
        self.net = nn.Linear(1, 1, bias=False)
        nn.init.constant_(self.net.weight, 1.001)
        self.register_buffer("bank", open_source("digits").images[:256] / 127.5 - 1)

    def updates(self) -> Sequence[Update]:
        return (Update("fall", ("net",), self.loss, opt="main"),)

    def loss(self, batch: Batch, moment: Moment) -> Mapping[str, Tensor]:
        if self.always and moment.step >= 60:
            self.bank.zero_()
        weight, luck = self.net.weight.squeeze(), torch.randn(())
        return {"loss": 20.9 / 2 * (weight - 1).square() + 1e-6 * luck * weight, "luck": luck, "told": torch.tensor(0.5)}

    def draw(self, request: Request) -> Tensor:
        rows = torch.stack([torch.randint(256, (), generator=g) for g in streams(request.seeds, "row")])
        spread = (-(self.net.weight.squeeze() - 1).square()).exp()
        return spread * self.bank[rows] + (1 - spread) * self.bank[:1]


def collapsing(size: Size = "tiny") -> Recipe:
    """Collapses between steps 50 and 100, and does not at half the rate."""
    train = TrainConfig(steps=250, batch=512, opts={"main": OptConfig("sgd", lr=0.1, betas=(0.0, 0.0))}, log_every=25, sample_every=50, save_every=30)
    return Recipe((Stage(Collapsing, CollapseConfig(), train=train),), "toy", "none, 2026, a test", "collapses")


def two_stage(size: Size = "tiny") -> Recipe:
    """PCA, then a Gaussian over its codes."""
    first = pca("tiny").last
    train = TrainConfig(steps=40, batch=64, opts={"main": OptConfig(lr=0.05)}, log_every=10)
    stages = (Stage(PCA, first.model, first.data, first.train, name="codec"),
              Stage(CodePrior, CodeConfig(), first.data, train, parents={"codec": "codec"}, name="prior"))
    return Recipe(stages, "classical", "none, 2026, a test", "two stages")


def slower(size: Size = "tiny") -> Recipe:
    """The second half of its training takes three times as long as the first."""
    return Recipe((Stage(Slower, CodeConfig(), train=TrainConfig(steps=20, batch=8)),), "toy", "none, 2026, a test", "slows down")


def exploding(size: Size = "tiny") -> Recipe:
    """Diverges at step 3."""
    return Recipe((Stage(Exploding, CodeConfig(), train=TrainConfig(steps=20, batch=8, save_every=2, log_every=1)),), "toy", "none, 2026, a test", "diverges")


def penalized(size: Size = "tiny") -> Recipe:
    """Differentiates a gradient."""
    return Recipe((Stage(Penalized, CodeConfig(), train=TrainConfig(steps=3, batch=8)),), "toy", "none, 2026, a test", "a gradient penalty")
