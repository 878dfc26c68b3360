"""What all adversarial models share: the rules that two networks play by, and what a trained generator can do.

    min over G, max over D of V(D, G),   x ~ data,  z ~ N(0, I)                              Goodfellow et al. 2014, arXiv 1406.2661, eq. 1

A family hands over a generator (z (n, d), label (n,) or None) -> x (n, C, H, W) and a discriminator (x, label) -> (logits (n,), features (n, F)).
Everything else is a rule: the objective, the penalties, what D is shown, how often it moves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..core.protocols import Latent, Method, Update
from ..core.rng import generator as random_stream
from ..core.rng import noise, streams
from ..core.types import Ability, Batch, DataInfo, Moment, Request, UserError
from ..layers.standing import has_statistics, with_standing_stats
from .adversarial import OBJECTIVES, wide
from .penalties import Critic, changed, difference_penalty, gradient_penalty, orthogonal, squared_gradient
from .rules import Setting, checked, suited
from .shown import Shown, signs
from .truncation import truncated

__all__ = ["Game"]


class Game(Method, Latent):
    """A generator and a discriminator. A family may add networks that read D's features (`judges`), and what they want (`wants`)."""

    averaged: tuple[str, ...] = ("generator",)
    abilities = frozenset({Ability.LABEL, Ability.TRUNCATION})
    judges: tuple[str, ...] = ("discriminator",)
    discriminator: Any  # nets.judge.Judge, of which this room knows nothing

    def __init__(self, info: DataInfo, config: Setting, generator: nn.Module, discriminator: nn.Module, parents: Mapping[str, Method] | None = None) -> None:
        super().__init__(info, parents)
        self.setting, self.rules = config, checked(config.rules)
        self.generator, self.discriminator = generator, suited(config.rules, discriminator)
        self.objective = OBJECTIVES[config.rules.objective]
        self.shown = Shown(config.rules.augment, config.rules.noise, config.rules.noise_until, config.rules.ada)
        self.labeled = bool(getattr(generator, "classes", 0))
        if not self.labeled:
            self.abilities = self.abilities - {Ability.LABEL}

    # -- training

    def updates(self) -> Sequence[Update]:
        """D's steps, the lazy penalty, G's step (Goodfellow et al. 2014, algorithm 1)."""
        r = self.rules
        rows = [Update("d", self.judges, self.d_loss, opt="d", repeat=r.critic_steps)]
        if r.r_every > 1 and (r.r1 or r.r2):
            rows.append(Update("r", ("discriminator",), self.r_loss, opt="d", every=r.r_every, fresh=False))
        return (*rows, Update("g", ("generator",), self.g_loss, opt="g", fresh=False))

    def d_loss(self, batch: Batch, moment: Moment) -> Mapping[str, Tensor]:
        """L_D with its penalties, D's mean logits on real and generated images, and the share of them that it tells apart."""
        label, z = self.label_of(batch), self.random_latents(len(batch.x))
        with torch.no_grad():
            fake = self.generator(z, label)  # (B, C, H, W)
        real_logits, real_features = self.discriminator(self.shown(batch.x, moment), label)
        fake_logits, fake_features = self.discriminator(self.shown(fake, moment), label)
        loss = self.objective.d(real_logits, fake_logits, self.rules.smoothing)
        costs = {**self.penalties(batch.x, fake, (real_logits, fake_logits), label, moment), **self.wants(real_features, label, None)}
        costs |= {f"{name}_fake": cost for name, cost in self.wants(fake_features, label, z).items()}
        found = {"loss": sum(costs.values(), loss), "d_real": mean(real_logits), "d_fake": mean(fake_logits), **parted(costs)}
        return found | self.overfitted(real_logits, fake_logits) | {"told": told(real_logits, fake_logits)}

    def overfitted(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """What ADA goes by, from D's logits, and its probability; nothing without ADA."""
        return {"signs": signs(real, fake, self.rules.objective), "p": self.shown.p.clone()} if self.rules.augment == "ada" else {}

    def r_loss(self, batch: Batch, moment: Moment) -> Mapping[str, Tensor]:
        """The lazy penalty by itself, as many times as strong as it is rarer than D's turns (Karras et al. 2020, arXiv 1912.04958, section 4.1)."""
        label, fake = self.label_of(batch), batch.x
        if self.rules.r2:
            with torch.no_grad():
                fake = self.generator(self.random_latents(len(batch.x)), label)
        costs = self.smoothness(batch.x, fake, label, moment)
        rare = self.rules.r_every * self.rules.critic_steps
        return {"loss": rare * sum(costs.values(), torch.zeros((), device=self.device)), **parted(costs)}

    def g_loss(self, batch: Batch, moment: Moment) -> Mapping[str, Tensor]:
        """L_G, and D's mean logit on the images that G is judged by."""
        label, z = self.label_of(batch), self.random_latents(len(batch.x))
        logits, features = self.discriminator(self.shown(self.generator(z, label), moment), label)
        real = logits.detach()
        if self.objective.paired:
            with torch.no_grad():
                real, _ = self.discriminator(self.shown(batch.x, moment), label)
        costs = self.wants(features, label, z)
        if self.rules.orthogonal:
            costs = {**costs, "orthogonal": self.rules.orthogonal * orthogonal(matrices(self.generator))}
        return {"loss": sum(costs.values(), self.objective.g(real, logits)), "d_fake": mean(logits), **parted(costs)}

    def wants(self, features: Tensor, label: Tensor | None, z: Tensor | None) -> Mapping[str, Tensor]:
        """What a family adds to both losses, weighted, from D's features of images: real ones (z is None) or those of z. Nothing by default."""
        return {}

    def after_step(self, moment: Moment, terms: Mapping[str, Tensor]) -> None:
        """ADA's probability follows what D says of real images."""
        if self.rules.augment == "ada":
            self.shown.adapt(terms["d/signs"], moment, self.rules.ada_target, self.rules.ada_speed)

    def penalties(self, real: Tensor, fake: Tensor, logits: tuple[Tensor, Tensor], label: Tensor | None, moment: Moment) -> dict[str, Tensor]:
        """All that the rules put on D in its own step, weighted."""
        r, found = self.rules, {}
        critic = self.critic(label, moment)
        if r.gradient:
            with exact(real):
                found["penalty"] = r.gradient * gradient_penalty(critic, real, fake)
        if r.r_every == 1:
            found |= self.smoothness(real, fake, label, moment)
        if r.orthogonal_d:
            found["orthogonal"] = r.orthogonal_d * orthogonal(matrices(self.discriminator))
        for name, weight, x, seen in (("consistency", r.consistency, real, logits[0]), ("consistency_fake", r.consistency_fake, fake, logits[1])):
            if weight:
                found[name] = weight * changed(seen, critic(self.shown.moved(x)))
        return found

    def smoothness(self, real: Tensor, fake: Tensor, label: Tensor | None, moment: Moment) -> dict[str, Tensor]:
        """gamma / 2 E[ |grad D|^2 ] on real (R1) and on generated images (R2), through what D is shown; differences, at what D is shown."""
        r, found = self.rules, {}
        fade = r.r_end + (1 - r.r_end) * (1 + math.cos(math.pi * min(moment.progress, 1))) / 2
        for name, weight, x in (("r1", r.r1, real), ("r2", r.r2, fake)):
            if weight:
                gamma = fade * (0.0002 * x[0, 0].numel() / whole(x, moment) if weight < 0 else weight)
                with exact(real):
                    if r.r_sigma:  # shown once, since other noise or another augmentation is no small difference
                        size = difference_penalty(self.critic(label), self.shown(wide(x), moment), r.r_sigma)
                    else:
                        size = squared_gradient(self.critic(label, moment), x)
                found[name] = gamma / 2 * size
        return found

    def critic(self, label: Tensor | None, moment: Moment | None = None) -> Critic:
        """D as a function of images alone (of a multiple of the labels' number, too), which it is shown as at that moment, or as they are, and then
        compiled where a run is (differences need no second derivative, which a compiled network has not)."""
        judge: Any = self.discriminator if moment is None else self.discriminator.judge

        def run(x: Tensor) -> Tensor:
            labels = None if label is None else label.repeat(len(x) // len(label))
            return judge(x if moment is None else self.shown(x, moment), labels)[0]

        return run

    def label_of(self, batch: Batch) -> Tensor | None:
        """The labels of the batch, for its images and for as many generated ones: those occur as often as in the data."""
        return batch.cond.label if self.labeled else None

    def need_labels(self, condition: str) -> None:
        """Raises `UserError` where images have no classes, or the networks take none, which `condition` would change."""
        name = type(self).__name__.lower()
        if not self.info.classes:
            raise UserError(f"{name} learns classes, and these images have none: put them into a folder for each class, or train dcgan")
        if not self.labeled:
            raise UserError(f"{name} needs networks that take labels: give --model.nets.condition {condition}")

    def random_latents(self, n: int) -> Tensor:
        """z (n, d) ~ N(0, I) for training, from torch's global generator."""
        return torch.randn(n, self.setting.latent, device=self.device)

    # -- sampling

    def latents(self, seeds: Sequence[int]) -> Tensor:
        """z (n, d) ~ N(0, I), row i from seed i alone."""
        return noise(streams(seeds, "z"), (self.setting.latent,), self.device)

    def from_latents(self, z: Tensor, request: Request) -> Tensor:
        """Images (n, C, H, W) in [-1, 1] for z (n, d): truncated as asked, by statistics of latents that are truncated alike."""
        label = request.cond.label
        if self.labeled and label is None:
            raise UserError("this generator is conditioned on labels: give --label")
        z, label = self.truncate(z, request), label.to(z.device) if self.labeled and label is not None else None
        if self.setting.statistics == "running" or not has_statistics(self.generator):
            x: Tensor = self.generator(z, label)
            return x
        m = self.setting.reference
        reference = torch.randn((m, self.setting.latent), generator=random_stream("dcgan", "reference")).to(z.device)
        labels = torch.arange(m, device=z.device) % len(self.info.classes) if self.labeled else None
        return with_standing_stats(self.generator, (z, label), (self.truncate(reference, request), labels))

    def truncate(self, z: Tensor, request: Request) -> Tensor:
        """z (n, d) made less extreme."""
        return z if request.truncation is None else truncated(z, request.truncation, self.setting.truncation)

    def draw(self, request: Request) -> Tensor:
        """G(z), z from the seeds."""
        return self.from_latents(self.latents(request.seeds), request)


def exact(x: Tensor) -> torch.autocast:
    """Inside, no autocast: the squares of gradients lose too much in bf16's 8 bits."""
    return torch.autocast(x.device.type, enabled=False)


def whole(x: Tensor, moment: Moment) -> int:
    """Images of a step, of which x (n, ...) may be a part."""
    return max(len(x), moment.batch)


def matrices(net: nn.Module) -> list[Tensor]:
    """Weights (out, ...) of convolutions and linear layers, embeddings left out (Brock et al. 2019, section 3.1), as are the maps of one-hot labels
    (`embeds`); those that are trained, where a spectral norm makes others of them (whose lengths no penalty could change)."""
    embeds = {id(part) for m in net.modules() if getattr(m, "embeds", False) for part in m.modules()}
    layers = [m for m in net.modules() if isinstance(m, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)) and id(m) not in embeds]
    found = [norms.original if (norms := spectral_of(m)) else m.weight for m in layers]
    return [w.transpose(0, 1) if isinstance(m, nn.ConvTranspose2d) else w for m, w in zip(layers, found, strict=True)]


def spectral_of(layer: nn.Module) -> Any:
    """What makes a layer's weight of one trained tensor, as the spectral norm does (the weight norm has two); None for a plain weight."""
    norms: Any = layer.parametrizations["weight"] if parametrize.is_parametrized(layer, "weight") else None  # type: ignore[index]
    return norms if norms is not None and norms.is_tensor else None


def mean(logits: Tensor) -> Tensor:
    """Of the batch, a scalar without a graph."""
    return logits.detach().float().mean()


def told(real: Tensor, fake: Tensor) -> Tensor:
    """The share of pairs (one real, one generated) that D puts in the right order, in [0, 1]: 0.5 is a guess, 1 a saturated discriminator."""
    a, b = real.detach().float(), fake.detach().float()
    return (a[:, None] > b[None]).float().mean() + 0.5 * (a[:, None] == b[None]).float().mean()


def parted(costs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parts of a loss for the log."""
    return {name: cost.detach() for name, cost in costs.items()}
