"""Recipes outside the library that ask much of several processes: a penalty with double backward that rests, buffers, parameters that only
some parts reach; and one that goes wrong in one process."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pixelkiln.core.protocols import Method, Update
from pixelkiln.core.recipe import EmaConfig, OptConfig, Recipe, Size, Stage, TrainConfig
from pixelkiln.core.rng import noise, streams
from pixelkiln.core.types import Batch, DataInfo, Moment, Request


@dataclass(frozen=True)
class Config:
    """wrong: what process 1 does at step 6 ("raise", "nan", "drift")."""

    wrong: str = ""
    pause: float = 0.0  # seconds a step


class Judge(nn.Module):
    """A critic with a running mean of its features, a count, and a bias that only batches of an odd sum of labels reach."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.features, self.out, self.rare = nn.Linear(dims, 16), nn.Linear(16, 1), nn.Parameter(torch.zeros(16))
        self.register_buffer("center", torch.zeros(16))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor, rare: bool = False) -> Tensor:
        h = self.features(x.flatten(1))
        if self.training and not torch.is_grad_enabled():
            return self.out(nn.functional.softplus(h - self.center))[:, 0]
        if self.training:
            self.center.lerp_(h.detach().mean(0), 0.1)
            self.count += 1
        h = nn.functional.softplus(h - self.center.clone())
        return self.out(h + self.rare if rare else h)[:, 0]


class Pair(Method):
    """A GAN whose critic has an R1 penalty every fourth step (Mescheder et al. 2018)."""

    averaged = ("g",)

    def __init__(self, info: DataInfo, config: Config, parents: Mapping[str, Method] | None = None) -> None:
        super().__init__(info, parents)
        self.config = config
        self.g = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, info.shape.numel), nn.Tanh())
        self.d = Judge(info.shape.numel)

    def updates(self) -> Sequence[Update]:
        return (Update("d", ("d",), self.d_loss, opt="d"), Update("r1", ("d",), self.r1, opt="d", every=4, fresh=False),
                Update("g", ("g",), self.g_loss, opt="g", fresh=False))

    def d_loss(self, batch: Batch, moment: Moment) -> Mapping[str, Tensor]:
        time.sleep(self.config.pause)
        odd = bool(batch.cond.label.sum() % 2)
        with torch.no_grad():
            fake = self.g(torch.randn(len(batch.x), 4))
        loss = nn.functional.softplus(-self.d(batch.x, odd)).mean() + nn.functional.softplus(self.d(fake)).mean()
        if self.config.wrong and moment.step == 6 and os.environ.get("RANK") == "1":
            if self.config.wrong == "raise":
                raise KeyError("a mistake in one process")
            if self.config.wrong == "drift":
                self.d.count += 1
            if self.config.wrong == "nan":
                loss = loss * float("nan")
        return {"loss": loss}

    def r1(self, batch: Batch, moment: Moment) -> Mapping[str, Tensor]:
        x = batch.x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(self.d(x).sum(), x, create_graph=True)
        return {"loss": 5 * grad.square().flatten(1).sum(1).mean()}

    def g_loss(self, batch: Batch, moment: Moment) -> Mapping[str, Tensor]:
        return {"loss": nn.functional.softplus(-self.d(self.g(torch.randn(len(batch.x), 4)))).mean()}

    def draw(self, request: Request) -> Tensor:
        return self.g(noise(streams(request.seeds, "z"), (4,))).view(-1, *self.shape)


class Plain(Method):
    """One net, one row, noise in the loss: what DistributedDataParallel can do, too."""

    def __init__(self, info: DataInfo, config: Config, parents: Mapping[str, Method] | None = None) -> None:
        super().__init__(info, parents)
        self.net = nn.Sequential(nn.Linear(info.shape.numel, 16), nn.Tanh(), nn.Linear(16, info.shape.numel))

    def updates(self) -> Sequence[Update]:
        return (Update("mse", ("net",), self.loss, opt="main"),)

    def loss(self, batch: Batch, moment: Moment) -> Mapping[str, Tensor]:
        x = batch.x.flatten(1)
        return {"loss": (self.net(x + torch.randn_like(x)) - x).square().mean()}

    def draw(self, request: Request) -> Tensor:
        return self.net(noise(streams(request.seeds, "z"), (self.shape.numel,))).view(-1, *self.shape)


def pair(size: Size = "tiny") -> Recipe:
    """The GAN with the penalty."""
    opts = {"d": OptConfig("adamw", lr=1e-2, weight_decay=0.1, clip=1.0), "g": OptConfig("sgd", lr=1e-2)}
    train = TrainConfig(steps=40, batch=24, accumulate=2, opts=opts, ema=EmaConfig(half_life=100), log_every=1)
    return Recipe((Stage(Pair, Config(), train=train),), "toy", "none, 2026, a test", "a GAN with a penalty")


def plain(size: Size = "tiny") -> Recipe:
    """The net for DistributedDataParallel."""
    train = TrainConfig(steps=10, batch=24, opts={"main": OptConfig("sgd", lr=0.1)}, log_every=1)
    return Recipe((Stage(Plain, Config(), train=train),), "toy", "none, 2026, a test", "a regression")
