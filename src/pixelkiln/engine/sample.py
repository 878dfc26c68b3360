"""Sampling a trained method: seeds, labels by name, batches, interpolation. Everything returns uint8 images; files are the caller's business."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.config import nearest
from ..core.images import from_uint8, to_uint8
from ..core.protocols import Codec, Latent, Method
from ..core.rng import generator, key
from ..core.types import Ability, Condition, Request, UserError
from ..data import pictures
from .build import Opened, load_method
from .where import Where

__all__ = ["Trained", "generate", "labels_for", "load", "middle", "preview", "seeds_for", "slerp"]


def seeds_for(seed: int, num: int) -> tuple[int, ...]:
    """The seeds of samples 0..num-1 of an order; another order's seed shares none of them."""
    return tuple(key(seed, "sample", i) for i in range(num))


def labels_for(choice: str | int | Sequence[int | str] | Tensor | None, classes: Sequence[str], counts: Sequence[int], seeds: Sequence[int]) -> Tensor:
    """Labels (n,) int64: None = drawn as in the training data (by seed), "all" = every class in turn, else names or numbers in turn (a tensor or array of numbers, too)."""
    n = len(seeds)
    if choice is None:
        share = torch.tensor(counts, dtype=torch.float64)
        return torch.stack([torch.multinomial(share, 1, generator=generator(s, "label"))[0] for s in seeds])
    if hasattr(choice, "tolist"):
        choice = choice.tolist()
    if choice == "all":
        return torch.arange(n) % len(classes)
    parts = [choice] if isinstance(choice, int) else [c.strip() for c in choice.split(",")] if isinstance(choice, str) else list(choice)
    if not parts:
        raise UserError("no label is given: give a class, or leave it out")
    numbers = [_class_number(part, classes) for part in parts]
    return torch.tensor([numbers[i % len(numbers)] for i in range(n)])


def _class_number(part: int | str, classes: Sequence[str]) -> int:
    """The number of a class given by name or number."""
    if isinstance(part, str) and part in classes:
        return list(classes).index(part)
    whole = re.fullmatch(r"-?[0-9]+", str(part))
    if whole and len(whole[0]) < 19 and 0 <= int(part) < len(classes):
        return int(part)
    if whole:
        raise UserError(f"--label {part}: the classes are 0 to {len(classes) - 1}")
    raise UserError(f"--label {part}: no such class; {nearest(str(part), classes)}")


@torch.no_grad()
def generate(method: Method, request: Request, where: Where, batch: int = 250, done: Callable[[int], None] | None = None) -> Tensor:
    """Images uint8 (n, C, H, W) for the request, in batches (which change nothing but the time).

    Several processes take the batches in turn, each as one process would draw it, and hand them in to process 0; the others get (0, C, H, W).
    """
    device = torch.device(where.device)

    def draw(part: Request) -> dict[str, Tensor]:
        with where.eager(), where.autocast():
            return {"images": to_uint8(method.sample(replace(part, cond=part.cond.to(device)))).cpu()}

    parts = [torch.empty(0, *method.shape, dtype=torch.uint8)]
    batches = (request.take(slice(i, i + batch)) for i in range(0, len(request.seeds), batch))
    for found in where.team.in_turn(partial(draw, part) for part in batches):
        parts.append(found["images"])
        if done is not None:
            done(sum(map(len, parts)))
    return torch.cat(parts)


def preview(method: Method, num: int, where: Where) -> Tensor | None:
    """The same few samples every time it is asked, classes in turn; None for a method that needs a source image, or generates nothing."""
    if Ability.SOURCE in method.abilities or not method.generates:
        return None
    return generate(method, Request(seeds_for(0, num), in_turn(method, num)), where, batch=num)


def in_turn(method: Method, num: int) -> Condition:
    """Classes, or captions of the training data, one after the other, as the method takes them."""
    classes, texts = method.info.classes, method.info.texts
    if Ability.TEXT in method.abilities and texts:
        return Condition(text=tuple(texts[i % len(texts)] for i in range(num)))
    return Condition(label=torch.arange(num) % len(classes)) if Ability.LABEL in method.abilities and classes else Condition()


def middle(method: Method, num: int) -> Tensor | None:
    """The mask (n, 1, H, W) where nobody gave one: the middle, half of each side; None for a method that takes none."""
    if Ability.MASK not in method.abilities:
        return None
    mask = torch.zeros(num, 1, *tuple(method.shape)[1:])
    height, width = mask.shape[2:]
    mask[:, :, height // 4 : height - height // 4, width // 4 : width - width // 4] = 1
    return mask


def slerp(a: Tensor, b: Tensor, w: float) -> Tensor:
    """Spherical interpolation of latents (n, ...) sample by sample: sin((1-w)t)/sin t a + sin(wt)/sin t b, t the angle between them.

    Of two standard normal vectors it keeps the length that normal vectors of this dimension have (White 2016, arXiv 1609.04468).
    """
    flat_a, flat_b = a.flatten(1).double(), b.flatten(1).double()
    cos = torch.nn.functional.cosine_similarity(flat_a, flat_b, dim=1).clamp(-1, 1)
    t = cos.acos()[:, None]
    near = t.sin() < 1e-6
    left = torch.where(near, 1 - w, ((1 - w) * t).sin() / t.sin().clamp_min(1e-12))
    right = torch.where(near, w, (w * t).sin() / t.sin().clamp_min(1e-12))
    return (left * flat_a + right * flat_b).reshape(a.shape).to(a.dtype)


class Trained:
    """A trained run, ready to be used from Python: `pixelkiln.load("runs/demo").sample(16)`."""

    def __init__(self, method: Method, opened: Opened, where: Where, ema_std: float | None = None) -> None:
        self.method, self.opened, self.where, self.ema_std = method, opened, where, ema_std
        where.place(method)

    @property
    def facts(self) -> Mapping[str, Any]:
        """recipe.json of the run."""
        return self.opened.facts

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of what `label` chooses from: the classes of its training data, or its own."""
        return self.method.info.classes

    @property
    def invents(self) -> bool:
        """Whether these are its own, of which its training data know nothing."""
        return self.classes != self.opened.info.classes

    def pictures(self, path: Path | str, channels: int | None = None) -> Tensor:
        """An image file, or the images below a folder, uint8 (N, C, H, W), prepared as the training images were; or with so many channels.

        Errors as `data.pictures`.
        """
        shape = replace(self.method.shape, channels=channels or self.method.shape.channels)
        return pictures(Path(path), shape, self.opened.stage.data)

    def condition(self, seeds: Sequence[int], label: Any = None, text: str | Sequence[str] | None = None, source: Tensor | None = None,
                  mask: Tensor | None = None) -> Condition:
        """The condition of n samples; labels, or captions, are drawn as in the training data where none are asked for (none of its own classes)."""
        n, method = len(seeds), self.method
        found: dict[str, Any] = {}
        if label is not None and not (Ability.LABEL in method.abilities and self.classes):
            raise UserError(f"{self.opened.run.path} is not conditioned on labels: leave --label out")
        if Ability.LABEL in method.abilities and self.classes and (label is not None or (source is None and not self.invents)):
            found["label"] = labels_for(label, self.classes, self.facts["data"].get("counts") or [1] * len(self.classes), seeds)
        if Ability.TEXT in method.abilities and method.info.texts and text is None and "label" not in found and source is None:
            text = [method.info.texts[int(torch.randint(len(method.info.texts), (), generator=generator(s, "text")))] for s in seeds]
        if text is not None:
            texts = [text] if isinstance(text, str) else text
            if not texts:
                raise UserError("no caption is given: give --text one, or leave it out")
            found["text"] = tuple(texts[i % len(texts)] for i in range(n))
        if source is not None:
            several = from_uint8(source if source.ndim == 4 else source[None])
            found["source"] = several.expand(n, -1, -1, -1) if len(several) == 1 else several[torch.arange(n) % len(several)]
        if mask is not None:
            found["mask"] = (mask > 127).float().expand(n, -1, -1, -1)
        return Condition(**found)

    def request(self, num: int, seed: int = 0, label: Any = None, text: str | Sequence[str] | None = None, source: Tensor | None = None, mask: Tensor | None = None,
                share: int = 1, **knobs: Any) -> Request:
        """The order for `num` samples; so many in a row share a seed (`share`); knobs: steps, solver, eta, guidance, strength, truncation, callback."""
        seeds = tuple(s for s in seeds_for(seed, -(-num // share)) for _ in range(share))[:num]
        return Request(seeds, self.condition(seeds, label, text, source, mask), **knobs)

    def sample(self, num: int = 64, seed: int = 0, label: Any = None, text: str | Sequence[str] | None = None, source: Tensor | None = None, batch: int = 250,
               done: Callable[[int], None] | None = None, **knobs: Any) -> Tensor:
        """Images uint8 (num, C, H, W). label: class number, name, "all", or several; text: a caption, or several in turn; source: uint8 (C, H, W) or several, in turn."""
        return generate(self.method, self.request(num, seed, label, text, source, **knobs), self.where, batch, done)

    @torch.no_grad()
    def interpolate(self, frames: int = 16, seed: int = 0, to_seed: int = 1, label: Any = None, images: tuple[Tensor, Tensor] | None = None,
                    path: str = "slerp") -> Tensor:
        """Frames uint8 (frames, C, H, W) between the latents of two seeds, or between two images uint8 (C, H, W) where the method encodes."""
        method = self.method
        mix = slerp if path == "slerp" else torch.lerp
        weights = torch.linspace(0, 1, frames).tolist()
        device = torch.device(self.where.device)
        if images is not None:
            if not isinstance(method, Codec):
                raise UserError(f"{self.facts['recipe']} cannot encode images: interpolate between seeds (leave the images out)")
            a, b = (method.encode((image[None].float() / 127.5 - 1).to(device)) for image in images)
            with self.where.autocast():
                x = method.decode(torch.cat([mix(a, b, w) for w in weights]))
        else:
            if not isinstance(method, Latent):
                raise UserError(f"{self.facts['recipe']} has no latent space to interpolate in")
            a, b = method.latents(seeds_for(seed, 1)), method.latents(seeds_for(to_seed, 1))
            seeds = seeds_for(seed, 1) * frames
            request = Request(seeds, self.condition(seeds, label).to(device))
            with self.where.autocast():
                x = method.from_latents(torch.cat([mix(a, b, w) for w in weights]).to(device), request)
        return to_uint8(x.float().clamp(-1, 1)).cpu()


def load(run: Path | str, device: str = "auto", precision: str = "auto", recipe: str | None = None, parents: Mapping[str, str] | None = None,
         layout: str = "auto", threads: int | str | None = None, ema_std: float | None = None) -> Trained:
    """The trained model of a run folder. `recipe` must be named if the run was made by code outside the library. ema_std: the weights' average of
    that length, as a share of the training (0: none), made from the run's snapshots; None: as it samples by itself."""
    method, opened = load_method(run, recipe, parents, ema_std=ema_std)
    return Trained(method, opened, Where.choose(device, precision, "off", layout, threads), ema_std)
